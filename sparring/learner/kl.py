"""How far a policy may go from a reference: a penalty on its reward, or a pull in its loss. Letter: `A` action tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
from jaxtyping import Float32

from sparring.arrays import F32
from sparring.errors import SettingError

Estimator = Literal["k1", "k2", "k3"]
_RATE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class KL:
    """KL(policy || reference), estimated token by token from d = log-prob under the policy - under the reference: k1 is d, k2
    d^2 / 2, k3 exp(-d) - 1 + d (http://joschu.net/blog/kl-approx.html).

    coefficient  beta, above 0
    into         "loss": + beta * k2 or k3 of the trainer's log-probs, weighed as the loss is (arXiv 2402.03300, GRPO; see
                 `Regularized`). "reward": each token's reward is lowered by beta * k of the sampler's log-prob
                 (arXiv 1909.08593); estimators of whole trajectories see the sum, `RewardToGo`, `TurnMean` and `GAE` what
                 comes after each token
    estimator    None: "k3" in the loss, "k1" in the reward, where it is unbiased
    reference    None: what the policy began as; or another model with the same tokens, a folder or hub name
    target       nats per token: beta is adapted after each step, to beta (1 + rate clip(measured / target - 1, -0.2, 0.2)),
                 with the mean k3 over the step's tokens (arXiv 1909.08593, section 2.2, which measures whole sequences)
    """

    coefficient: float
    into: Literal["loss", "reward"] = "loss"
    estimator: Estimator | None = None
    reference: str | None = None
    target: float | None = None
    rate: float = _RATE

    def __post_init__(self) -> None:
        if self.into not in ("loss", "reward"):
            raise SettingError(f"KL(into={self.into!r}): must be 'loss' or 'reward'")
        for name in ("coefficient", "target", "rate"):
            value = getattr(self, name)
            if value is None and name == "target":
                continue
            if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value < inf):
                raise SettingError(f"KL({name}={value!r}): must be a finite number above 0")
        if self.target is None and self.rate != _RATE:
            raise SettingError(
                f"KL(rate={self.rate!r}) without a target: nothing is adapted; give a target, in nats per token"
            )
        if self.estimator not in (None, "k1", "k2", "k3"):
            raise SettingError(f"KL(estimator={self.estimator!r}): must be 'k1', 'k2', 'k3' or None")
        if self.into == "loss" and self.estimator == "k1":
            raise SettingError(
                "KL(estimator='k1') in the loss: its expected gradient is 0, so that it would pull nowhere; use 'k2' or 'k3', "
                "or into='reward'"
            )
        if self.reference is not None and not (isinstance(self.reference, str) and self.reference):
            raise SettingError(f"KL(reference={self.reference!r}): must be a folder or hub name, or None")

    @property
    def kind(self) -> Estimator:
        """The estimator, or what None stands for."""
        return self.estimator or ("k3" if self.into == "loss" else "k1")

    def penalties(self, beta: float, logprobs: Float32[F32, " A"], reference: Float32[F32, " A"]) -> Float32[F32, " A"]:
        """What is added to the reward of each token: -beta * k."""
        return (-beta * distance(logprobs, reference, self.kind)).astype(np.float32)

    def adapted(self, beta: float, measured: float) -> float:
        """The coefficient of the next step."""
        if self.target is None:
            return beta
        return beta * (1 + self.rate * min(0.2, max(-0.2, measured / self.target - 1)))


def distance(logprobs: Float32[F32, " A"], reference: Float32[F32, " A"], kind: Estimator) -> Float32[F32, " A"]:
    """The estimate of each token, computed in float64."""
    d = logprobs.astype(np.float64) - reference.astype(np.float64)
    match kind:
        case "k1":
            found = d
        case "k2":
            found = d * d / 2
        case "k3":
            found = np.expm1(-d) + d
    return found.astype(np.float32)
