"""One synchronous GRPO step of primitives: 8 questions with 8 completions of the same length each."""

from __future__ import annotations

import anyio
import numpy as np

from sparring.backend import Adam, Datum, ImportanceSampling, token_mean
from sparring.backend.local.model import TorchModel
from sparring.backend.sampling import SampledSequence, SamplingParams

QUESTIONS = [f"What is {a} + {b}?" for a, b in ((1, 7), (2, 5), (9, 4), (3, 3), (8, 6), (7, 7), (5, 9), (6, 0))]
COMPLETIONS, DRAWN, RANK, RATE = 8, 48, 16, 1e-4


def reward(text: str) -> float:
    """Something that differs between completions; both ways are given the same."""
    return text.count("a") / 10


async def our_step(model: TorchModel, tokens: int = DRAWN) -> None:
    """Draw from the present weights, compare, train, take over the new weights."""
    sampler = await model.sampler()
    drawn: list[list[SampledSequence]] = [[] for _ in QUESTIONS]
    prompts = [model.renderer.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]

    async def ask(index: int) -> None:
        drawn[index] = await sampler.sample(prompts[index], SamplingParams(max_tokens=tokens), n=COMPLETIONS)

    async with anyio.create_task_group() as group:
        for index in range(len(QUESTIONS)):
            group.start_soon(ask, index)
    data: list[Datum] = []
    for prompt, samples in zip(prompts, drawn, strict=True):
        rewards = np.array([reward(model.renderer.text(sample.tokens)) for sample in samples])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        data += [Datum.completion(prompt, s, advantage=float(a)) for s, a in zip(samples, advantages, strict=True)]
    model.forward_backward(token_mean(data), ImportanceSampling())
    await model.optim_step(Adam(learning_rate=RATE))
    await sampler.aclose()
