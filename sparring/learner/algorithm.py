"""Algorithms: an advantage estimator, a loss, and what is compared with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparring.backend.losses import PPO, Loss
from sparring.errors import SettingError
from sparring.learner.advantages import Advantages, GroupMean, RoleBaseline

Scope = Literal["group", "episode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """`compare` says, for each seat, whether its trajectories are compared over the group (default) or within each episode."""

    name: str
    advantages: Advantages
    loss: Loss
    compare: Mapping[str, Scope] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for seat, scope in self.compare.items():
            if scope not in ("group", "episode"):
                raise SettingError(f"compare={{{seat!r}: {scope!r}}}: must be 'group' or 'episode'")


def grpo(
    *,
    advantages: Advantages | None = None,
    deviation: bool = False,
    loss: Loss | None = None,
    compare: Mapping[str, Scope] | None = None,
) -> Algorithm:
    """Group-relative policy optimisation: each trajectory against the mean of its group, PPO's clipped ratio to the sampler.

    Differs from the paper (arXiv 2402.03300) by default: no division by the deviation (`deviation=True` brings it
    back), no KL to a reference, tokens of the whole step weigh equally.
    """
    estimator = advantages if advantages is not None else GroupMean(deviation=deviation)
    return Algorithm(name="grpo", advantages=estimator, loss=loss or PPO(), compare=compare or {})


def rae(*, decay: float = 0.95, loss: Loss | None = None) -> Algorithm:
    """Self-play with a running baseline for each role (arXiv 2506.24119); works with groups of one."""
    return Algorithm(name="rae", advantages=RoleBaseline(decay=decay), loss=loss or PPO())
