"""What the losses of `sparring.backend.losses` compute, as pure functions of the log-probs of `N` scored tokens.

Letters as there: `lp` the trainer's log-prob, `q` the sampler's, `A` the advantage, `r = exp(lp - q)`. Every loss is a sum in
which no two data meet, so that it may be split over micro-batches and calls between any two data. Most are sums of terms of
one token each; GSPO and truncation by sequence need all of a datum's tokens. `measures` makes metrics of what is found here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparring.backend.datum import Datum
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
    Level,
    Loss,
    PolicyLoss,
    Regularized,
    Truncated,
    TruncatedImportanceSampling,
)

Tokens = Float[Tensor, " N"]
Flags = Bool[Tensor, " N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a loss needs of N scored tokens besides the trainer's log-probs.

    q, advantages, weights  f32[N]
    low, high               f32[N]  bounds of the ratio
    sequence                i64[N]  which datum each token belongs to, numbered from 0
    proximal                f32[N]  log-probs under the weights that the step began with; None where the loss reads none
    reference               f32[N]  log-probs under a reference; None likewise
    """

    q: Tokens
    advantages: Tokens
    weights: Tokens
    low: Tokens
    high: Tokens
    sequence: Int[Tensor, " N"]
    proximal: Tokens | None = None
    reference: Tokens | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss, summed over tokens (a scalar that gradients flow through), and which tokens it treated apart.

    low, high   ratio replaced by its lower, upper bound (PPO, GSPO: no gradient; CISPO: a bounded one), or masked (DPPO)
    truncated   importance weight met the cap
    None where the loss has no such thing.
    """

    loss: Float[Tensor, ""]
    low: Flags | None = None
    high: Flags | None = None
    truncated: Flags | None = None


def objective(loss: Loss, lp: Tokens, scored: Scored) -> Objective:
    """The objective that a loss record names; for `CrossEntropy`, `lp` may be any weighted sum of log-probs per token."""
    match loss:
        case CrossEntropy():
            return cross_entropy(lp, scored.weights)
        case DRO(beta=beta):
            return dro(lp, scored, beta=beta)
        case TruncatedImportanceSampling(cap=cap, level=level):
            return truncated_importance_sampling(lp, scored, cap=cap, level=level)
        case Truncated() | DecoupledPPO():
            return around_proximal(lp, scored, loss)
        case Regularized():
            return regularized(lp, scored, loss)
        case Custom():
            raise AssertionError("a custom loss is a function of the whole call's log-probs: see `custom`")
        case _:
            return policy_objective(loss, lp, scored)


def with_slopes(compute: Callable[[Tokens], Objective], values: Tokens) -> tuple[Objective, Tokens]:
    """An objective of these values, and d loss / d values by autograd through it."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_(True)
        result = compute(leaf)
        (slopes,) = torch.autograd.grad(result.loss, leaf)
    return result, slopes


def policy_objective(loss: PolicyLoss, lp: Tokens, scored: Scored) -> Objective:
    """The same, of a loss whose terms are proportional to A."""
    q, advantages = scored.q, scored.advantages
    match loss:
        case ImportanceSampling():
            return importance_sampling(lp, q, advantages)
        case PPO():
            return ppo(lp, q, advantages, scored.low, scored.high)
        case CISPO():
            return cispo(lp, q, advantages, scored.low, scored.high)
        case GSPO():
            return gspo(lp, scored)
        case DPPO(divergence=kind, threshold=threshold):
            return dppo(lp, q, advantages, divergence=kind, threshold=threshold)


def moves(loss: Loss, datum: Datum) -> bool:
    """Whether a datum can have a gradient; one without is scored with less work.

    The losses are proportional to weights (cross-entropy) or advantages; DRO pulls towards the sampler whatever the
    advantage, and so do regularizers towards theirs; of a custom loss, only its own slopes tell.
    """
    mask, soft = datum.mask, datum.soft_targets
    match loss:
        case CrossEntropy():
            return bool(np.any((datum.weights if soft is None else soft.weights)[mask]))
        case DRO() | Regularized():
            return bool(np.any(datum.weights[mask]) or np.any(datum.advantages[mask]))
        case Custom():
            return True
        case _:
            return bool(np.any(datum.advantages[mask]))


