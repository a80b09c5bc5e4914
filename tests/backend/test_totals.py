"""Metrics of calls: what they measure by hand, that they add up, and what people read of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.local.measures import Sums, distances, histogram, measures, value_measures
from sparring.backend.local.objectives import Objective
from sparring.backend.losses import PPO, CrossEntropy
from sparring.backend.totals import BIN, LAST_BIN, NARROWEST, add_up, rates


def _bins(log_ratio: torch.Tensor) -> dict[str, float]:
    found = Sums(tokens=0, scalars={}, bins=histogram(log_ratio)).fetched()
    del found["tokens"]
    return found


def test_metrics_by_hand() -> None:
    lp, q = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0])
    flags = torch.tensor([False, True])
    result = Objective(loss=torch.tensor(-0.2), low=flags, high=~flags, truncated=flags)
    ratio = math.exp(-1)
    assert measures(PPO(), lp, q, result).fetched() == pytest.approx(
        {
            "loss": -0.2,
            "tokens": 2,
            "nll_sum": 3,
            "ratio_sum": 1 + ratio,
            "ratio_squared_sum": 1 + ratio**2,
            "kl_k1_sum": 1,
            "kl_k2_sum": 0.5,
            "kl_k3_sum": ratio - 1 + 1,
            "log_ratio_bin/0": 1,
            "log_ratio_bin/-80": 1,
            "clipped": 2,
            "clipped_low": 1,
            "clipped_high": 1,
            "truncated": 1,
        }
    )


def test_cross_entropy_needs_no_sampler() -> None:
    found = measures(CrossEntropy(), torch.tensor([-1.0]), torch.zeros(1), Objective(loss=torch.tensor(1.0)))
    assert found.fetched() == {"tokens": 1, "loss": 1, "nll_sum": 1}


def test_rates_by_hand() -> None:
    totals = {
        "tokens": 4.0,
        "nll_sum": 6.0,
        "entropy_sum": 3.0,
        "entropy_tokens": 2.0,
        "ratio_sum": 2.0,
        "ratio_squared_sum": 4.0,
        "kl_k1_sum": 1.0,
        "kl_k2_sum": 4.0,
        "kl_k3_sum": 2.0,
        "clipped": 3.0,
        "clipped_low": 1.0,
        "clipped_high": 2.0,
        "truncated": 4.0,
    }
    want = {
        "entropy": 1.5,
        "entropy_exact": 1.5,
        "ratio_mean": 0.5,
        "ess": 0.25,
        "kl_k1": 0.25,
        "kl_k2": 1.0,
        "kl": 0.5,
        "clip_fraction": 0.75,
        "clip_fraction_low": 0.25,
        "clip_fraction_high": 0.5,
        "truncated_fraction": 1.0,
    }
    assert rates(totals) == pytest.approx(want)
    assert rates({"tokens": 2.0, "nll_sum": 1.0, "loss": 3.0}) == {"entropy": 0.5}
    assert rates({}) == {}


def test_a_critics_metrics_by_hand() -> None:
    values, returns = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 2.0, 1.0])
    low, high = torch.tensor([True, False, False]), torch.tensor([True, False, True])
    result = Objective(loss=torch.tensor(5.0, dtype=torch.float64), low=low, high=high)
    assert value_measures(values, returns, result).fetched() == {
        "tokens": 3,
        "loss": 5,
        "value_sum": 7,
        "return_sum": 5,
        "return_squared_sum": 9,
        "value_error_squared_sum": 10,
        "value_clipped": 3,
        "value_clipped_low": 1,
        "value_clipped_high": 2,
    }
    assert value_measures(values).fetched() == {"tokens": 3, "value_sum": 7}
    found = rates(value_measures(values, returns, result).fetched())
    assert found == pytest.approx(
        {
            "value_mean": 7 / 3,
            "return_mean": 5 / 3,
            "value_error": math.sqrt(10 / 3),
            "explained_variance": 1 - (10 / 3 - 4 / 9) / (2 / 9),
            "value_clip_fraction": 1,
            "value_clip_fraction_low": 1 / 3,
            "value_clip_fraction_high": 2 / 3,
        }
    )
    assert rates({"tokens": 3.0, "value_sum": 7.0}) == {"value_mean": 7 / 3}


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=40), st.integers(0, 40))
def test_explained_variance_of_calls_added_up_is_that_of_the_whole(pairs: list[tuple[float, float]], cut: int) -> None:
    loss = Objective(loss=torch.zeros(()))
    parts = [torch.tensor(part, dtype=torch.float64).reshape(-1, 2) for part in (pairs[:cut], pairs[cut:])]
    found = rates(add_up(value_measures(part[:, 0], part[:, 1], loss).fetched() for part in parts))
    values, returns = (np.array(column) for column in zip(*pairs, strict=True))
    assert found["value_error"] == pytest.approx(np.sqrt(np.mean((values - returns) ** 2)), abs=1e-9)
    if np.var(returns) > 1e-3:
        assert found["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns), abs=1e-6)
    if np.ptp(returns) == 0:
        assert "explained_variance" not in found


def test_values_that_tell_returns_explain_them_and_others_do_not() -> None:
    returns, loss = torch.tensor([1.0, 2.0, 3.0]), Objective(loss=torch.zeros(()))
    for values, want in ((returns, 1.0), (returns + 7, 1.0), (torch.full((3,), 9.0), 0.0), (4 - returns, -3.0)):
        assert rates(value_measures(values, returns, loss).fetched())["explained_variance"] == pytest.approx(want)
    alike = torch.full((3,), 0.1)
    assert "explained_variance" not in rates(value_measures(returns, alike, loss).fetched())


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=30))
def test_k3_is_never_negative_and_ess_is_a_share(pairs: list[tuple[float, float]]) -> None:
    lp, q = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    found = rates(distances(lp, q).fetched())
    assert found["kl"] >= 0
    assert found["kl_k2"] >= 0
    assert 0 < found["ess"] <= 1 + 1e-9
    assert found["ratio_p01"] <= found["ratio_p50"] <= found["ratio_p99"]


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=200), st.integers(0, 200))
def test_histograms_of_parts_add_up_to_that_of_the_whole(values: list[float], cut: int) -> None:
    parts = [_bins(torch.tensor(part, dtype=torch.float64)) for part in (values[:cut], values[cut:])]
    whole = _bins(torch.tensor(values, dtype=torch.float64))
    assert add_up(parts) == whole
    assert sum(whole.values()) == len(values)


@given(st.floats(-31, 31))
def test_a_bin_holds_what_it_says(value: float) -> None:
    ((name, count),) = _bins(torch.tensor([value], dtype=torch.float64)).items()
    number = int(name.removeprefix(BIN))
    assert count == 1
    if number == 0:
        assert abs(value) <= NARROWEST
    else:
        upper = NARROWEST * 10 ** (abs(number) / 16)
        assert upper / 10 ** (1 / 16) * (1 - 1e-9) <= abs(value) <= upper * (1 + 1e-9)
        assert (number > 0) == (value > 0)
        found = rates({"tokens": 1.0, name: 1.0})
        assert math.log(found["ratio_p50"]) == pytest.approx(value, rel=0.08)


def test_what_is_far_beyond_is_in_the_last_bins() -> None:
    found = _bins(torch.tensor([-1e4, 1e4, 32.0]))
    assert found == {f"{BIN}{-LAST_BIN}": 1, f"{BIN}{LAST_BIN}": 2}


def test_quantiles_are_near_those_of_the_values() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, 10_000)
    found = rates({"tokens": 1e4, **_bins(torch.tensor(values))})
    for share in (1, 50, 99):
        want = np.quantile(values, share / 100)
        assert math.log(found[f"ratio_p{share:02d}"]) == pytest.approx(want, rel=0.1, abs=5e-3)


def test_the_histogram_of_agreement_is_one_bin() -> None:
    assert _bins(torch.zeros(5)) == {f"{BIN}0": 5}
    assert rates({"tokens": 5.0, **_bins(torch.zeros(5))})["ratio_p99"] == 1
    assert _bins(torch.zeros(0)) == {}


def test_shapes_are_asserted() -> None:
    with pytest.raises((AssertionError, TypeError)):
        distances(torch.zeros(2), torch.zeros(3))
    with pytest.raises((AssertionError, TypeError)):
        value_measures(torch.zeros(2), torch.zeros(3), Objective(loss=torch.zeros(())))
