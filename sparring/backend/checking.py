"""What the checks of a backend have in common: what they ask a model, and how they say what they saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparring.arrays import F32, I32
from sparring.backend.datum import Datum
from sparring.backend.losses import CrossEntropy
from sparring.backend.sampling import SamplingClient
from sparring.backend.training import Adam, TrainingClient
from sparring.errors import CheckFailed

QUESTIONS = ("What is 7 + 5?", "Name three rivers.", "Why is the sky blue?", "Write two lines about a fox.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Mean and largest difference between sampler and trainer in the log-prob of a token."""

    mean: float
    largest: float


FP32 = Bounds(mean=1e-5, largest=1e-4)
BF16 = Bounds(mean=0.05, largest=0.5)


def prompts_of(model: TrainingClient) -> list[I32]:
    return [model.renderer.start([{"role": "user", "content": question}]) for question in QUESTIONS]


async def publish_trained(model: TrainingClient, version: int) -> SamplingClient:
    """Train the model by a step that shows, publish it, and open the version."""
    model.forward_backward([_to_learn(prompt) for prompt in prompts_of(model)], CrossEntropy())
    await model.optim_step(Adam(learning_rate=2e-3))
    await model.publish(version)
    return await model.sampler(version=version)


def _to_learn(prompt: I32) -> Datum:
    zeros: F32 = np.zeros(len(prompt), np.float32)
    mask = np.arange(len(prompt)) > 0
    return Datum(tokens=prompt, mask=mask, logprobs=zeros, advantages=zeros, weights=mask.astype(np.float32))


def within(what: str, differences: Sequence[F32], bounds: Bounds) -> None:
    every = np.concatenate(differences)
    mean, largest = float(every.mean()), float(every.max())
    insist(
        mean <= bounds.mean and largest <= bounds.largest,
        f"{what} differ by {mean:.2g} on average, {largest:.2g} at most, over {len(every)} tokens; allowed are "
        f"{bounds.mean:g} and {bounds.largest:g}",
    )


def insist(held: bool, otherwise: str) -> None:
    if not held:
        raise CheckFailed(otherwise)
