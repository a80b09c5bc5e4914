"""How often in a row a policy's groups were admitted for nothing: what bounds the refilling of dropped units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparring.rollout.events import Admitted, Ended
from sparring.rollout.ledger import DropReason

_TOLD = 5


@dataclass(slots=True, kw_only=True)
class Barren:
    """One policy's groups, one after the other, that left it nothing to train on, since the last that did.

    count    how many
    reasons  how many of them for which reason
    tasks    (source, index) of the last few
    detail   why the last one did
    """

    count: int = 0
    reasons: Counter[DropReason] = field(default_factory=Counter)
    tasks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    detail: str = ""

    def add(self, group: Admitted, reason: DropReason, detail: str) -> None:
        self.count += 1
        self.reasons[reason] += 1
        self.tasks = [*self.tasks, (group.source, group.index)][-_TOLD:]
        self.detail = detail


def nothing_left(episodes: Sequence[Ended]) -> str:
    """Why a group's episodes left nothing to train on, in the words of the first that says so."""
    said = [f"{ended.fault}: {ended.detail}" for ended in episodes if ended.fault]
    said += [f"seat {r.seat!r} was not judged: {r.unjudged}" for ended in episodes for r in ended.results if r.unjudged]
    return said[0] if said else "no seat that is trained spoke and was rewarded"
