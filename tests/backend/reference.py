"""The losses written a second time: straight from the papers, one token after the other, in float64, with autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.backend.datum import Datum, SoftTargets
from sparring.backend.losses import (
    CISPO,
    DPPO,
    DRO,
    GSPO,
    PPO,
    CrossEntropy,
    DecoupledPPO,
    ImportanceSampling,
    Loss,
    PolicyLoss,
    Regularized,
    Truncated,
    TruncatedImportanceSampling,
    read_fields,
)

TOKEN_LOSSES: list[Loss] = [
    ImportanceSampling(),
    PPO(),
    PPO(clip_low_threshold=0.5, clip_high_threshold=1.05),
    CISPO(),
    CISPO(clip_low_threshold=0.7, clip_high_threshold=1.3),
    DRO(beta=0.3),
    DPPO(threshold=0.05),
    DPPO(divergence="kl", threshold=0.02),
    TruncatedImportanceSampling(cap=1.3),
    Truncated(loss=PPO(), cap=1.5),
    Truncated(loss=CISPO(), cap=1.5),
    Truncated(loss=ImportanceSampling(), cap=math.inf),
    DecoupledPPO(),
    DecoupledPPO(cap=1.2),
]
REGULARIZED: list[Loss] = [
    Regularized(loss=PPO(), kl=0.3),
    Regularized(loss=CISPO(), kl=0.3, estimator="k2"),
    Regularized(loss=DecoupledPPO(cap=1.5, level="sequence"), kl=0.1),
]
SEQUENCE_LOSSES: list[Loss] = [
    GSPO(),
    GSPO(clip_low_threshold=0.8, clip_high_threshold=1.1),
    TruncatedImportanceSampling(cap=1.3, level="sequence"),
    Truncated(loss=GSPO(), cap=2.0, level="sequence"),
    Truncated(loss=DPPO(), cap=1.5, level="sequence"),
    DecoupledPPO(cap=1.5, level="sequence"),
]
POLICY_LOSSES = TOKEN_LOSSES + SEQUENCE_LOSSES
ALL_LOSSES: list[Loss] = [CrossEntropy(), *POLICY_LOSSES, *REGULARIZED]
WITH_ENTROPY: list[Loss] = [
    Regularized(loss=PPO(), entropy=0.3),
    Regularized(loss=GSPO(), kl=0.2, estimator="k2", entropy=0.1),
]
"""What log-probs alone do not tell: for whole models."""


def at_sampler(data: Sequence[Datum], logprobs: Sequence[np.ndarray], spread: float, seed: int = 0) -> list[Datum]:
    """The same data, sampled near where the trainer is: its log-probs and some noise, of which a mean per datum is part."""
    random, made = np.random.default_rng(seed), []
    for datum, lp in zip(data, logprobs, strict=True):
        q = np.minimum(lp + spread * (random.normal() + random.normal(size=len(lp))), -1e-6)
        made.append(replace(datum, logprobs=np.where(datum.mask, q, 0).astype("f4")))
    return made


def with_fields(data: Sequence[Datum], loss: Loss, seed: int = 0) -> list[Datum]:
    """The optional fields that the loss reads: proximal log-probs near the sampler's; bounds and soft targets for some data."""
    random, read = np.random.default_rng(seed), read_fields(loss)
    return [_with_fields(datum, index, read, random) for index, datum in enumerate(data)]


def _with_fields(datum: Datum, index: int, read: frozenset[str], random: np.random.Generator) -> Datum:
    length = len(datum.tokens)
    found: dict[str, Any] = {}
    if "proximal_logprobs" in read:
        found["proximal_logprobs"] = (datum.logprobs + random.normal(0, 0.3, length)).astype("f4")
    if "reference_logprobs" in read:
        found["reference_logprobs"] = (datum.logprobs + random.normal(0, 0.3, length)).astype("f4")
    if "clip_low" in read and index % 2:
        found["clip_low"] = random.uniform(0.5, 1, length).astype("f4")
    if "clip_high" in read and index % 3:
        found["clip_high"] = random.uniform(1, 1.5, length).astype("f4")
    if "soft_targets" in read and index % 2:
        shape = (length, 2 + index % 3)
        tokens, weights = random.integers(3, 320, shape).astype(np.int32), random.uniform(0, 1, shape).astype("f4")
        found["soft_targets"] = SoftTargets(tokens=tokens, weights=weights)
    return replace(datum, **found)