def cross_entropy(lp: Tokens, weights: Tokens) -> Objective:
    """-sum w * lp."""
    _assert_rank(lp, weights)
    return Objective(loss=-(weights * lp).sum())


def importance_sampling(lp: Tokens, q: Tokens, advantages: Tokens) -> Objective:
    """-sum r * A: its gradient is that of the policy that sampled, corrected by the ratio; nothing is clipped."""
    _assert_rank(lp, q, advantages)
    return Objective(loss=-(torch.exp(lp - q) * advantages).sum())


def ppo(lp: Tokens, q: Tokens, advantages: Tokens, low: Tokens, high: Tokens) -> Objective:
    """-sum min(r * A, clip(r, low, high) * A) (arXiv 1707.06347, eq. 7, with bounds on the ratio itself)."""
    _assert_rank(lp, q, advantages, low, high)
    return _clipped(torch.exp(lp - q), advantages, low, high)


def cispo(lp: Tokens, q: Tokens, advantages: Tokens, low: Tokens, high: Tokens) -> Objective:
    """-sum sg(clip(r, low, high)) * lp * A (arXiv 2506.13585)."""
    _assert_rank(lp, q, advantages, low, high)
    ratio = torch.exp(lp.detach() - q)
    weight = torch.clamp(ratio, low, high)
    return Objective(loss=-(weight * lp * advantages).sum(), low=ratio < low, high=ratio > high)


def dro(lp: Tokens, scored: Scored, *, beta: float) -> Objective:
    """-sum [lp * A - beta / 2 * w * (lp - q)^2] (arXiv 2405.19107)."""
    _assert_rank(lp, scored.q, scored.advantages, scored.weights)
    pull = beta / 2 * scored.weights * (lp - scored.q).square()
    return Objective(loss=-(lp * scored.advantages - pull).sum())


def gspo(lp: Tokens, scored: Scored) -> Objective:
    """-sum min(s * A, clip(s, low, high) * A), s = exp(mean of lp - q over the sequence) (arXiv 2507.18071, GSPO-token)."""
    _assert_rank(lp, scored.q, scored.advantages, scored.low, scored.high)
    fixed = lp.detach()
    mean = _over_sequences(fixed - scored.q, scored.sequence, mean=True)
    return _clipped(torch.exp(mean + lp - fixed), scored.advantages, scored.low, scored.high)


def dppo(lp: Tokens, q: Tokens, advantages: Tokens, *, divergence: str, threshold: float) -> Objective:
    """-sum m * r * A, with m = 0 for tokens that are far from the sampler and move further (arXiv 2602.04879)."""
    _assert_rank(lp, q, advantages)
    fixed = lp.detach()
    far = binary_divergence(q, fixed, divergence) > threshold
    low, high = far & (advantages < 0) & (fixed < q), far & (advantages > 0) & (fixed > q)
    terms = torch.exp(lp - q) * advantages
    return Objective(loss=-torch.where(low | high, 0.0, terms).sum(), low=low, high=high)


def binary_divergence(q: Tokens, lp: Tokens, kind: str) -> Tokens:
    """Between "this token or another" under the sampler and under the trainer: total variation ("tv") or KL(q || lp) ("kl")."""
    _assert_rank(q, lp)
    if kind == "tv":
        return (torch.exp(q) - torch.exp(lp)).abs()
    tiny = torch.finfo(lp.dtype).tiny
    other_q, other_lp = (-torch.expm1(v) for v in (q, lp))  # 1 - e^v, exact also near v = 0
    others = other_q * (torch.log(other_q.clamp_min(tiny)) - torch.log(other_lp.clamp_min(tiny)))
    return torch.exp(q) * (q - lp) + others


