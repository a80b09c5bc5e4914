"""Asynchronous reinforcement learning for language models that train by sparring: with a verifier, a game, or each other.

The names that programs use, gathered from the five rooms. None of them loads torch, vllm, transformers, ray or wandb; opening a
backend does.
"""

from sparring.agents import Agent, External, Frozen, Human, League, Lineup, Sampling, Scripted, ScriptedAgent
from sparring.arrays import F
from sparring.backend import (
    PPO,
    Adam,
    CrossEntropy,
    Datum,
    ImportanceSampling,
    Local,
    Lora,
    SamplingParams,
    ScriptedBackend,
    ScriptedModels,
    token_mean,
)
from sparring.environments import (
    Environment,
    MathVerifier,
    Outcome,
    Reply,
    Rewards,
    Score,
    Seat,
    Tasks,
    effect,
    environment,
    gather,
    generated,
    jsonl,
    reveal,
    split,
)
from sparring.errors import ContextFull, EffectError, SparringError, Unjudged
from sparring.learner import Algorithm, Comparable, Episodes, Policy, Run, advantages, grpo, rae, train, train_async
from sparring.rollout import Finished, play

__version__ = "0.1.0"

__all__ = [
    "PPO",
    "Adam",
    "Agent",
    "Algorithm",
    "Comparable",
    "ContextFull",
    "CrossEntropy",
    "Datum",
    "EffectError",
    "Environment",
    "Episodes",
    "External",
    "F",
    "Finished",
    "Frozen",
    "Human",
    "ImportanceSampling",
    "League",
    "Lineup",
    "Local",
    "Lora",
    "MathVerifier",
    "Outcome",
    "Policy",
    "Reply",
    "Rewards",
    "Run",
    "Sampling",
    "SamplingParams",
    "Score",
    "Scripted",
    "ScriptedAgent",
    "ScriptedBackend",
    "ScriptedModels",
    "Seat",
    "SparringError",
    "Tasks",
    "Unjudged",
    "advantages",
    "effect",
    "environment",
    "gather",
    "generated",
    "grpo",
    "jsonl",
    "play",
    "rae",
    "reveal",
    "split",
    "token_mean",
    "train",
    "train_async",
]
