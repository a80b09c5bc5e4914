"""The off-policy buffer: finished units between play and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparring.rollout.budget import StalenessBudget, Waiting
from sparring.rollout.trajectory import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatistics:
    """Units and action tokens that wait. Bounded by admission: at most (max_staleness + 1) steps' worth for each policy."""

    units: int
    tokens: int


class RolloutBuffer:
    """Units that are finished and not yet taken, under the rule of `StalenessBudget`."""

    def __init__(self, budget: StalenessBudget) -> None:
        self._budget = budget
        self._units: dict[tuple[str, int], Unit] = {}

    def add(self, unit: Unit) -> None:
        """A unit is complete."""
        assert (unit.policy, unit.group) not in self._units, f"unit {unit.policy}/{unit.group} was buffered twice"
        self._budget.finish(unit.policy, str(unit.group))
        self._units[unit.policy, unit.group] = unit

    def fresh(self, policy: str) -> tuple[int, ...] | Waiting:
        """The groups of the batch that the policy's next step may take, in order of admission, or what it waits for."""
        candidate = self._budget.candidate(policy)
        return candidate if isinstance(candidate, Waiting) else tuple(int(unit) for unit in candidate)

    def take(self, policy: str, groups: Sequence[int]) -> tuple[Unit, ...]:
        """The units of a planned step; they leave the buffer, and the budget's books when the step is committed."""
        self._budget.take(policy, [str(group) for group in groups])
        return tuple(self._units.pop((policy, group)) for group in groups)

    def statistics(self) -> BufferStatistics:
        return BufferStatistics(units=len(self._units), tokens=sum(unit.action_tokens for unit in self._units.values()))
