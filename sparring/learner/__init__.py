"""How data becomes updates: advantages, algorithms, the run and its training loop."""

from sparring.learner.advantages import Advantages, Comparable, GroupMean, RoleBaseline, advantages
from sparring.learner.algorithm import Algorithm, grpo, rae
from sparring.learner.run import Episodes, Policy, Run
from sparring.learner.train import train, train_async

__all__ = [
    "Advantages",
    "Algorithm",
    "Comparable",
    "Episodes",
    "GroupMean",
    "Policy",
    "RoleBaseline",
    "Run",
    "advantages",
    "grpo",
    "rae",
    "train",
    "train_async",
]
