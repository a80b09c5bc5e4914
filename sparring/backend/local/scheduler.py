"""Which sequences are drawn now: requests wait in order for slots, share prompts, and leave when they are done.

Pure bookkeeping on the engine thread, without any model. A sequence is waiting, filling (its prompt is being computed) or
running; slots are handed out lowest first. One whose weights change goes from running back to filling, and keeps its slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sparring.backend.local.cache import KeyValueCache
from sparring.backend.local.request import Drawn, Group, Request

TOGETHER = 8
"""Of so many that hold slots, one more is admitted alone where others wait behind it; of more than that, several at once."""


class Scheduler:
    """Slots of one cache and the sequences that wait for, fill and use them."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache
        self.waiting: deque[Drawn] = deque()
        self.filling: list[Group] = []
        self.running: list[Drawn] = []
        self._free = list(range(cache.slots))

    @property
    def idle(self) -> bool:
        """Whether nothing waits, fills or runs."""
        return not (self.waiting or self.filling or self.running)

    @property
    def rows(self) -> int:
        """One more than the highest slot in use."""
        return 1 + max((drawn.slot for drawn in self._holding()), default=-1)

    def add(self, request: Request) -> None:
        """Let a request's sequences wait, behind those that wait already."""
        self.waiting.extend(request.drawn)

    def requests(self) -> list[Request]:
        """Every request that waits, fills or runs, once."""
        drawn = [*self.waiting, *self._holding()]
        return list(dict.fromkeys(one.request for one in drawn))

    def remove(self, gone: Callable[[Request], bool]) -> None:
        """Drop all sequences of some requests and free their slots."""
        self.waiting = deque(drawn for drawn in self.waiting if not gone(drawn.request))
        for drawn in [drawn for drawn in self._holding() if gone(drawn.request)]:
            self._leave(drawn)

    def refill(self, request: Request) -> None:
        """The request's weights have changed: what was computed of its sequences is computed again, in the slots they have."""
        for group in self.filling:
            if any(drawn.request is request for drawn in group.members):
                group.done = 0
        for drawn in [drawn for drawn in self.running if drawn.request is request]:
            self.running.remove(drawn)
            self.filling.append(Group.of(drawn))

    def finish(self, drawn: Drawn) -> None:
        """Free the slot of a running sequence that is done."""
        self._leave(drawn)

    def admit(self) -> None:
        """Give slots to those that wait, in order, as far as the cache's bound allows; equal prompts become one group.

        Where there is no room for all of them while others run, they wait until there is some for many: one prompt alone takes
        longer to compute than a token of each sequence that runs.
        """
        room = self._room()
        if self.running and room < len(self.waiting) and TOGETHER * room < len(self._holding()):
            return
        groups: dict[tuple[int, bytes], Group] = {}
        for _ in range(room):
            drawn = self.waiting.popleft()
            drawn.slot = self._free.pop(0)
            key = drawn.request.same_prompt
            if key in groups:
                groups[key].members.append(drawn)
            else:
                groups[key] = Group.of(drawn)
        self.filling.extend(groups.values())

    def _room(self) -> int:
        """How many of those that wait the cache has room for now."""
        held = self._holding()
        count, longest = len(held), max((drawn.request.needs for drawn in held), default=0)
        for taken, drawn in enumerate(self.waiting):
            longest = max(longest, drawn.request.needs)
            if not self._cache.fits(count + taken + 1, longest):
                return taken
        return len(self.waiting)

    def start(self, group: Group) -> None:
        """The context of a group is computed: its sequences run."""
        self.filling.remove(group)
        self.running.extend(group.members)

    def compact(self) -> bool:
        """Move running sequences into the lowest slots and sort them by slot; whether they fill slots 0, 1, 2, ... then."""
        count = len(self.running)
        for drawn in sorted(self.running, key=lambda one: -one.slot):
            if drawn.slot < count or not self._free or self._free[0] >= drawn.slot:
                break
            target = self._free.pop(0)
            self._cache.copy(drawn.slot, [target], drawn.length)
            self._release(drawn.slot)
            drawn.slot = target
        self.running.sort(key=lambda one: one.slot)
        return count == 0 or self.running[-1].slot == count - 1

    def _holding(self) -> list[Drawn]:
        return [*self.running, *(drawn for group in self.filling for drawn in group.members)]

    def _leave(self, drawn: Drawn) -> None:
        if drawn in self.running:
            self.running.remove(drawn)
        else:
            group = next(group for group in self.filling if drawn in group.members)
            if (
                group.members[0] is drawn and len(group.members) > 1
            ):  # another member takes over the slot that is filled
                group.members[1].slot, drawn.slot = drawn.slot, group.members[1].slot
            group.members.remove(drawn)
            if not group.members:
                self.filling.remove(group)
        self._release(drawn.slot)
        drawn.slot = -1

    def _release(self, slot: int) -> None:
        self._free.append(slot)
        self._free.sort()
