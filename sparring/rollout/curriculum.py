"""A curriculum: tasks drawn by how often they were solved lately, the uncertain ones most."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sparring.errors import SettingError
from sparring.rollout.events import Admitted, Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """Tasks are drawn in proportion to p (1 - p), with p = (solved + 1) / (played + 2) over the task's last `window`
    groups: the variance of the outcome, greatest for tasks solved every second time and for those never played; one that
    is always or never solved keeps a small weight, so that it is tried again (arXiv 2408.15099 calls p (1 - p)
    learnability).

    success  an episode solved its task where the mean return of its trained seats is at least this; failed and unjudged
             episodes do not count
    window   groups of one task that count, the latest

    In a deterministic run, what the groups of a step came to counts from the groups on that play with the version which
    that step made; in any other, at once.
    """

    success: float = 1.0
    window: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.success, int | float) or isinstance(self.success, bool) or self.success != self.success:
            raise SettingError(f"Curriculum(success={self.success!r}): must be a number, the return of a solved task")
        if not isinstance(self.window, int) or isinstance(self.window, bool) or self.window < 1:
            raise SettingError(f"Curriculum(window={self.window!r}): must be a whole number of groups, at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one group came to; `due` is each unit's step."""

    group: int
    index: int
    due: Mapping[str, int]
    solved: int
    played: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """The results of one source that count, by task, and those that wait, in the order in which they came."""

    counted: Mapping[int, Sequence[Result]]
    waiting: Sequence[Result]


@dataclass(slots=True, kw_only=True)
class Successes:
    """One source's recent results, and the draw by them. `pinned`: results wait for `settle`, so that what is drawn does
    not depend on which episode ended first."""

    curriculum: Curriculum
    tasks: int
    pinned: bool
    _recent: dict[int, deque[Result]] = field(default_factory=dict[int, Any])
    _waiting: dict[int, Result] = field(default_factory=dict[int, Any])

    def add(self, group: Admitted, due: Mapping[str, int], episodes: Sequence[Ended], seats: Mapping[str, str]) -> None:
        """A group's episodes have all ended; `seats` are those trained."""
        solved = [
            mean >= self.curriculum.success for ended in episodes if (mean := _mean_return(ended, seats)) is not None
        ]
        result = Result(group=group.group, index=group.index, due=due, solved=sum(solved), played=len(solved))
        if self.pinned:
            self._waiting[group.group] = result
        else:
            self._count(result)

    def settle(self, versions: Mapping[str, int]) -> None:
        """A group plays with these versions: what came of the units that made them counts from here on."""
        known = [
            group
            for group, result in sorted(self._waiting.items())
            if any(result.due.get(policy, version) < version for policy, version in versions.items())
        ]
        for group in known:
            self._count(self._waiting.pop(group))

    def state(self) -> Recent:
        """The results as data."""
        counted = {index: list(results) for index, results in self._recent.items()}
        return Recent(counted=counted, waiting=list(self._waiting.values()))

    def restore(self, recent: Recent) -> None:
        """Become what `state` described."""
        self._recent = {
            index: deque(results, maxlen=self.curriculum.window) for index, results in recent.counted.items()
        }
        self._waiting = {result.group: result for result in recent.waiting}

    def weight(self, index: int) -> float:
        """4 p (1 - p), at most 1."""
        recent = self._recent.get(index, ())
        solved, played = sum(one.solved for one in recent), sum(one.played for one in recent)
        return 4 * (solved + 1) * (played - solved + 1) / (played + 2) ** 2

    def draw(self, rng: Random) -> int:
        """A task in proportion to its weight: any task, taken with the probability of its weight, until one is. The
        expected number of tries does not grow with the number of tasks."""
        while True:
            index = rng.randrange(self.tasks)
            if rng.random() < self.weight(index):
                return index

    def _count(self, result: Result) -> None:
        self._recent.setdefault(result.index, deque(maxlen=self.curriculum.window)).append(result)


def _mean_return(ended: Ended, seats: Mapping[str, str]) -> float | None:
    """Over the trained seats of an episode; None where none was judged."""
    values = [one.value for one in ended.results if one.seat in seats and not one.fork and one.value is not None]
    return sum(values) / len(values) if values and not ended.fault else None
