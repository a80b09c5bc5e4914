"""Algorithms: an advantage estimator, a loss, and what is compared with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from sparring.backend.losses import PPO, CrossEntropy, Loss, required_fields
from sparring.errors import SettingError
from sparring.learner.advantages import Advantages, GroupMean, RoleBaseline
from sparring.rollout.comparable import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualRewards:
    """A filter: units are dropped in which all rewards that are compared are equal, and others are played in their place
    (dynamic sampling, arXiv 2503.14476, DAPO). Such a unit has no gradient under a group mean.

    A set of one has nothing to differ from. At most `Run.max_refill` groups in a row are replaced. In a deterministic run
    a dropped unit leaves a hole: its step trains on fewer.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """How a policy learns.

    compare  {seat: "group" (default) or "episode"}: whether the seat's trajectories are compared over the group, or within
             each episode, where the forks of one label (and, among those without one, the seat itself) are the set
    filters  which finished units are dropped and played anew with other tasks, as in [EqualRewards()]
    """

    name: str
    advantages: Advantages
    loss: Loss
    compare: Mapping[str, Scope] = field(default_factory=dict[str, Scope])
    filters: Sequence[EqualRewards] = ()

    def __post_init__(self) -> None:
        if isinstance(self.advantages, type) or not isinstance(self.advantages, Advantages):
            raise SettingError(
                f"{self.name}(advantages={self.advantages!r}): no estimator; decorate the function with @advantages, "
                f"or give an object with name, minimum and a call (group, state) -> (advantages, state)"
            )
        if not isinstance(self.loss, Loss) or isinstance(self.loss, CrossEntropy):
            raise SettingError(
                f"{self.name}(loss={self.loss!r}): must be a loss that uses advantages, "
                f"as in PPO() or ImportanceSampling()"
            )
        if missing := required_fields(self.loss):
            raise SettingError(
                f"{self.name}(loss={self.loss!r}): reads {', '.join(missing)}, which a run does not compute; "
                f"TruncatedImportanceSampling() corrects for the sampler without"
            )
        if not isinstance(self.compare, Mapping):
            raise SettingError(
                f"{self.name}(compare={self.compare!r}): must be a mapping, as in {{'solver': 'episode'}}"
            )
        for seat, scope in self.compare.items():
            if scope not in get_args(Scope):
                raise SettingError(f"{self.name}(compare={{{seat!r}: {scope!r}}}): must be 'group' or 'episode'")
        if not isinstance(self.filters, list | tuple) or not all(isinstance(one, EqualRewards) for one in self.filters):
            raise SettingError(
                f"{self.name}(filters={self.filters!r}): must be a list of filters, as in [EqualRewards()]"
            )


def grpo(
    *,
    advantages: Advantages | None = None,
    deviation: bool = False,
    loss: Loss | None = None,
    compare: Mapping[str, Scope] | None = None,
    filters: Sequence[EqualRewards] = (),
) -> Algorithm:
    """Group-relative policy optimisation: each trajectory against the mean of its group, PPO's clipped ratio to the
    sampler.

    Differs from the paper (arXiv 2402.03300) by default: no division by the deviation (`deviation=True` brings it
    back), no KL to a reference, tokens of the whole step weigh equally. `advantages` takes the place of the group mean.
    """
    if advantages is not None and deviation:
        raise SettingError(
            f"grpo(advantages={advantages!r}, deviation=True): deviation belongs to the group mean; give one of both"
        )
    return Algorithm(
        name="grpo",
        advantages=GroupMean(deviation=deviation) if advantages is None else advantages,
        loss=PPO() if loss is None else loss,
        compare={} if compare is None else compare,
        filters=filters,
    )


def rae(*, decay: float = 0.95, loss: Loss | None = None) -> Algorithm:
    """Self-play with a running baseline for each role (arXiv 2506.24119); works with groups of one."""
    return Algorithm(name="rae", advantages=RoleBaseline(decay=decay), loss=PPO() if loss is None else loss)
