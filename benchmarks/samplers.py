"""How fast and how exactly the samplers draw.

    python -m benchmarks.samplers [--model NAME] [--rounds 3] [--dtype bfloat16] [--threads 2]

The torch sampler against transformers' own `generate`: 64 sequences of 45 prompt tokens at temperature 1. The ways take turns,
so that a noisy machine is noisy for all; the first round warms up; ratios are of medians:

    generate   transformers, the base model, all 64 prompts in one call, 64 tokens drawn for each
    apart      sparring, an adapter of rank 16 unmerged, 64 concurrent requests with a prompt each, 64 tokens
    shared     the same with 8 prompts, 8 requests each: every prompt is computed once
    padded     generate, until the longest of 64 lengths, uniform from 8 to 128, is reached
    uneven     sparring, 64 requests with a prompt each, of these lengths

Then the time between two tokens of a request, among 64 of them; parity, how far the log-probs of drawn tokens are from those of
a full forward pass with the same weights; the time from the end of an optimizer step to the first token of its weights; a whole
GRPO step against TRL's (`_grpo.py`, needs the extra `bench`); and vLLM through our client against vLLM alone (`_vllm.py`, needs
the environment that `make test-vllm` sets up).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import anyio
import numpy as np
import torch

from benchmarks._drawing import Generate, draw
from benchmarks._grpo import grpo_rows
from benchmarks._rows import Row, Settings, arguments, at_least, at_most, report
from benchmarks._vllm import vllm_rows
from sparring.arrays import F32, I32
from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model
from sparring.backend.sampling import SamplingClient, SamplingParams

SEQUENCES, PROMPTS, PROMPT_TOKENS, DRAWN, RANK = 64, 8, 45, 64, 16
SHORTEST, LONGEST = 8, 128
QUESTIONS = ("What is 7 + 5?", "Name three rivers.", "Why is the sky blue?", "Write a story about a fox.")
PARITY = {"bfloat16": (0.05, 0.5), "float32": (1e-5, 1e-4)}


async def speed(client: SamplingClient, generate: Generate, vocabulary: int, rounds: int) -> list[Row]:
    """All ways in turn."""
    random = np.random.default_rng(0)
    apart = [random.integers(3, vocabulary, PROMPT_TOKENS).astype(np.int32) for _ in range(SEQUENCES)]
    shared = [apart[i % PROMPTS] for i in range(SEQUENCES)]
    lengths = random.integers(SHORTEST, LONGEST + 1, SEQUENCES).tolist()
    even, first = [SamplingParams(max_tokens=DRAWN)] * SEQUENCES, [SamplingParams(max_tokens=1)] * SEQUENCES
    uneven = [SamplingParams(max_tokens=length) for length in lengths]
    ours = {"apart": (apart, even), "shared": (shared, even), "uneven": (apart, uneven), "first tokens": (apart, first)}
    seconds: dict[str, list[float]] = {name: [] for name in ("generate", "padded", *ours)}
    for number in range(rounds + 1):
        for name, times in seconds.items():
            start = time.perf_counter()
            if name in ours:
                await draw(client, *ours[name])
            else:
                generate.run(apart, DRAWN if name == "generate" else max(lengths))
            if number > 0:
                times.append(time.perf_counter() - start)
            print(
                f"round {number} of {rounds}, {name}: {time.perf_counter() - start:.2f} s", file=sys.stderr, flush=True
            )
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    tokens = dict.fromkeys(("generate", "apart", "shared"), SEQUENCES * DRAWN) | dict.fromkeys(
        ("padded", "uneven"), sum(lengths)
    )
    between = (middle["apart"] - middle["first tokens"]) / (DRAWN - 1)
    return [
        *(Row(name=f"{name}, tok/s", figure=f"{count / middle[name]:.0f}") for name, count in tokens.items()),
        at_least("apart / generate", middle["generate"] / middle["apart"], 2.0),
        at_least("shared / generate", middle["generate"] / middle["shared"], 2.0),
        at_least("uneven / padded", middle["padded"] / middle["uneven"], 3.0),
        Row(name=f"between two tokens of a request among {SEQUENCES}, ms", figure=f"{1000 * between:.0f}"),
    ]


async def publication(model: TorchModel, prompt: I32, rounds: int) -> list[Row]:
    """From the end of `optim_step` to the first token of its weights."""
    found: list[float] = []
    for _ in range(rounds + 1):
        client = await model.sampler()
        samples = await client.sample(prompt, SamplingParams(max_tokens=8), n=8)
        await client.aclose()
        data = [Datum.completion(prompt, sample, advantage=float(i - 4)) for i, sample in enumerate(samples)]
        model.forward_backward(token_mean(data), ImportanceSampling())
        await model.optim_step(Adam(learning_rate=1e-5))
        start = time.perf_counter()
        client = await model.sampler()
        await client.sample(prompt, SamplingParams(max_tokens=1))
        found.append(time.perf_counter() - start)
        await client.aclose()
    return [Row(name="publication, snapshot, ms", figure=f"{1000 * statistics.median(found[1:]):.0f}")]


async def parity(client: SamplingClient, prompts: Sequence[I32], dtype: str) -> list[Row]:
    """Drawn log-probs against a full forward pass."""
    differences: list[F32] = []
    four_times = [prompt for prompt in prompts for _ in range(8)]
    params = [SamplingParams(max_tokens=DRAWN, seed=seed) for seed in range(len(four_times))]
    for prompt, sample in zip(four_times, await draw(client, four_times, params), strict=True):
        full = await client.logprobs(np.concatenate([prompt, sample.tokens]))
        differences.append(np.abs(full[len(prompt) :] - sample.logprobs))
    difference = np.concatenate(differences)
    mean, most = PARITY[dtype]
    return [
        at_most(f"parity, mean of {len(difference)}", float(difference.mean()), mean),
        at_most("parity, max", float(difference.max()), most),
    ]


async def torch_rows(settings: Settings) -> list[Row]:
    """Of the torch sampler."""
    torch.set_num_threads(settings.threads)
    generate = Generate(resolve_model(settings.model), settings.dtype)
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        client = await model.sampler()
        prompts = [model.renderer.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
        vocabulary = int(generate.model.get_input_embeddings().weight.shape[0])
        return [
            *await speed(client, generate, vocabulary, settings.rounds),
            *await parity(client, prompts, settings.dtype),
            *await publication(model, prompts[0], settings.rounds),
        ]


def main(settings: Settings) -> list[Row]:
    """All rows."""
    return [*anyio.run(torch_rows, settings), *grpo_rows(settings), *vllm_rows(settings)]


if __name__ == "__main__":
    chosen = Settings(**vars(arguments(__doc__).parse_args()))
    sys.exit(0 if report(f"{chosen.dtype}, {chosen.model}", main(chosen)) else 1)
