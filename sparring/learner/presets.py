"""Algorithms by name: each preset is a function that returns the frozen record of its parts, and its docstring the formula, its
source, and what differs from it.

Notation: r_i the return of trajectory i among the N of a comparable set, A its advantages, q the sampler's log-prob of a token,
lp the trainer's. What several of them have in common:

compare     what is compared with what; see `Algorithm`
correction  `Correction(...)` puts the loss round the weights that the step began with, and weighs its terms by how much
            likelier these make what was sampled than the sampler did
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sparring.backend.losses import (
    CISPO,
    DPPO,
    GSPO,
    PPO,
    DecoupledPPO,
    ImportanceSampling,
    Level,
    Loss,
    PolicyLoss,
    Truncated,
)
from sparring.backend.teacher import Teacher
from sparring.errors import SettingError
from sparring.learner.advantages import Advantages, GroupMean, LeaveOneOut, RoleBaseline
from sparring.learner.algorithm import Algorithm, EqualRewards
from sparring.learner.by_token import GAE, Penalty, RewardToGo
from sparring.learner.critic import Critic
from sparring.learner.kl import KL
from sparring.learner.normalization import Constant, Normalization, SequenceMean, TokenMean
from sparring.learner.overlong import Overlong
from sparring.rollout.comparable import Scope

Compare = Mapping[str, Scope]
_TOKEN_MEAN, _OVERLONG = TokenMean(), Overlong()


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """For a sampler that is not the trainer: each term of the loss times sg(min(rho, cap)), rho = exp(p - q) of the token, or
    its product over the tokens of the context ("sequence"), p the log-prob under the weights that the step began with.

    The loss's own ratio and bounds are then those to p (`Truncated`, arXiv 2505.24298): with one optimizer step each step,
    lp is p and no bound is met, so that the cap alone holds; with several `minibatches` both do.
    """

    cap: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        Truncated(loss=PPO(), cap=self.cap, level=self.level)

    def of(self, loss: Loss, name: str) -> Loss:
        """The loss with this correction. Raises `SettingError` for one that has its own, or cannot be corrected."""
        if isinstance(loss, DecoupledPPO):
            return replace(loss, cap=self.cap, level=self.level)
        if not isinstance(loss, PolicyLoss):
            raise SettingError(
                f"{name}(loss={loss!r}, correction={self!r}): this loss has a correction of its own, or its terms do not scale "
                f"with the advantages; leave the correction out, or take ImportanceSampling, PPO, CISPO, GSPO or DPPO"
            )
        return Truncated(loss=loss, cap=self.cap, level=self.level)


def grpo(
    *,
    advantages: Advantages | None = None,
    deviation: bool = False,
    loss: Loss | None = None,
    compare: Compare | None = None,
    filters: Sequence[EqualRewards] = (),
    normalization: Normalization = _TOKEN_MEAN,
    correction: Correction | None = None,
) -> Algorithm:
    """Group-relative policy optimisation: each trajectory against the mean of its group, PPO's clipped ratio to the
    sampler.

    Differs from the paper (arXiv 2402.03300) by default: no division by the deviation (`deviation=True` brings it
    back), no KL to a reference, tokens of the whole step weigh equally (`normalization=SequenceMean()` brings back that
    trajectories do). `advantages` takes the place of the group mean.
    """
    if advantages is not None and deviation:
        raise SettingError(
            f"grpo(advantages={advantages!r}, deviation=True): deviation belongs to the group mean; give one of both"
        )
    return Algorithm(
        name="grpo",
        advantages=GroupMean(deviation=deviation) if advantages is None else advantages,
        loss=_corrected("grpo", PPO() if loss is None else loss, correction),
        normalization=normalization,
        compare={} if compare is None else compare,
        filters=filters,
    )


def dr_grpo(
    *, tokens: int | None = None, compare: Compare | None = None, correction: Correction | None = None
) -> Algorithm:
    """A_i = r_i - mean(r); the clipped terms of all tokens summed and divided by N times a constant, so that neither the
    deviation of a group nor the length of a reply weighs it (arXiv 2503.20783, Dr. GRPO).

    `tokens` is that constant; None takes the policy's max_tokens, as the paper does. Differs: N counts the trajectories of the
    whole step, not of a group.
    """
    return Algorithm(
        name="dr_grpo",
        advantages=GroupMean(),
        loss=_corrected("dr_grpo", PPO(), correction),
        normalization=Constant(tokens=tokens),
        compare={} if compare is None else compare,
    )


def dapo(
    *,
    overlong: Overlong | None = _OVERLONG,
    compare: Compare | None = None,
    correction: Correction | None = None,
) -> Algorithm:
    """A_i = (r_i - mean(r)) / std(r), PPO with bounds of its own for rising tokens (0.8, 1.28: clip-higher), every token alike,
    groups of equal rewards dropped and replaced (dynamic sampling), long replies punished (`Overlong`) (arXiv 2503.14476).

    Differs: the loss is divided by the tokens of the step, not of each group; groups are equal by the rewards as the
    environment gave them, whatever they are, where the paper counts right and wrong answers.
    """
    return Algorithm(
        name="dapo",
        advantages=GroupMean(deviation=True),
        loss=_corrected("dapo", PPO(clip_low_threshold=0.8, clip_high_threshold=1.28), correction),
        compare={} if compare is None else compare,
        filters=[EqualRewards()],
        overlong=overlong,
    )


def rloo(*, compare: Compare | None = None, correction: Correction | None = None) -> Algorithm:
    """A_i = r_i - mean of the others' rewards, with the policy gradient -r A, unclipped (arXiv 2402.14740, REINFORCE leave one
    out).

    Differs: the ratio to the sampler is there, per token, as a sample may be some versions old (1 where it is not); the sum
    over tokens is divided by the tokens of the step (the paper's mean of sums over sequences, up to a factor); no KL.
    """
    return Algorithm(
        name="rloo",
        advantages=LeaveOneOut(),
        loss=_corrected("rloo", ImportanceSampling(), correction),
        compare={} if compare is None else compare,
    )


def reinforce_pp(
    *, baseline: bool = False, compare: Compare | None = None, correction: Correction | None = None
) -> Algorithm:
    """A_t = the reward from token t on, with `baseline` r_i - mean(r), then (A - mean) / std over the whole step, PPO's clipped
    ratio (arXiv 2501.03262, REINFORCE++ and REINFORCE++-baseline).

    Differs: mean and deviation are those of the trajectories of one environment, seat and label each, so that seats are not
    compared with each other; no KL by default (the paper has it per token in the reward, with the baseline in the loss).
    """
    return Algorithm(
        name="reinforce_pp_baseline" if baseline else "reinforce_pp",
        advantages=GroupMean() if baseline else RewardToGo(),
        loss=_corrected("reinforce_pp", PPO(), correction),
        compare={} if compare is None else compare,
        whiten=True,
    )


def reinforce_pp_baseline(*, compare: Compare | None = None, correction: Correction | None = None) -> Algorithm:
    """`reinforce_pp(baseline=True)`."""
    return reinforce_pp(baseline=True, compare=compare, correction=correction)


def gspo(*, compare: Compare | None = None, correction: Correction | None = None) -> Algorithm:
    """A_i = (r_i - mean(r)) / std(r), and PPO's clipping of one ratio for each sequence, the geometric mean of its tokens'
    (arXiv 2507.18071, eq. 5); trajectories weigh alike.

    Differs: a trajectory of several contexts has a ratio for each of them, and its tokens weigh alike over all.
    """
    return Algorithm(
        name="gspo",
        advantages=GroupMean(deviation=True),
        loss=_corrected("gspo", GSPO(), correction),
        normalization=SequenceMean(),
        compare={} if compare is None else compare,
    )


def cispo(*, compare: Compare | None = None, correction: Correction | None = None) -> Algorithm:
    """A_i = (r_i - mean(r)) / std(r), and -sg(min(r, high)) lp A: a token beyond the bound keeps a gradient, of bounded weight
    (arXiv 2506.13585, MiniMax-M1).

    Differs: divided by the tokens of the step, not of each group.
    """
    return Algorithm(
        name="cispo",
        advantages=GroupMean(deviation=True),
        loss=_corrected("cispo", CISPO(), correction),
        compare={} if compare is None else compare,
    )


def dppo(*, compare: Compare | None = None, correction: Correction | None = None) -> Algorithm:
    """A_i = r_i - mean(r), and -m r A: a token is left out while the policy is far from the sampler there and would go further,
    by how much the probability differs and not by the ratio (arXiv 2602.04879, with the binary total variation).

    Differs: advantages and division are those of `grpo()` here, whatever the paper's runs have.
    """
    return Algorithm(
        name="dppo",
        advantages=GroupMean(),
        loss=_corrected("dppo", DPPO(), correction),
        compare={} if compare is None else compare,
    )


def decoupled_ppo(
    *, minibatches: int = 4, compare: Compare | None = None, correction: Correction | None = None
) -> Algorithm:
    """-exp(p - q) min(u A, clip(u, 0.8, 1.2) A), u = exp(lp - p): the ratio is bounded against the weights p that the step
    began with, and the age of the sample is corrected apart (arXiv 2110.00641; 2505.24298, AReaL). `correction` caps
    exp(p - q).

    Differs: advantages are A_i = r_i - mean(r). Within one optimizer step u is 1, hence the mini-batches; the last ones are
    further from p than the first.
    """
    return Algorithm(
        name="decoupled_ppo",
        advantages=GroupMean(),
        loss=_corrected("decoupled_ppo", DecoupledPPO(), correction),
        compare={} if compare is None else compare,
        minibatches=minibatches,
    )


def ppo(
    *,
    decay: float = 0.95,
    discount: float = 1.0,
    critic: Critic | None = None,
    minibatches: int = 4,
    compare: Compare | None = None,
    correction: Correction | None = None,
) -> Algorithm:
    """Generalized advantages A_t from a critic's values (arXiv 1506.02438; `decay` is lambda), whitened over the step, PPO's
    clipped ratio (arXiv 1707.06347, eq. 7), and a critic with clipped values; works with groups of one.

    The critic's returns have a lambda of their own, 1 by default, so that what it learns does not depend on what it is, and it
    may be trained alone at first: `critic=Critic(pretraining=...)` (arXiv 2503.01491). Differs from the paper: the ratio is to
    the sampler, which may be some versions old; whitening is by environment, seat and label; one pass over the data.
    """
    return Algorithm(
        name="ppo",
        advantages=GAE(decay=decay, discount=discount),
        loss=_corrected("ppo", PPO(), correction),
        compare={} if compare is None else compare,
        whiten=True,
        minibatches=minibatches,
        critic=Critic(returns=GAE(decay=1.0, discount=discount)) if critic is None else critic,
    )


def rae(
    *,
    decay: float = 0.95,
    given: str | tuple[str, ...] = (),
    loss: Loss | None = None,
    compare: Compare | None = None,
    correction: Correction | None = None,
) -> Algorithm:
    """Self-play with a running baseline for each role (arXiv 2506.24119); works with groups of one.

    A = r - b[environment, seat, label], b a running mean (`RoleBaseline`). `given` names a seat, or several, whose player is
    another one from group to group: a judge drawn from a league, or one for each line-up. Then b is kept for each player there,
    A = r - b[environment, seat, label, judge]. Let r = m + c_j + e, with c_j the leniency of judge j, of mean 0 and variance
    c^2 over the groups, and e of variance s^2, all independent. One b for all judges leaves c_j in A, which has the variance
    (s^2 + c^2) 2 / (1 + decay); a b for each leaves e, s^2 2 / (1 + decay), once it has settled: it begins at 0 for every
    judge. Versions of a league are players each, a policy of the run is one. Estimators over groups need no `given`: a group
    has one line-up.
    """
    return Algorithm(
        name="rae",
        advantages=RoleBaseline(decay=decay, given=(given,) if isinstance(given, str) else given),
        loss=_corrected("rae", PPO() if loss is None else loss, correction),
        compare={} if compare is None else compare,
    )


def distillation(
    teacher: str | Teacher,
    *,
    coefficient: float = 1.0,
    loss: Loss | None = None,
    correction: Correction | None = None,
) -> Algorithm:
    """On-policy distillation: A_t = coefficient (log-prob of the token under the teacher - under the sampler), so that the
    expected step goes down the reverse KL to the teacher at each place that the policy itself comes to (arXiv 2306.13649, GKD,
    with all data on-policy and the reverse KL; 2306.08543, MiniLLM). Rewards are measured and not learned from.

    `teacher` is a model of the run's backend (a folder or hub name) or a `Teacher` behind any sampling client, with the
    policy's tokens. Differs from the papers: one sampled token stands for the sum over the vocabulary, and what a token does to
    later ones is not counted; the loss is the policy gradient with its ratio to the sampler. Works with groups of one.
    """
    return Algorithm(
        name="distillation",
        advantages=Penalty(),
        loss=_corrected("distillation", ImportanceSampling() if loss is None else loss, correction),
        kl=KL(coefficient=coefficient, into="reward", reference=teacher if isinstance(teacher, str) else None),
        teacher=None if isinstance(teacher, str) else teacher,
    )


class Preset(Protocol):
    """A function that returns an algorithm, with what every one of them takes."""

    def __call__(self, *, compare: Compare | None = None, correction: Correction | None = None) -> Algorithm: ...


PRESETS: Mapping[str, Preset] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "gspo": gspo,
    "cispo": cispo,
    "dppo": dppo,
    "decoupled_ppo": decoupled_ppo,
    "ppo": ppo,
    "rae": rae,
}
"""What `--algorithm NAME` can be."""


def _corrected(name: str, loss: Loss, correction: Correction | None) -> Loss:
    return loss if correction is None else correction.of(loss, name)
