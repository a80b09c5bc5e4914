"""What stops a run that goes wrong: the share of failed episodes, and groups that leave nothing to train on."""

from __future__ import annotations

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
        self._faults_before, self._episodes_before = coordinator.faults, coordinator.episodes
        self._barren_before = {policy: barren.count for policy, barren in coordinator.barren.items()}

    def check(self) -> None:
        """Raises `TooManyFaults` above `max_faults` of the episodes, or at `max_refill` groups in a row for nothing."""
        faults = self._coordinator.faults - self._faults_before
        episodes = self._coordinator.episodes - self._episodes_before
        if faults >= _FEWEST_FAULTS and faults > self._run.max_faults * episodes:
            raise TooManyFaults(
                f"{faults} of {episodes} episodes failed, more than max_faults={self._run.max_faults}; the first:\n"
                f"{self._coordinator.fault_detail}"
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