def truncated_importance_sampling(lp: Tokens, scored: Scored, *, cap: float, level: Level) -> Objective:
    """-sum sg(min(rho, cap)) * lp * A, rho the ratio of the token or of its whole sequence (arXiv 1802.01561)."""
    _assert_rank(lp, scored.q, scored.advantages)
    rho = _importance(lp.detach(), scored, level)
    return Objective(loss=-(rho.clamp(max=cap) * lp * scored.advantages).sum(), truncated=rho > cap)


def around_proximal(lp: Tokens, scored: Scored, loss: Truncated | DecoupledPPO) -> Objective:
    """A policy loss with p for q, and A times sg(min(rho, cap)), rho = exp(p - q) of the token or of its whole sequence."""
    proximal = scored.proximal
    assert proximal is not None, "checked before the call was submitted"
    _assert_rank(lp, scored.q, scored.advantages, proximal)
    rho = _importance(proximal, scored, loss.level)
    around = replace(scored, q=proximal, advantages=scored.advantages * rho.clamp(max=loss.cap))
    if isinstance(loss, Truncated):
        result = policy_objective(loss.loss, lp, around)
    else:
        result = ppo(lp, proximal, around.advantages, scored.low, scored.high)
    return replace(result, truncated=rho > loss.cap)


def regularized(lp: Tokens, scored: Scored, loss: Regularized) -> Objective:
    """The loss inside + kl * sum w * k(lp - ref). The entropy's part has its gradient from the head: see `head.score`."""
    result = objective(loss.loss, lp, scored)
    if loss.kl == 0:
        return result
    assert scored.reference is not None, "checked before the call was submitted"
    _assert_rank(lp, scored.reference, scored.weights)
    distance = reference_distance(lp - scored.reference, loss.estimator)
    return replace(result, loss=result.loss + loss.kl * (scored.weights * distance).sum())


def reference_distance(difference: Tokens, estimator: str) -> Tokens:
    """k2 or k3 of d = lp - ref, token by token: d^2 / 2, exp(-d) - 1 + d (http://joschu.net/blog/kl-approx.html)."""
    return difference.square() / 2 if estimator == "k2" else torch.expm1(-difference) + difference


def clipped_value(value: Tokens, old: Tokens, returns: Tokens, weights: Tokens, *, clip: float) -> Objective:
    """sum w / 2 * max((v - R)^2, (v_old + clip(v - v_old, -clip, clip) - R)^2) (arXiv 2005.12729, section 3)."""
    _assert_rank(value, old, returns, weights)
    bounded = old + (value - old).clamp(-clip, clip)
    free, held = (value - returns).square(), (bounded - returns).square()
    moved = value.detach() - old
    return Objective(
        loss=(weights / 2 * torch.maximum(free, held)).sum(),
        low=(held > free) & (moved < -clip),
        high=(held > free) & (moved > clip),
    )


def _importance(lp: Tokens, scored: Scored, level: Level) -> Tokens:
    """exp(lp - q) of each token, or its product over each token's sequence."""
    difference = lp - scored.q
    return torch.exp(_over_sequences(difference, scored.sequence, mean=False) if level == "sequence" else difference)


def _over_sequences(values: Tokens, sequence: Int[Tensor, " N"], *, mean: bool) -> Tokens:
    """For each token, the sum or mean of its sequence's values."""
    count = int(sequence.max()) + 1 if len(sequence) else 0
    totals = values.new_zeros(count).index_add_(0, sequence, values)
    if mean:
        totals = totals / torch.bincount(sequence, minlength=count)
    return totals[sequence]


def _clipped(ratio: Tokens, advantages: Tokens, low: Tokens, high: Tokens) -> Objective:
    """-sum min(ratio * A, clip(ratio, low, high) * A)."""
    free, bounded = ratio * advantages, torch.clamp(ratio, low, high) * advantages
    held = bounded < free
    return Objective(
        loss=-torch.minimum(free, bounded).sum(), low=held & (ratio.detach() < low), high=held & (ratio.detach() > high)
    )


def _assert_rank(*values: Tensor) -> None:
    for value in values:
        assert value.ndim == 1 and value.shape == values[0].shape, [v.shape for v in values]
