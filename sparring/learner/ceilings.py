"""What stops a run that goes wrong: the share of failed episodes, and groups that leave nothing to train on."""

from __future__ import annotations

from collections import Counter

from sparring.errors import TooManyFaults
from sparring.learner.run import Run
from sparring.rollout import Coordinator
from sparring.rollout.refill import Barren

_FEWEST_FAULTS = 8
"""Failed episodes below which no run is stopped for their share."""


class Ceilings:
    """Counts from where it was made: a run whose environment was mended starts counting anew when it is resumed."""

    def __init__(self, run: Run, coordinator: Coordinator) -> None:
        self._run = run
        self._coordinator = coordinator
        self._kinds_before, self._attempts_before = Counter(coordinator.faults.kinds), coordinator.faults.attempts
        self._barren_before = {policy: barren.count for policy, barren in coordinator.barren.items()}

    def check(self) -> None:
        """Raises `TooManyFaults` above `max_faults` of the attempts, or at `max_refill` groups in a row for nothing."""
        counts = self._coordinator.faults
        kinds, attempts = counts.kinds - self._kinds_before, counts.attempts - self._attempts_before
        if kinds.total() >= _FEWEST_FAULTS and kinds.total() > self._run.max_faults * attempts:
            ((kind, count),) = kinds.most_common(1)
            what = "attempts at episodes" if counts.retried else "episodes"
            raise TooManyFaults(
                f"{kinds.total()} of {attempts} {what} failed, more than max_faults={self._run.max_faults}; {count} of them "
                f"with {kind}, the first of these:\n{counts.details[kind]}"
            )
        for policy, barren in self._coordinator.barren.items():
            if barren.count == 0:
                self._barren_before[policy] = 0
            if barren.count - self._barren_before[policy] >= self._run.most_refills:
                raise TooManyFaults(self._told(policy, barren))

    def _told(self, policy: str, barren: Barren) -> str:
        """Which groups, why, and what to do about it."""
        names = self._run.sources
        tasks = ", ".join(
            f"{index} of train source {source} ({names[source].environment.name})" for source, index in barren.tasks
        )
        if set(barren.reasons) == {"filter"}:
            return (
                f"{barren.count} groups in a row had equal rewards for {policy!r}, the last of them tasks {tasks}: "
                f"give tasks that are sometimes solved and sometimes not, a larger group_size than {self._run.group_size}, "
                f"a larger max_refill than {self._run.most_refills}, or leave out the filter EqualRewards()"
            )
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(barren.reasons.items()))
        return (
            f"the last {barren.count} groups left {policy!r} nothing to train on ({reasons}); the last of them were tasks "
            f"{tasks}; the very last one: {barren.detail}"
        )
