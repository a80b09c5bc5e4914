"""pass@k: by hand, against every choice of k attempts, and its mean over chance; intervals over tasks."""

from __future__ import annotations

from itertools import combinations
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.errors import SettingError
from sparring.learner.history import estimate_mean
from sparring.learner.pass_at_k import means, pass_at_k, passes


def test_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 4) == 0
    assert pass_at_k(4, 3, 2) == 1, "two attempts cannot both be the one that failed"


@given(st.integers(1, 8), st.data())
def test_it_is_the_share_of_choices_with_a_solved_one(attempts: int, data: st.DataObject) -> None:
    solved, k = data.draw(st.integers(0, attempts)), data.draw(st.integers(1, attempts))
    results = [index < solved for index in range(attempts)]
    shares = [any(chosen) for chosen in combinations(results, k)]
    assert pass_at_k(attempts, solved, k) == pytest.approx(fmean(shares))


def test_it_is_unbiased_where_the_plain_estimate_is_not() -> None:
    """A task that is solved with probability 0.3, eight attempts, k = 4."""
    rng, truth = Random(0), 1 - 0.7**4
    counts = [sum(rng.random() < 0.3 for _ in range(8)) for _ in range(20_000)]
    assert fmean(pass_at_k(8, count, 4) for count in counts) == pytest.approx(truth, abs=0.01)
    assert abs(fmean(1 - (1 - count / 8) ** 4 for count in counts) - truth) > 0.02


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_cannot_be(k: int) -> None:
    with pytest.raises(SettingError, match=f"pass@{k} of 4 attempts"):
        pass_at_k(4, 1, k)


def test_over_tasks() -> None:
    """What was not judged is no attempt; a task with too few of them is missing."""
    tasks: list[list[float | None]] = [[1.0, 0.0], [0.0, None], [None, None], [1.0, 1.0]]
    one = passes(tasks, 1, 1.0)
    assert one is not None and (one.mean, one.count, one.missing) == (0.5, 3, 1)
    assert (one.low, one.high) == pytest.approx((-0.066, 1.066), abs=1e-3)
    two = passes(tasks, 2, 1.0)
    assert two is not None and (two.mean, two.count, two.missing) == (1.0, 2, 2)
    assert passes([[None]], 1, 1.0) is None
    half = passes([[0.5], [0.4]], 1, 0.5)
    assert half is not None and half.mean == 0.5
    mean = means(tasks)
    assert mean is not None and (mean.mean, mean.missing) == (0.5, 1)


def test_one_attempt_has_the_interval_of_shares() -> None:
    assert passes([[1.0], [0.0], [1.0]], 1, 1.0) == estimate_mean([1.0, 0.0, 1.0])
