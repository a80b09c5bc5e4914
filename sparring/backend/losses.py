"""The losses a `TrainingClient` computes, as records. Each is a **sum** over scored tokens; whoever calls divides.

Notation, for each scored token: `lp` the trainer's log-prob, `q` the sampler's, `A` the advantage, `w` the weight,
`r = exp(lp - q)`; `p` the log-prob under the weights that a step began with (`Datum.proximal_logprobs`); `sg` stops gradients;
a sequence is a datum. Bounds are on the ratio itself (0.8, 1.2), not on its distance from 1. The formulas are computed in
`sparring.backend.local.objectives`. Vocabulary: Tinker API, losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import FunctionType
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from sparring.backend.datum import Datum
from sparring.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

Level = Literal["token", "sequence"]
CLIP_BOUNDS = frozenset({"clip_low", "clip_high"})
PROXIMAL = frozenset({"proximal_logprobs"})
REFERENCE = frozenset({"reference_logprobs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """-sum w * lp; for a datum with `soft_targets`, -sum over its K targets of each one's weight times its log-prob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceSampling:
    """-sum r * A (the off-policy policy gradient; unclipped, and per token, so blind to how the prefix came about)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """-sum min(r * A, clip(r, low, high) * A) (arXiv 1707.06347, eq. 7, with bounds on the ratio itself).

    `Datum.clip_low` and `Datum.clip_high` replace the bounds token by token.
    """

    clip_low_threshold: float = 0.8
    clip_high_threshold: float = 1.2

    def __post_init__(self) -> None:
        _check_bounds(self, self.clip_low_threshold, self.clip_high_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class CISPO:
    """-sum sg(clip(r, low, high)) * lp * A (arXiv 2506.13585): a clipped token keeps a gradient, of bounded weight.

    Differs from the paper: no division by the group's tokens (whoever calls divides). As there, only the upper bound acts by
    default. `Datum.clip_low` and `Datum.clip_high` replace the bounds token by token.
    """

    clip_low_threshold: float = 0.0
    clip_high_threshold: float = 4.0

    def __post_init__(self) -> None:
        _check_bounds(self, self.clip_low_threshold, self.clip_high_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class DRO:
    """-sum [lp * A - beta / 2 * w * (lp - q)^2]: the policy's part of direct reward optimisation (arXiv 2405.19107).

    Differs from the paper: per token, the advantage in place of reward minus a learned value, and the sampler in place of the
    reference. `w` is the datum's weight (1, or 1 over the divisor that the advantages have), so that dividing a batch keeps
    the balance of both terms. A token with A = 0 is still pulled back to the sampler.
    """

    beta: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.beta < inf:
            raise SettingError(f"DRO beta={self.beta!r}: a finite number above 0, as in beta=0.05")


@dataclass(frozen=True, slots=True, kw_only=True)
class GSPO:
    """-sum min(s * A, clip(s, low, high) * A), s = exp(mean over the datum's scored tokens of lp - q) (arXiv 2507.18071).

    The paper's token variant (GSPO-token): s has its sequence's value, and the gradient of each token's own log-prob. Where
    all tokens of a datum have one A, this is the paper's sequence loss times their number; A / number gives its mean.
    """

    clip_low_threshold: float = 1 - 3e-4
    clip_high_threshold: float = 1 + 4e-4

    def __post_init__(self) -> None:
        _check_bounds(self, self.clip_low_threshold, self.clip_high_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class DPPO:
    """-sum m * r * A, where m = 0 for tokens that move further away while they are far already (arXiv 2602.04879).

    Far: D > threshold, for D between the token and all others under sampler and trainer (the paper's binary forms):
    "tv" |e^q - e^lp|, "kl" e^q (q - lp) + (1 - e^q) log((1 - e^q) / (1 - e^lp)). Further away: A > 0 and r > 1, or A < 0 and
    r < 1. The mask carries no gradient. The paper's top-K forms are not here.
    """

    divergence: Literal["tv", "kl"] = "tv"
    threshold: float = 0.2

    def __post_init__(self) -> None:
        if self.divergence not in ("tv", "kl"):
            raise SettingError(f"DPPO divergence={self.divergence!r}: must be 'tv' or 'kl'")
        if not 0 < self.threshold < inf or (self.divergence == "tv" and self.threshold >= 1):
            most = "below 1, the largest total variation" if self.divergence == "tv" else "finite"
            raise SettingError(f"DPPO threshold={self.threshold!r}: above 0 and {most} (0.2 for 'tv', 0.05 for 'kl')")


PolicyLoss = ImportanceSampling | PPO | CISPO | GSPO | DPPO
"""Losses whose terms are proportional to A, so that weighting A weights them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedImportanceSampling:
    """-sum sg(min(rho, cap)) * lp * A, rho = r ("token") or the product of r over the datum's scored tokens ("sequence").

    Truncation bounds the variance and keeps every token's gradient (arXiv 1802.01561, section 4.1, for tokens). At token
    level it is `CISPO` without a lower bound.
    """

    cap: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        _check_cap(self, self.cap, self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """Any of the policy losses around p in place of q, each term times sg(min(rho, cap)), rho = exp(p - q) per token or its
    product over the datum's scored tokens: the correction for a sampler that is not the trainer
    (arXiv 2505.24298).

    Every datum must have `proximal_logprobs`, as `forward` gives them before the step's first update.
    """

    loss: PolicyLoss
    cap: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        if not isinstance(self.loss, PolicyLoss):
            raise SettingError(
                f"Truncated(loss={self.loss!r}): takes ImportanceSampling, PPO, CISPO, GSPO or DPPO, whose terms scale with A"
            )
        _check_cap(self, self.cap, self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoupledPPO:
    """-sum exp(p - q) * min(u * A, clip(u, low, high) * A), u = exp(lp - p) (arXiv 2110.00641, 2505.24298).

    `Truncated(loss=PPO(...))` with the weight uncapped, as in the papers, unless `cap` is given. Every datum must have
    `proximal_logprobs`; `Datum.clip_low` and `Datum.clip_high` replace the bounds token by token.
    """

    clip_low_threshold: float = 0.8
    clip_high_threshold: float = 1.2
    cap: float = inf
    level: Level = "token"

    def __post_init__(self) -> None:
        _check_bounds(self, self.clip_low_threshold, self.clip_high_threshold)
        _check_cap(self, self.cap, self.level)


AdvantageLoss = PolicyLoss | DRO | TruncatedImportanceSampling | Truncated | DecoupledPPO
"""Every loss of advantages that is a formula here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regularized:
    """The loss + kl * sum w * k(lp - ref) - entropy * sum w * H, ref the log-prob under a reference (arXiv 2402.03300, eq. 3).

    kl         coefficient of the pull to the reference, with k by `estimator` of d = lp - ref: "k2" d^2 / 2, whose gradient is
               that of KL(trainer || reference) where the sampler is the trainer (arXiv 2510.01555); "k3" exp(-d) - 1 + d, the
               paper's, whose gradient is that of the other direction (http://joschu.net/blog/kl-approx.html). "k1", d itself,
               is none: its expected gradient is 0
    entropy    coefficient of a bonus: H is the exact entropy, in nats, of the distribution that a token is scored with

    Nothing corrects the regularizers for the sampler. Where kl > 0, every datum must have `reference_logprobs`. `w` is the
    datum's weight (1, or 1 over the divisor that the advantages have).
    """

    loss: AdvantageLoss
    kl: float = 0.0
    estimator: Literal["k2", "k3"] = "k3"
    entropy: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.loss, AdvantageLoss):
            raise SettingError(f"Regularized(loss={self.loss!r}): takes a loss that uses advantages, as in PPO()")
        for name in ("kl", "entropy"):
            if not 0 <= getattr(self, name) < inf:
                raise SettingError(f"Regularized({name}={getattr(self, name)!r}): a finite number, at least 0")
        if self.kl == self.entropy == 0:
            raise SettingError(f"Regularized(loss={self.loss!r}): kl and entropy are 0; take the loss itself")
        if self.estimator not in ("k2", "k3"):
            raise SettingError(
                f"Regularized(estimator={self.estimator!r}): must be 'k2' or 'k3'; the expected gradient of 'k1' is 0"
            )


class LogprobFunction(Protocol):
    """What `Custom` calls: (data, logprobs) -> (loss, metrics).

    `logprobs[i]` is a torch f32[T_i] on the CPU, in the order of `data`: differentiable where the datum is scored and 0
    elsewhere. `loss` is a scalar tensor; `metrics` are sums under names of your own, so that calls add up. It runs on the
    engine's thread.
    """

    def __call__(self, data: Sequence[Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, float]]: ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Custom:
    """Any differentiable function of all the call's log-probs (Tinker API, `forward_backward_custom`).

    One forward pass where the call's data fit into one micro-batch, else two: log-probs first, then, through
    d loss / d logprob, the gradient; the results are equal. A function that couples data sees those of its own call only.
    """

    function: LogprobFunction

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise SettingError(
                f"Custom(function={self.function!r}): must be a function (data, logprobs) -> (loss, metrics)"
            )

    def __repr__(self) -> str:
        """By the function's name, or its object's class: the same text in every process."""
        named = self.function if isinstance(self.function, FunctionType) else type(self.function)
        return f"Custom(function={named.__module__}:{named.__qualname__})"


Loss = CrossEntropy | AdvantageLoss | Regularized | Custom
LOSSES: tuple[type, ...] = get_args(Loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedValue:
    """sum w / 2 * max((v - R)^2, (v_old + clip(v - v_old, -clip, clip) - R)^2), for a critic's value v and the return R.

    The value's counterpart of PPO's clipping (arXiv 2005.12729, section 3), with the factor 1/2.
    """

    clip: float = 0.2

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise SettingError(f"ClippedValue clip={self.clip!r}: above 0 (0.2); inf does not clip")


def read_fields(loss: Loss) -> frozenset[str]:
    """The optional fields of a `Datum` that a loss reads."""
    match loss:
        case CrossEntropy():
            return frozenset({"soft_targets"})
        case PPO() | CISPO():
            return CLIP_BOUNDS
        case DecoupledPPO():
            return CLIP_BOUNDS | PROXIMAL
        case Truncated(loss=inner):
            return read_fields(inner) | PROXIMAL
        case Regularized(loss=inner, kl=kl):
            return read_fields(inner) | (REFERENCE if kl > 0 else frozenset())
        case Custom():
            return CLIP_BOUNDS | PROXIMAL | REFERENCE
        case _:
            return frozenset()


def required_fields(loss: Loss) -> frozenset[str]:
    """Those of them that every datum must have."""
    if isinstance(loss, Regularized):
        return required_fields(loss.loss) | (REFERENCE if loss.kl > 0 else frozenset())
    return PROXIMAL if isinstance(loss, Truncated | DecoupledPPO) else frozenset()


def clip_thresholds(loss: Loss) -> tuple[float, float]:
    """The bounds that hold for tokens without bounds of their own."""
    match loss:
        case PPO() | CISPO() | GSPO() | DecoupledPPO():
            return loss.clip_low_threshold, loss.clip_high_threshold
        case Truncated(loss=inner) | Regularized(loss=inner):
            return clip_thresholds(inner)
        case _:
            return 0.0, inf


def _check_bounds(loss: object, low: float, high: float) -> None:
    if not 0 <= low <= 1 <= high:
        raise SettingError(
            f"{type(loss).__name__} bounds {(low, high)!r}: they bound the ratio itself, so 0 <= low <= 1 <= high (0.8, 1.2)"
        )


def _check_cap(loss: object, cap: float, level: str) -> None:
    if not cap >= 1:
        raise SettingError(
            f"{type(loss).__name__} cap={cap!r}: at least 1, the weight where nothing is corrected (2.0)"
        )
    if level not in ("token", "sequence"):
        raise SettingError(f"{type(loss).__name__} level={level!r}: must be 'token' or 'sequence'")
