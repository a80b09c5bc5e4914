"""A verdict: a number, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from sparring.errors import RewardError, Unjudged


@dataclass(frozen=True, slots=True)
class Score:
    """Exactly one of `value` (finite) and `error` (not empty); `parts` are logged beside it.

    `float(score)` raises `Unjudged` where there is no value: an error never turns into a reward of zero by accident.
    """

    value: float | None = None
    error: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.value is None) == (not self.error):
            raise RewardError(f"Score(value={self.value!r}, error={self.error!r}): give exactly one of value and error")
        if self.value is not None and not isfinite(self.value):
            raise RewardError(f"Score(value={self.value!r}): must be finite; use error=... for an answer nobody could judge")

    def __float__(self) -> float:
        if self.value is None:
            raise Unjudged(f"this score has no value: {self.error}")
        return float(self.value)
