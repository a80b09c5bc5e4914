"""What the losses of `sparring.backend.losses` compute, as pure functions of the log-probs of `N` scored tokens.

Each term belongs to one token, so that a sum may be split over micro-batches and calls at any place. Letters as there:
`lp` the trainer's log-prob, `q` the sampler's, `A` the advantage, `r = exp(lp - q)`. Every metric is a sum or a count over the
scored tokens of the call, so that calls are added up by adding; `sparring.backend.totals` turns totals into rates.

tokens               N
loss                 the loss itself
nll_sum              sum of -lp: a one-sample estimate of the entropy (of the cross-entropy, for data not sampled here)
ratio_sum            sum of r, and
ratio_squared_sum    sum of r^2: the effective sample size is ratio_sum^2 / ratio_squared_sum
kl_k1_sum            sum of q - lp, and
kl_k3_sum            sum of (r - 1) - log r: two estimates of KL(sampler || trainer) (http://joschu.net/blog/kl-approx.html)
clipped              how many tokens have no gradient because their ratio is clipped (PPO)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparring.backend.datum import Datum
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling, Loss

Tokens = Float[Tensor, " N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a loss needs of N scored tokens besides the trainer's log-probs: f32[N] each."""

    q: Tokens
    advantages: Tokens
    weights: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss, summed over tokens (a scalar that gradients flow through), and the sums of this module's docstring."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]]


def objective(loss: Loss, lp: Tokens, scored: Scored) -> Objective:
    """The objective that a loss record names."""
    match loss:
        case CrossEntropy():
            return cross_entropy(lp, scored.weights)
        case ImportanceSampling():
            return importance_sampling(lp, scored.q, scored.advantages)
        case PPO(clip_low_threshold=low, clip_high_threshold=high):
            return ppo(lp, scored.q, scored.advantages, low=low, high=high)


def moves(loss: Loss, datum: Datum) -> bool:
    """Whether a datum can have a gradient: every loss here is proportional to its weights or its advantages."""
    slopes = datum.weights if isinstance(loss, CrossEntropy) else datum.advantages
    return bool(np.any(slopes[datum.mask]))


def cross_entropy(lp: Tokens, weights: Tokens) -> Objective:
    """-sum w * lp."""
    _assert_rank(lp, weights)
    loss = -(weights * lp).sum()
    return Objective(loss=loss, metrics={"loss": loss.detach(), **_counts(lp)})


def importance_sampling(lp: Tokens, q: Tokens, advantages: Tokens) -> Objective:
    """-sum r * A: its gradient is that of the policy that sampled, corrected by the ratio; nothing is clipped."""
    _assert_rank(lp, q, advantages)
    ratio = torch.exp(lp - q)
    loss = -(ratio * advantages).sum()
    return Objective(loss=loss, metrics={"loss": loss.detach(), **_counts(lp), **_distances(lp, q)})


def ppo(lp: Tokens, q: Tokens, advantages: Tokens, *, low: float, high: float) -> Objective:
    """-sum min(r * A, clip(r, low, high) * A) (arXiv 1707.06347, eq. 7, with bounds on the ratio itself)."""
    _assert_rank(lp, q, advantages)
    ratio = torch.exp(lp - q)
    free, bounded = ratio * advantages, ratio.clamp(low, high) * advantages
    loss = -torch.minimum(free, bounded).sum()
    clipped = (bounded < free).sum().to(lp.dtype)
    return Objective(loss=loss, metrics={"loss": loss.detach(), **_counts(lp), **_distances(lp, q), "clipped": clipped})


def _counts(lp: Tokens) -> dict[str, Tensor]:
    fixed = lp.detach()
    return {"tokens": torch.tensor(float(fixed.numel()), dtype=torch.float64), "nll_sum": -fixed.sum()}


def _distances(lp: Tokens, q: Tokens) -> dict[str, Tensor]:
    difference = lp.detach() - q
    ratio = torch.exp(difference)
    return {
        "ratio_sum": ratio.sum(),
        "ratio_squared_sum": ratio.square().sum(),
        "kl_k1_sum": -difference.sum(),
        "kl_k3_sum": (torch.expm1(difference) - difference).sum(),
    }


def _assert_rank(*values: Tensor) -> None:
    for value in values:
        assert value.ndim == 1 and value.shape == values[0].shape, [v.shape for v in values]