def reference(loss: Loss, datum: Datum, lp: Tensor, soft: Tensor | None = None) -> Tensor:
    """One datum's loss from log-probs f64[T] and, for soft targets, f64[T, K]."""
    places = np.flatnonzero(datum.mask).tolist()
    if isinstance(loss, Regularized):
        total = reference(loss.loss, datum, lp, soft)
        for t in places if loss.kl else []:
            assert datum.reference_logprobs is not None
            d = lp[t] - float(datum.reference_logprobs[t])
            distance = d.square() / 2 if loss.estimator == "k2" else torch.exp(-d) - 1 + d
            total = total + loss.kl * float(datum.weights[t]) * distance
        return total
    total = torch.zeros((), dtype=torch.float64)
    for t in places:
        advantage, weight, q = float(datum.advantages[t]), float(datum.weights[t]), float(datum.logprobs[t])
        match loss:
            case CrossEntropy():
                if datum.soft_targets is None:
                    total = total - weight * lp[t]
                else:
                    assert soft is not None
                    for k, share in enumerate(datum.soft_targets.weights[t].tolist()):
                        total = total - share * soft[t, k]
            case DRO(beta=beta):
                total = total - (lp[t] * advantage - beta / 2 * weight * (lp[t] - q) ** 2)
            case TruncatedImportanceSampling(cap=cap, level=level):
                over = places if level == "sequence" else [t]
                rho = math.exp(sum(lp[s].item() - float(datum.logprobs[s]) for s in over))
                total = total - min(rho, cap) * lp[t] * advantage
            case Truncated() | DecoupledPPO():
                total = total + _decoupled(loss, datum, lp, t, places)
            case _:
                assert not callable(loss)
                total = total - _policy_term(loss, datum, lp, datum.logprobs, t, places) * advantage  # type: ignore[arg-type]
    return total


def _decoupled(loss: Truncated | DecoupledPPO, datum: Datum, lp: Tensor, t: int, places: list[int]) -> Tensor:
    p = datum.proximal_logprobs
    assert p is not None
    rho = 1.0
    for s in places if loss.level == "sequence" else [t]:
        rho *= math.exp(float(p[s]) - float(datum.logprobs[s]))
    if isinstance(loss, Truncated):
        inner: PolicyLoss = loss.loss
    else:
        inner = PPO(clip_low_threshold=loss.clip_low_threshold, clip_high_threshold=loss.clip_high_threshold)
    return -min(rho, loss.cap) * _policy_term(inner, datum, lp, p, t, places) * float(datum.advantages[t])


def _policy_term(loss: PolicyLoss, datum: Datum, lp: Tensor, old: np.ndarray, t: int, places: list[int]) -> Tensor:
    """What multiplies the advantage of token t, which decides whether clipping or masking applies."""
    advantage, q = float(datum.advantages[t]), float(old[t])
    ratio = torch.exp(lp[t] - q)
    match loss:
        case ImportanceSampling():
            return ratio
        case PPO():
            return _min_of_clip(ratio, advantage, *_bounds(loss, datum, t))
        case CISPO():
            low, high = _bounds(loss, datum, t)
            return min(max(ratio.item(), low), high) * lp[t]
        case GSPO():
            mean = sum(lp[s].item() - float(old[s]) for s in places) / len(places)
            sequence = math.exp(mean) * torch.exp(lp[t]) / torch.exp(lp[t]).detach()
            return _min_of_clip(sequence, advantage, *_bounds(loss, datum, t))
        case DPPO(divergence=kind, threshold=threshold):
            mu, pi = math.exp(q), math.exp(lp[t].item())
            kl = mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi)) if pi < 1 and mu < 1 else 0.0
            far = (abs(mu - pi) if kind == "tv" else kl) > threshold
            away = (advantage > 0 and pi > mu) or (advantage < 0 and pi < mu)
            return ratio * (0.0 if far and away else 1.0)


def _bounds(loss: PPO | CISPO | GSPO, datum: Datum, t: int) -> tuple[float, float]:
    """In fp32, as data carry them."""
    low, high = np.float32(loss.clip_low_threshold), np.float32(loss.clip_high_threshold)
    if not isinstance(loss, GSPO):
        low = low if datum.clip_low is None else datum.clip_low[t]
        high = high if datum.clip_high is None else datum.clip_high[t]
    return float(low), float(high)


def _min_of_clip(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """min(ratio * A, clip(ratio) * A) / A, case by case."""
    if advantage >= 0:
        return ratio if ratio.item() <= high else torch.tensor(high, dtype=torch.float64)
    return ratio if ratio.item() >= low else torch.tensor(low, dtype=torch.float64)
