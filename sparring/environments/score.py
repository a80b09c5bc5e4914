"""A verdict: a number, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import SupportsFloat

from sparring.errors import RewardError, Unjudged


def finite(what: str, value: object, remedy: str) -> float:
    """`value` as a finite float; raises `RewardError` naming it otherwise, and `Unjudged` for a `Score` without a value."""
    try:
        number = float(value) if isinstance(value, float | Score | SupportsFloat) else None
    except (TypeError, ValueError, OverflowError):  # an array, a tensor of several elements, an integer beyond floats
        number = None
    if number is None:
        raise RewardError(f"{what} is {value!r}: must be a number; {remedy}")
    if not isfinite(number):
        raise RewardError(f"{what} is {number!r}: must be finite; {remedy}")
    return number


@dataclass(frozen=True, slots=True)
class Score:
    """Exactly one of `value` (finite) and `error` (not empty); `parts` are logged beside it.

    `float(score)` raises `Unjudged` where there is no value: an error never turns into a reward of zero by accident. A score is
    neither true nor false: `if score:` raises, as it would hold for a score of zero too.
    """

    value: float | None = None
    error: str = ""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        if (self.value is None) == (not self.error):
            raise RewardError(f"Score(value={self.value!r}, error={self.error!r}): give exactly one of value and error")
        if self.value is not None:
            finite("a Score's value", self.value, "use error=... for an answer nobody could judge")
        for name, part in self.parts.items():
            finite(f"a Score's part {name!r}", part, "leave it out where there is none")

    def __float__(self) -> float:
        if self.value is None:
            raise Unjudged(f"this score has no value: {self.error}")
        return float(self.value)

    def __bool__(self) -> bool:
        raise RewardError(f"{self!r} was used as a condition: compare its number, as in float(score) > 0")
