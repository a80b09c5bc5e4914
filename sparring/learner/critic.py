"""A critic as settings: a model that learns to tell what is still to come, as a baseline for each token."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

from sparring.backend import Adam, ClippedValue, Lora
from sparring.errors import SettingError
from sparring.learner.by_token import GAE


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """What a critic is and how it learns: with each update of the policy, on the same tokens, weighed alike, towards the
    returns R_t = A_t + V_t, A by its own `returns` (arXiv 1506.02438; apart from the policy's, 2503.01491, VC-PPO).

    model          None: the policy's own
    learning_rate  of its own optimizer; `adam` holds the rest
    returns        how returns are made of rewards and values: with GAE(decay=1.0) of rewards alone
    loss           the squared error, clipped round the values that the step began with
    pretraining    so many steps of the run train the critic alone: the policy's versions in them have equal weights
    lora           its adapter
    """

    model: str | None = None
    learning_rate: float = 1e-4
    returns: GAE = GAE(decay=1.0)
    loss: ClippedValue = ClippedValue()
    pretraining: int = 0
    lora: Lora = field(default=Lora())
    adam: Adam = field(default=Adam())

    def __post_init__(self) -> None:
        if self.model is not None and not (isinstance(self.model, str) and self.model):
            raise SettingError(f"Critic(model={self.model!r}): must be a folder or hub name, or None")
        if isinstance(self.learning_rate, bool) or not (
            isinstance(self.learning_rate, int | float) and isfinite(self.learning_rate) and self.learning_rate > 0
        ):
            raise SettingError(f"Critic(learning_rate={self.learning_rate!r}): must be a finite number above 0")
        if not isinstance(self.pretraining, int) or isinstance(self.pretraining, bool) or self.pretraining < 0:
            raise SettingError(f"Critic(pretraining={self.pretraining!r}): must be a whole number of steps, at least 0")
        for name, kind in (("returns", GAE), ("loss", ClippedValue), ("lora", Lora), ("adam", Adam)):
            if not isinstance(getattr(self, name), kind):
                raise SettingError(
                    f"Critic({name}={getattr(self, name)!r}): must be a {kind.__name__}, as in {kind.__name__}()"
                )
        if self.adam.learning_rate not in (Adam().learning_rate, self.learning_rate):
            raise SettingError(
                f"Critic(adam.learning_rate={self.adam.learning_rate!r}): is not used; set the critic's learning_rate instead"
            )
