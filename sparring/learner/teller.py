"""What the watchers have still to be told of, and the task that tells them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sparring.learner.called import called
from sparring.learner.run_statistics import WatcherStatistics
from sparring.learner.stall import Waits
from sparring.learner.tracker import Watcher
from sparring.rollout import Journal
from sparring.rollout.events import AnyEvent
from sparring.rollout.signal import Signal

_MOST_UNTOLD = 1024
"""Events that the watchers have not been told of above which no group is admitted."""


class Teller:
    """A queue of journaled events. All that are on the disk are told by one thread, one after the other: a thread for each of
    them would cost more than what most watchers do."""

    def __init__(
        self,
        watchers: Sequence[Watcher],
        journal: Journal,
        waits: Waits,
        on_told: Callable[[], None],
        *,
        patience: float,
    ) -> None:
        self._watchers = watchers
        self._patience = patience
        self._journal = journal
        self._waits = waits
        self._on_told = on_told
        self._untold: deque[tuple[int, AnyEvent]] = deque()
        self._added = Signal()
        self._closed = False

    def add(self, number: int, event: AnyEvent) -> None:
        """The event that the journal knows by this number is to be told once it is on the disk."""
        self._untold.append((number, event))
        self._added.notify()

    def close(self) -> None:
        """Nothing more comes: `run` returns when all is told."""
        self._closed = True
        self._added.notify()

    @property
    def behind(self) -> bool:
        """Whether the watchers are so far behind that nothing should be added to what they will be told."""
        return len(self._untold) > _MOST_UNTOLD

    def statistics(self) -> WatcherStatistics:
        return WatcherStatistics(untold=len(self._untold), most=_MOST_UNTOLD)

    async def run(self) -> None:
        """Waits for events, for the disk and for the watchers. Calls `on_told` when they have caught up."""
        while self._untold or not self._closed:
            if not self._untold:
                await self._added.wait()
                continue
            count, (number, _) = len(self._untold), self._untold[-1]
            with self._waits.on("watchers", f"the disk: event {number}"):
                await self._journal.durable(number)
            telling = _Telling()
            with self._waits.on("watchers", telling):
                tell, end = partial(self._tell, count, telling), telling.end
                await called(tell, "watchers", patience=self._patience, limited=False, when_cancelled=end)
            self._on_told()

    def _tell(self, count: int, telling: _Telling) -> None:
        """The first `count` of them. In a thread, which ends between two events where the run does."""
        for _ in range(count):
            if telling.over:
                return
            _, event = self._untold[0]
            telling.event = event
            for watcher in self._watchers:
                telling.watcher = watcher
                watcher.event(event)
            self._untold.popleft()


@dataclass(slots=True)
class _Telling:
    """Who is being told of what, and whether that is enough."""

    watcher: Watcher | None = None
    event: AnyEvent | None = None
    over: bool = False

    def end(self) -> None:
        self.over = True

    def __str__(self) -> str:
        if self.watcher is None:
            return "a thread"
        return f"{type(self.watcher).__name__} to take {type(self.event).__name__}"
