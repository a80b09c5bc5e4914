"""How data becomes updates: advantages, algorithms, the run and its training loop."""

from sparring.learner.advantages import (
    Advantages,
    Comparable,
    GroupMean,
    LeaveOneOut,
    RoleBaseline,
    advantages,
)
from sparring.learner.algorithm import Algorithm, EqualRewards
from sparring.learner.by_token import GAE, RewardToGo, TurnMean
from sparring.learner.critic import Critic
from sparring.learner.examples import Best, Lines, Pairs, Played
from sparring.learner.export import Exported, export
from sparring.learner.fit import SFT, Fit
from sparring.learner.fitting import Fitted, fit, fit_async
from sparring.learner.gauges import Gauge
from sparring.learner.kl import KL
from sparring.learner.normalization import Constant, Normalization, SequenceMean, TokenMean
from sparring.learner.overlong import Overlong
from sparring.learner.pacing import Drop, Pace
from sparring.learner.preference import DPO
from sparring.learner.presets import (
    PRESETS,
    Correction,
    cispo,
    dapo,
    decoupled_ppo,
    distillation,
    dppo,
    dr_grpo,
    grpo,
    gspo,
    ppo,
    rae,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)
from sparring.learner.reuse import Reuse
from sparring.learner.run import Episodes, Policy, Run
from sparring.learner.train import train, train_async

__all__ = [
    "DPO",
    "GAE",
    "Gauge",
    "KL",
    "PRESETS",
    "SFT",
    "Advantages",
    "Algorithm",
    "Best",
    "Comparable",
    "Constant",
    "Correction",
    "Critic",
    "Drop",
    "Episodes",
    "EqualRewards",
    "Exported",
    "Fit",
    "Fitted",
    "GroupMean",
    "LeaveOneOut",
    "Lines",
    "Normalization",
    "Overlong",
    "Pace",
    "Pairs",
    "Played",
    "Policy",
    "Reuse",
    "RewardToGo",
    "RoleBaseline",
    "Run",
    "SequenceMean",
    "TokenMean",
    "TurnMean",
    "advantages",
    "cispo",
    "dapo",
    "decoupled_ppo",
    "distillation",
    "dppo",
    "dr_grpo",
    "export",
    "fit",
    "fit_async",
    "grpo",
    "gspo",
    "ppo",
    "rae",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "rloo",
    "train",
    "train_async",
]
