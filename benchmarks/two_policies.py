"""What a second policy on the same base costs: a whole step of one policy with 64 sequences, and of two with 32 each.

    python -m benchmarks.two_policies [--model NAME] [--rounds 5] [--dtype bfloat16] [--threads 2] [--device cpu]

A step: 8 prompts of 45 tokens, 8 completions of 48 tokens each are drawn through a snapshot of the present weights, GRPO's
gradient goes back through all of them, an optimizer step follows. `two` draws the completions of four prompts through each of
two adapters of rank 16 at once, trains both in one pass and steps both: the same number of tokens. `apart` does one policy,
then the other. The ways take turns in one process; the first round warms up.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial

import anyio
import numpy as np
import torch

from benchmarks._child import in_turn
from benchmarks._drawing import PROMPTS, RANK, prompts
from benchmarks._rows import Row, Settings, arguments, at_most, report
from sparring.arrays import I32
from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.sampling import SamplingParams

COMPLETIONS, DRAWN, MOST = 8, 48, 1.3


async def drawn(model: TorchModel, given: Sequence[I32], into: dict[TorchModel, list[Datum]]) -> None:
    """Completions of each prompt through a snapshot, as data to train on: none ends before it has all its tokens."""
    sampler = await model.sampler()
    data: list[Datum] = []

    async def one(prompt: I32) -> None:
        params = SamplingParams(max_tokens=DRAWN)
        samples = await sampler.sample(prompt, params, n=COMPLETIONS)
        data.extend(Datum.completion(prompt, s, advantage=(-1.0) ** i) for i, s in enumerate(samples))

    async with anyio.create_task_group() as group:
        for prompt in given:
            group.start_soon(one, prompt)
    await sampler.aclose()
    assert sum(int(np.count_nonzero(datum.mask)) for datum in data) == len(given) * COMPLETIONS * DRAWN
    into[model] = token_mean(data)


async def step(backend: LocalBackend, shares: Sequence[tuple[TorchModel, Sequence[I32]]]) -> float:
    """The seconds of a step in which each of these models plays these prompts."""
    start = time.perf_counter()
    batches: dict[TorchModel, list[Datum]] = {}
    async with anyio.create_task_group() as group:
        for model, given in shares:
            group.start_soon(drawn, model, given, batches)
    await backend.forward_backward([(model, batches[model], ImportanceSampling()) for model, _ in shares])
    for model, _ in shares:
        await model.optim_step(Adam(learning_rate=1e-6))
    return time.perf_counter() - start


async def measure(settings: Settings) -> list[Row]:
    """All ways in turn."""
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads, device=settings.device) as backend:
        lora = Lora(rank=RANK, alpha=RANK)
        first, second = [await backend.create_model(settings.model, lora=lora, seed=seed) for seed in (0, 1)]
        given = prompts()[:PROMPTS]
        half, other = given[: PROMPTS // 2], given[PROMPTS // 2 :]

        async def apart() -> float:
            return await step(backend, [(first, half)]) + await step(backend, [(second, other)])

        ways = {
            "one": partial(step, backend, [(first, given)]),
            "two": partial(step, backend, [(first, half), (second, other)]),
            "apart": apart,
        }
        middle = await in_turn(ways, settings.rounds)
    return [
        *(Row(name=f"{name}, seconds of a step", figure=f"{seconds:.2f}") for name, seconds in middle.items()),
        at_most("two / one", middle["two"] / middle["one"], MOST),
        Row(name="apart / one", figure=f"{middle['apart'] / middle['one']:.2f}"),
    ]


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.set_defaults(rounds=5)
    chosen = Settings(**vars(parser.parse_args()))
    torch.set_num_threads(chosen.threads)
    sys.exit(0 if report(f"{chosen.dtype}, {chosen.model}", anyio.run(measure, chosen), chosen.device) else 1)
