"""How often at least one of k attempts solves a task, from n attempts at each, with intervals over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from sparring.errors import SettingError
from sparring.learner.history import Estimate, estimate_mean


def pass_at_k(attempts: int, solved: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), for `solved` c of n `attempts` at one task: unbiased, where 1 - (1 - c/n)^k is not
    (arXiv 2107.03374, eq. 1). Computed exactly."""
    if not 1 <= k <= attempts:
        raise SettingError(f"pass@{k} of {attempts} attempts: k must be from 1 to the number of attempts")
    assert 0 <= solved <= attempts, (solved, attempts)
    return 1 - comb(attempts - solved, k) / comb(attempts, k)


def passes(tasks: Sequence[Sequence[float | None]], k: int, success: float) -> Estimate | None:
    """The mean of pass@k over tasks; None where none can tell. Each task's attempts are values, None where one was not judged:
    a value of at least `success` is solved, what was not judged is no attempt, a task with fewer than k of them is missing."""
    judged = [[value for value in task if value is not None] for task in tasks]
    return estimate_mean(
        [
            pass_at_k(len(task), sum(value >= success for value in task), k) if len(task) >= k else None
            for task in judged
        ]
    )


def means(tasks: Sequence[Sequence[float | None]]) -> Estimate | None:
    """The mean over tasks of the mean over what was judged of each: attempts at one task are not independent, so that the
    interval is over tasks."""
    judged = [[value for value in task if value is not None] for task in tasks]
    return estimate_mean([sum(task) / len(task) if task else None for task in judged])
