"""How a learning rate changes over a run."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

LearningRateSchedule = Literal["constant", "linear", "cosine"]


def rate_factor(schedule: LearningRateSchedule, done: float) -> float:
    """What the learning rate is multiplied with when a share of all steps is done."""
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}[schedule]
