"""The losses against the slow reference, by their closed forms, and their sums under any splitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparring.backend.datum import Datum
from sparring.backend.local.measures import measures
from sparring.backend.local.objectives import (
    Objective,
    Scored,
    binary_divergence,
    clipped_value,
    cross_entropy,
    importance_sampling,
    moves,
    objective,
    policy_objective,
    ppo,
)
from sparring.backend.local.packing import MicroBatch, plan
from sparring.backend.local.scored import scored_tokens
from sparring.backend.losses import (
    CISPO,
    DPPO,
    DRO,
    GSPO,
    PPO,
    CrossEntropy,
    Custom,
    DecoupledPPO,
    ImportanceSampling,
    Loss,
    Truncated,
    TruncatedImportanceSampling,
)
from sparring.backend.totals import add_up
from tests.backend.batches import groups
from tests.backend.reference import ALL_LOSSES, POLICY_LOSSES, at_sampler, reference, with_fields

CPU = torch.device("cpu")


def _call(loss: Loss, *, spread: float = 0.3, seed: int = 0, size: int = 4) -> tuple[list[Datum], list[np.ndarray]]:
    """Data with what the loss reads, and the trainer's log-probs f32[T_i]. Cross-entropy's soft targets need a head."""
    random = np.random.default_rng(seed)
    data = groups(3, size, seed=seed)
    lps = [-random.exponential(1.5, len(datum.tokens)).astype("f4") for datum in data]
    data = at_sampler(data, lps, spread, seed)
    return (data if isinstance(loss, CrossEntropy) else with_fields(data, loss, seed)), lps


def _evaluated(
    loss: Loss, data: Sequence[Datum], lps: Sequence[np.ndarray], dtype: torch.dtype = torch.float32
) -> tuple[Objective, list[np.ndarray], dict[str, float]]:
    """The objective of one micro-batch, its slopes by datum, and its metrics."""
    (batch,) = plan(data, token_budget=1 << 20)
    scored = _cast(scored_tokens(data, batch, loss, CPU), dtype)
    leaf = torch.tensor(
        [lps[d][t] for d, t in zip(batch.datum, batch.token, strict=True)], dtype=dtype, requires_grad=True
    )
    result = objective(loss, leaf, scored)
    (slope,) = torch.autograd.grad(result.loss, leaf)
    return result, _by_datum(data, batch, slope), measures(loss, leaf, scored.q, result).fetched()


def _cast(scored: Scored, dtype: torch.dtype) -> Scored:
    proximal = scored.proximal
    return Scored(
        q=scored.q.to(dtype),
        advantages=scored.advantages.to(dtype),
        weights=scored.weights.to(dtype),
        low=scored.low.to(dtype),
        high=scored.high.to(dtype),
        sequence=scored.sequence,
        proximal=None if proximal is None else proximal.to(dtype),
    )


def _by_datum(data: Sequence[Datum], batch: MicroBatch, values: Tensor) -> list[np.ndarray]:
    whole = [np.zeros(len(datum.tokens)) for datum in data]
    for d, t, value in zip(batch.datum, batch.token, values.tolist(), strict=True):
        whole[d][t] = value
    return whole


def _wanted(loss: Loss, data: Sequence[Datum], lps: Sequence[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    total, slopes = 0.0, []
    for datum, values in zip(data, lps, strict=True):
        leaf = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        value = reference(loss, datum, leaf)
        (slope,) = torch.autograd.grad(value, leaf) if value.requires_grad else (torch.zeros_like(leaf),)
        total += value.item()
        slopes.append(slope.numpy())
    return total, slopes


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=repr)
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
def test_losses_and_gradients_equal_the_reference(loss: Loss, spread: float) -> None:
    data, lps = _call(loss, spread=spread)
    result, slopes, _ = _evaluated(loss, data, lps, torch.float64)
    want, want_slopes = _wanted(loss, data, lps)
    assert result.loss.item() == pytest.approx(want, rel=1e-9, abs=1e-9)
    for got, slope in zip(slopes, want_slopes, strict=True):
        np.testing.assert_allclose(got, slope, rtol=1e-9, atol=1e-12)
    single, rough, _ = _evaluated(loss, data, lps)
    assert single.loss.item() == pytest.approx(want, rel=1e-4, abs=1e-4)
    for got, slope in zip(rough, want_slopes, strict=True):
        np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", POLICY_LOSSES, ids=repr)
def test_the_cases_of_the_test_above_meet_both_sides_of_every_bound(loss: Loss) -> None:
    """A reference that no token clips proves nothing about clipping."""
    found = add_up(_evaluated(loss, *_call(loss, spread=0.5, seed=seed))[2] for seed in range(3))
    never = {
        Truncated(loss=ImportanceSampling(), cap=math.inf): "truncated",
        DecoupledPPO(): "truncated",
    }
    for name in {"clipped_low", "clipped_high", "truncated"} & found.keys():
        assert (0 < found[name] < found["tokens"]) == (name != never.get(loss)), name


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ALL_LOSSES), st.floats(0, 1), st.integers(0, 10_000), st.integers(1, 3))
def test_any_batch_equals_the_reference(loss: Loss, spread: float, seed: int, size: int) -> None:
    data, lps = _call(loss, spread=spread, seed=seed, size=size)
    result, slopes, _ = _evaluated(loss, data, lps, torch.float64)
    want, want_slopes = _wanted(loss, data, lps)
    assert result.loss.item() == pytest.approx(want, rel=1e-8, abs=1e-8)
    np.testing.assert_allclose(np.concatenate(slopes), np.concatenate(want_slopes), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", POLICY_LOSSES, ids=repr)
def test_at_ratio_one_every_policy_loss_has_the_same_gradient(loss: Loss) -> None:
    data, lps = _call(loss, spread=0.0)
    data = [replace(d, proximal_logprobs=None if d.proximal_logprobs is None else d.logprobs.copy()) for d in data]
    _, slopes, metrics = _evaluated(loss, data, lps)
    for datum, slope in zip(data, slopes, strict=True):
        np.testing.assert_allclose(slope, -datum.advantages * datum.mask, rtol=1e-5, atol=1e-6)
    assert metrics["kl_k1_sum"] == metrics["kl_k2_sum"] == metrics["kl_k3_sum"] == 0
    assert metrics["ratio_sum"] == metrics["ratio_squared_sum"] == metrics["log_ratio_bin/0"] == metrics["tokens"]
    assert metrics.get("clipped", 0) == metrics.get("truncated", 0) == 0


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=repr)
@pytest.mark.parametrize("calls", [1, 3, 8])
def test_split_calls_add_up(loss: Loss, calls: int) -> None:
    data, lps = _call(loss)
    _, slopes, metrics = _evaluated(loss, data, lps)
    parts: list[np.ndarray] = []
    found = []
    for place in np.array_split(np.arange(len(data)), calls):
        _, own, sums = _evaluated(loss, [data[i] for i in place], [lps[i] for i in place])
        parts += own
        found.append(sums)
    np.testing.assert_allclose(np.concatenate(parts), np.concatenate(slopes), rtol=1e-5, atol=1e-6)
    assert add_up(found) == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_gspo_of_equal_advantages_is_the_papers_sequence_loss() -> None:
    """arXiv 2507.18071, eq. 5 and 6: the sum over a datum is its tokens times min(s A, clip(s) A), and so is the gradient."""
    data, lps = _call(GSPO(), spread=0.1)
    loss = GSPO(clip_low_threshold=0.95, clip_high_threshold=1.02)
    result, slopes, _ = _evaluated(loss, data, lps, torch.float64)
    total = 0.0
    for datum, values, slope in zip(data, lps, slopes, strict=True):
        count, advantage = int(datum.mask.sum()), float(datum.advantages[datum.mask][0])
        leaf = torch.tensor(values[datum.mask], dtype=torch.float64, requires_grad=True)
        s = torch.exp(torch.log(torch.exp(leaf - torch.tensor(datum.logprobs[datum.mask])).prod()) / count)
        value = -count * torch.minimum(s * advantage, s.clamp(0.95, 1.02) * advantage)
        value.backward()
        assert leaf.grad is not None
        np.testing.assert_allclose(slope[datum.mask], leaf.grad.numpy(), rtol=1e-6, atol=1e-9)
        total += value.item()
    assert result.loss.item() == pytest.approx(total, rel=1e-6)


def test_truncation_by_token_is_cispo_without_a_lower_bound() -> None:
    data, lps = _call(GSPO(), spread=0.8)
    one, slopes, metrics = _evaluated(TruncatedImportanceSampling(cap=1.5), data, lps)
    other, others, sums = _evaluated(CISPO(clip_high_threshold=1.5), data, lps)
    assert one.loss.item() == other.loss.item()
    np.testing.assert_array_equal(np.concatenate(slopes), np.concatenate(others))
    assert metrics["truncated"] == sums["clipped_high"] > 0


def test_decoupled_ppo_with_the_sampler_as_proximal_is_ppo() -> None:
    data, lps = _call(PPO(), spread=0.5)
    decoupled = [replace(d, proximal_logprobs=d.logprobs) for d in data]
    one, slopes, _ = _evaluated(PPO(), data, lps)
    for loss in (DecoupledPPO(), DecoupledPPO(cap=1.0, level="sequence"), Truncated(loss=PPO(), cap=1.0)):
        other, others, _ = _evaluated(loss, decoupled, lps)
        assert one.loss.item() == other.loss.item()
        np.testing.assert_array_equal(np.concatenate(slopes), np.concatenate(others))


def test_a_divided_dro_is_the_divided_loss() -> None:
    """Dividing advantages and weights divides both terms, so that the balance that beta sets stays."""
    data, lps = _call(DRO(), spread=0.5)
    whole, _, _ = _evaluated(DRO(), data, lps, torch.float64)
    tenth, _, _ = _evaluated(DRO(), [d.scaled(0.1) for d in data], lps, torch.float64)
    assert tenth.loss.item() == pytest.approx(whole.loss.item() / 10, rel=1e-5)


def test_dppo_masks_by_distance_and_direction() -> None:
    """Far and away: masked. Far and back, near and away: as importance sampling."""
    q = torch.log(torch.tensor([0.2, 0.2, 0.8, 0.8, 1e-4]))
    lp = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5, 5e-4]))
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    leaf = lp.clone().requires_grad_(True)
    scored = _scored(q, advantages)
    result = policy_objective(DPPO(threshold=0.2), leaf, scored)
    (slope,) = torch.autograd.grad(result.loss, leaf)
    ratio = torch.exp(lp - q)
    want = -ratio * advantages * torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(slope, want)
    assert result.low is not None and result.high is not None
    assert (result.low.tolist(), result.high.tolist()) == ([False] * 3 + [True, False], [True] + [False] * 4)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_divergences_are_distances(q: float, lp: float) -> None:
    one, two = torch.tensor([q], dtype=torch.float64), torch.tensor([lp], dtype=torch.float64)
    tv, kl = (binary_divergence(one, two, kind).item() for kind in ("tv", "kl"))
    assert 0 <= tv <= 1
    assert kl >= 2 * tv**2 - 1e-9  # Pinsker
    assert binary_divergence(one, one, "kl").item() == 0


def test_the_divergence_of_certain_tokens_is_finite() -> None:
    certain, doubtful = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0])
    assert torch.isfinite(binary_divergence(certain, doubtful, "kl")).all()


def _scored(q: Tensor, advantages: Tensor) -> Scored:
    return Scored(
        q=q,
        advantages=advantages,
        weights=torch.ones_like(q),
        low=torch.full_like(q, 0.8),
        high=torch.full_like(q, 1.2),
        sequence=torch.arange(len(q)),
    )


def test_clipping_counts_only_tokens_without_a_gradient() -> None:
    """A ratio beyond a bound still learns when the advantage pulls it back: (ratio high, A < 0), (ratio low, A > 0)."""
    lp, q = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True), torch.zeros(4)
    result = objective(PPO(), lp, _scored(q, torch.tensor([1.0, -1.0, 1.0, -1.0])))
    (slope,) = torch.autograd.grad(result.loss, lp)
    assert [value == 0 for value in slope.tolist()] == [True, False, False, True]
    assert result.low is not None and result.high is not None
    assert (result.low.tolist(), result.high.tolist()) == ([False] * 3 + [True], [True] + [False] * 3)


def test_a_clipped_value_moves_only_towards_the_return() -> None:
    """(inside, beyond and away, beyond and back, below and away), by hand; and the gradient by autograd of each case."""
    old, returns, weights = torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 2.0, 1.0])
    value = torch.tensor([0.1, 0.5, 0.5, -0.5], requires_grad=True)
    result = clipped_value(value, old, returns, weights, clip=0.2)
    terms = [0.5 * 0.9**2, 0.5 * 1.5**2, 2 / 2 * 0.8**2, 0.5 * 2.5**2]
    assert result.loss.item() == pytest.approx(sum(terms))
    (slope,) = torch.autograd.grad(result.loss, value)
    assert slope.tolist() == pytest.approx([-0.9, 1.5, 0.0, -2.5])
    assert result.low is not None and result.high is not None
    assert (result.low.any().item(), result.high.tolist()) == (False, [False, False, True, False])


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=8), st.floats(0.05, 2))
def test_clipped_values_equal_the_reference(rows: list[tuple[float, float, float]], clip: float) -> None:
    value, old, returns = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    got = clipped_value(value, old, returns, torch.ones_like(value), clip=clip).loss.item()
    want = sum(0.5 * max((v - r) ** 2, (o + min(max(v - o, -clip), clip) - r) ** 2) for v, o, r in rows)
    assert got == pytest.approx(want, abs=1e-12)


def test_an_unbounded_clip_is_the_squared_error() -> None:
    value, old, returns = torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0])
    assert clipped_value(value, old, returns, torch.ones(1), clip=math.inf).loss.item() == 2


@pytest.mark.parametrize("loss", ALL_LOSSES, ids=repr)
def test_what_does_not_move_has_no_gradient_and_what_moves_has_one(loss: Loss) -> None:
    data, lps = _call(loss, spread=0.01)
    still = [replace(d, advantages=d.advantages * 0, weights=d.weights * 0) for d in data]
    _, slopes, _ = _evaluated(loss, still, lps)
    assert not any(moves(loss, datum) for datum in still)
    assert not np.concatenate(slopes).any()
    _, slopes, _ = _evaluated(loss, data, lps)
    assert np.concatenate(slopes).any()
    assert all(moves(loss, datum) for datum in data)


def test_a_datum_without_advantage_moves_by_the_terms_that_have_none() -> None:
    (datum,) = groups(1, 1)
    still = replace(datum, advantages=np.zeros_like(datum.advantages))
    found = {type(loss): moves(loss, still) for loss in (DRO(), CrossEntropy(), PPO(), GSPO(), Custom(function=_zero))}
    assert found == {DRO: True, CrossEntropy: True, PPO: False, GSPO: False, Custom: True}


def _zero(data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
    return torch.zeros(()), {}


def test_no_tokens_are_a_zero_loss() -> None:
    empty = torch.zeros(0, requires_grad=True)
    scored = replace(_scored(torch.zeros(0), torch.zeros(0)), proximal=torch.zeros(0))
    for loss in ALL_LOSSES:
        result = objective(loss, empty, scored)
        assert result.loss.item() == 0
        assert torch.autograd.grad(result.loss, empty)[0].shape == (0,)


def test_shapes_are_asserted() -> None:
    refusals = (AssertionError, TypeError)  # a TypeError where the second run checks the annotations first
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(refusals):
        importance_sampling(three, two, three)
    with pytest.raises(refusals):
        ppo(three, three, three, two, three)
    with pytest.raises(refusals):
        cross_entropy(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(refusals):
        clipped_value(three, two, three, three, clip=0.2)
    with pytest.raises(AssertionError, match="custom"):
        objective(Custom(function=_zero), three, _scored(three, three))
