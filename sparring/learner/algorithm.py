"""An algorithm as a record of its parts: advantages, loss, what divides, what is compared with what. `presets` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal, get_args

from sparring.backend.losses import AdvantageLoss, CrossEntropy, Loss, Regularized
from sparring.backend.teacher import Teacher
from sparring.errors import SettingError
from sparring.learner.advantages import Advantages, GroupMean, LeaveOneOut, RoleBaseline
from sparring.learner.by_token import GAE, Penalty, RewardToGo, TurnMean
from sparring.learner.credit import Credit
from sparring.learner.critic import Critic
from sparring.learner.kl import KL
from sparring.learner.normalization import Normalization, TokenMean
from sparring.learner.overlong import Overlong
from sparring.rollout.comparable import Scope

BLIND = (GroupMean, LeaveOneOut, RoleBaseline, RewardToGo, TurnMean, Penalty)
"""Estimators that read no values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualRewards:
    """A filter: units are dropped in which all rewards that are compared are equal, and others are played in their place
    (dynamic sampling, arXiv 2503.14476, DAPO). Such a unit has no gradient under a group mean.

    A set of one has nothing to differ from. At most `Run.max_refill` groups in a row are replaced. In a deterministic run
    a dropped unit leaves a hole: its step trains on fewer.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """How a policy learns: pure parts, each of which can be replaced alone, as in `replace(dapo(), filters=())`.

    advantages     the estimator
    loss           reads them; one that reads `proximal_logprobs` gets those of the weights that the step began with, for one
                   more forward pass
    normalization  how tokens are weighed against each other: TokenMean(), SequenceMean() or Constant()
    compare        {seat: "group" (default) or "episode"}: whether the seat's trajectories are compared over the group, or
                   within each episode, where the forks of one label (and, among those without one, the seat itself) are the set
    filters        which finished units are dropped and played anew with other tasks, as in [EqualRewards()]
    whiten         bring the advantages of each environment, seat and label to mean 0 and deviation 1 over the step's action
                   tokens, after the estimator (arXiv 2501.03262, REINFORCE++). Seats are never mixed: what one earns by its
                   place in the game is no advantage over another
    overlong       Overlong() lowers the reward of long replies before rewards are compared; filters see them as they were
    minibatches    optimizer steps that a step's units are divided among, in the order of the plan
    kl             KL(...) holds the policy near a reference, by its reward or by its loss
    entropy        coefficient of a bonus for the exact entropy, nats per token, weighed as the loss is (arXiv 1602.01783)
    critic         Critic(...) learns values, for GAE()
    teacher        a `Teacher` is the reference of `kl`: a model behind any sampling client, where KL(reference=...) names one
                   of the run's own backend
    """

    name: str
    advantages: Advantages
    loss: Loss
    normalization: Normalization = TokenMean()
    compare: Mapping[str, Scope] = field(default_factory=dict[str, Scope])
    filters: Sequence[EqualRewards] = ()
    whiten: bool = False
    overlong: Overlong | None = None
    minibatches: int = 1
    kl: KL | None = None
    entropy: float = 0.0
    critic: Critic | None = None
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if isinstance(self.advantages, type) or not isinstance(self.advantages, Advantages):
            raise SettingError(
                f"{self.name}(advantages={self.advantages!r}): no estimator; decorate the function with @advantages, "
                f"or give an object with name, minimum and a call (group, state) -> (advantages, state)"
            )
        if not isinstance(self.loss, Loss) or isinstance(self.loss, CrossEntropy | Regularized):
            raise SettingError(
                f"{self.name}(loss={self.loss!r}): must be a loss that uses advantages, "
                f"as in PPO() or ImportanceSampling()"
            )
        self._check_parts()
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

    def _check_parts(self) -> None:
        if not isinstance(self.normalization, Normalization):
            raise SettingError(
                f"{self.name}(normalization={self.normalization!r}): must be TokenMean(), SequenceMean() or Constant()"
            )
        if not isinstance(self.whiten, bool):
            raise SettingError(f"{self.name}(whiten={self.whiten!r}): must be True or False")
        if not isinstance(self.overlong, Overlong | None):
            raise SettingError(f"{self.name}(overlong={self.overlong!r}): must be None or Overlong()")
        if not isinstance(self.minibatches, int) or isinstance(self.minibatches, bool) or self.minibatches < 1:
            raise SettingError(f"{self.name}(minibatches={self.minibatches!r}): must be a whole number, at least 1")
        if not isinstance(self.kl, KL | None):
            raise SettingError(f"{self.name}(kl={self.kl!r}): must be None or KL(coefficient=...)")
        if isinstance(self.entropy, bool) or not (
            isinstance(self.entropy, int | float) and isfinite(self.entropy) and self.entropy >= 0
        ):
            raise SettingError(f"{self.name}(entropy={self.entropy!r}): must be a finite number, at least 0")
        self.objective(1.0 if self.kl is None else self.kl.coefficient)
        self._check_teacher()
        self._check_critic()

    def _check_teacher(self) -> None:
        if isinstance(self.advantages, Penalty) and (self.kl is None or self.kl.into != "reward"):
            raise SettingError(
                f"{self.name}(advantages={self.advantages!r}): reads how far each token is from a teacher, and there is none; "
                f"use distillation(teacher), or kl=KL(coefficient=1.0, into='reward', reference=...)"
            )
        for name in ("overlong", "filters", "whiten"):
            if isinstance(self.advantages, Penalty) and getattr(self, name):
                raise SettingError(
                    f"{self.name}({name}={getattr(self, name)!r}): rewards are not learned from where {self.advantages!r} "
                    f"gives the advantages, and its own scale is the distance to the teacher; leave out {name}"
                )
        if self.teacher is None:
            return
        if isinstance(self.teacher, type) or not isinstance(self.teacher, Teacher):
            raise SettingError(
                f"{self.name}(teacher={self.teacher!r}): must have a model's name and opened(), which gives a sampling client; "
                f"a model of the run's own backend is KL(reference='its name')"
            )
        if self.kl is None or self.kl.reference is not None:
            raise SettingError(
                f"{self.name}(teacher={self.teacher!r}, kl={self.kl!r}): it is the reference of a KL that names none; give "
                f"a teacher and KL(coefficient=..., reference=None)"
            )

    def _check_critic(self) -> None:
        if not isinstance(self.critic, Critic | None):
            raise SettingError(f"{self.name}(critic={self.critic!r}): must be None or Critic()")
        if isinstance(self.advantages, GAE) and self.critic is None:
            raise SettingError(
                f"{self.name}(advantages={self.advantages!r}): reads a critic's values, and there is none; use ppo(), or "
                f"critic=Critic()"
            )
        if self.critic is not None and isinstance(self.advantages, BLIND):
            raise SettingError(
                f"{self.name}(critic={self.critic!r}): {self.advantages.name} does not read its values; use GAE() for the "
                f"advantages, or leave out the critic"
            )

    @property
    def refers_to_itself(self) -> bool:
        """Whether its reference is what the policy began as."""
        return self.kl is not None and self.kl.reference is None and self.teacher is None

    @property
    def credit(self) -> Credit:
        """What of it decides the advantages."""
        return Credit(
            advantages=self.advantages,
            compare=self.compare,
            whiten=self.whiten,
            overlong=self.overlong,
            kl=self.kl,
            returns=None if self.critic is None else self.critic.returns,
        )

    def objective(self, beta: float) -> Loss:
        """The loss of a step, with what pulls it to a reference (by `beta`) and the bonus for entropy."""
        pull = beta if self.kl is not None and self.kl.into == "loss" else 0.0
        if pull == 0 and self.entropy == 0:
            return self.loss
        if not isinstance(self.loss, AdvantageLoss):
            raise SettingError(
                f"{self.name}(loss={self.loss!r}): kl in the loss and entropy are added to a loss of sparring's own; put them "
                f"into your function, or use KL(into='reward')"
            )
        kind: Literal["k2", "k3"] = "k2" if self.kl is not None and self.kl.kind == "k2" else "k3"
        return Regularized(loss=self.loss, kl=pull, estimator=kind, entropy=self.entropy)

    def resolved(self, max_tokens: int) -> Algorithm:
        """With what its parts leave to the policy's `max_tokens`. Raises `SettingError` for a part that does not fit it."""
        return replace(
            self,
            normalization=self.normalization.resolved(max_tokens),
            overlong=None if self.overlong is None else self.overlong.resolved(max_tokens),
        )
