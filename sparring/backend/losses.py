"""The losses a `TrainingClient` computes, as records. Each is a **sum** over scored tokens; whoever calls divides.

Notation: `lp` the trainer's log-prob, `q` the sampler's, `A` the advantage, `r = exp(lp - q)`. The formulas are computed in
`sparring.backend.local.objectives`. Source: Tinker API, losses.
"""

from dataclasses import dataclass

from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """-sum w * lp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceSampling:
    """-sum r * A (the off-policy policy gradient; unbiased, unclipped)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """-sum min(r * A, clip(r, low, high) * A), with bounds on the ratio itself (arXiv 1707.06347)."""

    clip_low_threshold: float = 0.8
    clip_high_threshold: float = 1.2

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low_threshold <= 1 <= self.clip_high_threshold:
            bounds = (self.clip_low_threshold, self.clip_high_threshold)
            raise SettingError(f"PPO bounds {bounds!r}: they bound the ratio itself, so low <= 1 <= high (0.8, 1.2)")


Loss = CrossEntropy | ImportanceSampling | PPO
