"""The losses against a slow float64 reference, by their closed forms, and their sums under any splitting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.local.objectives import Objective, Scored, cross_entropy, importance_sampling, objective, ppo
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling, Loss
from sparring.backend.totals import add_up, rates

LOSSES: list[Loss] = [
    CrossEntropy(),
    ImportanceSampling(),
    PPO(),
    PPO(clip_low_threshold=0.5, clip_high_threshold=1.05),
]


def _data(count: int, seed: int = 0, spread: float = 0.5) -> tuple[torch.Tensor, Scored]:
    random = np.random.default_rng(seed)
    q = -random.exponential(1.5, count)
    lp = np.minimum(q + random.normal(0, spread, count), 0)
    tensors = [
        torch.tensor(v, dtype=torch.float32) for v in (q, random.normal(0, 1, count), random.uniform(0, 1, count))
    ]
    return torch.tensor(lp, dtype=torch.float32), Scored(q=tensors[0], advantages=tensors[1], weights=tensors[2])


def _reference(loss: Loss, lp: float, q: float, advantage: float, weight: float) -> tuple[float, float]:
    """One token's loss and its derivative with respect to lp, written out case by case."""
    ratio = math.exp(lp - q)
    match loss:
        case CrossEntropy():
            return -weight * lp, -weight
        case ImportanceSampling():
            return -ratio * advantage, -ratio * advantage
        case PPO(clip_low_threshold=low, clip_high_threshold=high):
            if advantage >= 0 and ratio > high:
                return -high * advantage, 0.0
            if advantage < 0 and ratio < low:
                return -low * advantage, 0.0
            return -ratio * advantage, -ratio * advantage


def _gradient(loss: Loss, lp: torch.Tensor, scored: Scored) -> tuple[Objective, torch.Tensor]:
    leaf = lp.clone().requires_grad_(True)
    result = objective(loss, leaf, scored)
    result.loss.backward()
    assert leaf.grad is not None
    return result, leaf.grad


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5, 2.0])
def test_losses_and_gradients_equal_the_reference(loss: Loss, spread: float) -> None:
    lp, scored = _data(200, spread=spread)
    result, gradient = _gradient(loss, lp, scored)
    rows = zip(lp.tolist(), scored.q.tolist(), scored.advantages.tolist(), scored.weights.tolist(), strict=True)
    want = [_reference(loss, *row) for row in rows]
    assert result.loss.item() == pytest.approx(sum(value for value, _ in want), rel=1e-4)
    np.testing.assert_allclose(gradient.numpy(), [slope for _, slope in want], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_at_ratio_one_every_policy_loss_has_the_same_gradient(loss: Loss) -> None:
    _, scored = _data(50)
    result, gradient = _gradient(loss, scored.q, scored)
    torch.testing.assert_close(gradient, -scored.advantages)
    assert result.metrics["loss"].item() == pytest.approx(-scored.advantages.sum().item(), rel=1e-5)
    assert result.metrics["kl_k1_sum"].item() == 0
    assert result.metrics["kl_k3_sum"].item() == 0
    assert rates({name: v.item() for name, v in result.metrics.items()})["ess"] == pytest.approx(1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("calls", [1, 3, 8])
def test_split_calls_add_up(loss: Loss, calls: int) -> None:
    lp, scored = _data(97)
    whole, gradient = _gradient(loss, lp, scored)
    parts, slopes = [], []
    for place in np.array_split(np.arange(97), calls):
        index = torch.from_numpy(place)
        part = Scored(q=scored.q[index], advantages=scored.advantages[index], weights=scored.weights[index])
        result, slope = _gradient(loss, lp[index], part)
        parts.append({name: value.item() for name, value in result.metrics.items()})
        slopes.append(slope)
    torch.testing.assert_close(torch.cat(slopes), gradient)
    assert add_up(parts) == pytest.approx({name: v.item() for name, v in whole.metrics.items()}, rel=1e-4)


def test_metrics_by_hand() -> None:
    lp, q = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0])
    metrics = ppo(lp, q, torch.tensor([1.0, -1.0]), low=0.8, high=1.2).metrics
    ratio = math.exp(-1)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "loss": -(1.0 - 0.8),
            "tokens": 2,
            "nll_sum": 3,
            "ratio_sum": 1 + ratio,
            "ratio_squared_sum": 1 + ratio**2,
            "kl_k1_sum": 1,
            "kl_k3_sum": ratio - 1 + 1,
            "clipped": 1,
        }
    )


def test_rates_by_hand() -> None:
    totals = {
        "tokens": 4.0,
        "nll_sum": 6.0,
        "ratio_sum": 2.0,
        "ratio_squared_sum": 4.0,
        "kl_k1_sum": 1.0,
        "kl_k3_sum": 2.0,
        "clipped": 1.0,
    }
    want = {"entropy": 1.5, "ratio_mean": 0.5, "ess": 0.25, "kl_k1": 0.25, "kl": 0.5, "clip_fraction": 0.25}
    assert rates(totals) == pytest.approx(want)
    assert rates({"tokens": 2.0, "nll_sum": 1.0, "loss": 3.0}) == {"entropy": 0.5}
    assert rates({}) == {}


def test_clipping_counts_only_tokens_without_a_gradient() -> None:
    """A ratio beyond a bound still learns when the advantage pulls it back: (ratio high, A < 0), (ratio low, A > 0)."""
    lp, q = torch.tensor([0.5, 0.5, -0.5, -0.5]), torch.zeros(4)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    scored = Scored(q=q, advantages=advantages, weights=torch.zeros(4))
    result, gradient = _gradient(PPO(), lp, scored)
    assert [slope == 0 for slope in gradient.tolist()] == [True, False, False, True]
    assert result.metrics["clipped"].item() == 2


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=30))
def test_k3_is_never_negative_and_ess_is_a_share(pairs: list[tuple[float, float]]) -> None:
    lp, q = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    metrics = importance_sampling(lp, q, torch.zeros_like(lp)).metrics
    found = rates({name: value.item() for name, value in metrics.items()})
    assert found["kl"] >= 0
    assert 0 < found["ess"] <= 1 + 1e-9


def test_no_tokens_are_a_zero_loss() -> None:
    empty = torch.zeros(0)
    assert cross_entropy(empty, empty).loss.item() == 0
    assert ppo(empty, empty, empty, low=0.8, high=1.2).metrics["clipped"].item() == 0


def test_shapes_are_asserted() -> None:
    refusals = (AssertionError, TypeError)  # a TypeError where the second run checks the annotations first
    with pytest.raises(refusals):
        importance_sampling(torch.zeros(3), torch.zeros(2), torch.zeros(3))
    with pytest.raises(refusals):
        cross_entropy(torch.zeros(3, 1), torch.zeros(3, 1))
