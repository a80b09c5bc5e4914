"""How data becomes updates: advantages, algorithms, the run and its training loop."""

from sparring.learner.advantages import Advantages, Comparable, GroupMean, RoleBaseline, advantages
from sparring.learner.algorithm import Algorithm, EqualRewards, grpo, rae
from sparring.learner.export import Exported, export
from sparring.learner.pacing import Drop, Pace
from sparring.learner.reuse import Reuse
from sparring.learner.run import Episodes, Policy, Run
from sparring.learner.train import train, train_async

__all__ = [
    "Advantages",
    "Algorithm",
    "Comparable",
    "Drop",
    "Episodes",
    "EqualRewards",
    "Exported",
    "GroupMean",
    "Pace",
    "Policy",
    "Reuse",
    "RoleBaseline",
    "Run",
    "advantages",
    "export",
    "grpo",
    "rae",
    "train",
    "train_async",
]
