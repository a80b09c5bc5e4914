"""Training episodes as they end, gathered from a journal's events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparring.rollout.events import Acted, Admitted, Affected, AnyEvent, Ended, Restarted, Retried

Past = Sequence[Acted | Affected]
"""What an episode asked for and was answered, in the journal's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """An episode that has ended: all that the journal holds of it."""

    admitted: Admitted
    past: Past
    ended: Ended


@dataclass(slots=True, kw_only=True)
class _Group:
    """A group under way: what each of its episodes that has not ended did so far."""

    admitted: Admitted
    left: dict[int, list[Acted | Affected]] = field(default_factory=dict[int, list[Acted | Affected]])


class Gathering:
    """Takes a run's events in the journal's order."""

    def __init__(self, group_size: int) -> None:
        self._members = range(group_size)
        self._groups: dict[int, _Group] = {}

    @property
    def groups(self) -> frozenset[int]:
        """Those of which an episode has not ended."""
        return frozenset(self._groups)

    @property
    def under_way(self) -> int:
        """Episodes that were admitted and have not ended."""
        return sum(len(group.left) for group in self._groups.values())

    def add(self, event: AnyEvent) -> Finished | None:
        """The episode that ends with this event, if one does."""
        match event:
            case Admitted():
                self._groups[event.group] = _Group(admitted=event, left={member: [] for member in self._members})
            case Acted() | Affected():
                self._groups[event.group].left[event.member].append(event)
            case Restarted() | Retried():
                self._groups[event.group].left[event.member].clear()
            case Ended():
                group = self._groups[event.group]
                past = group.left.pop(event.member)
                if not group.left:
                    del self._groups[event.group]
                return Finished(admitted=group.admitted, past=past, ended=event)
            case _:
                """Nothing that an episode is made of."""
        return None
