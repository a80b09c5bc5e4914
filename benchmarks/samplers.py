"""How fast and how exactly the torch sampler draws, against transformers' own `generate`.

    python -m benchmarks.samplers [--model NAME] [--rounds 3] [--dtype bfloat16] [--threads 2]

64 sequences of 45 prompt tokens and 64 drawn ones at temperature 1. Three ways take turns, so that a noisy machine is noisy for
all; the first round warms up:

    generate   transformers, the base model, all 64 prompts in one call
    apart      sparring, an adapter of rank 16 unmerged, 64 concurrent requests with a prompt each
    shared     the same with 8 prompts, 8 requests each: every prompt is computed once

Then parity: how far the log-probs of drawn tokens are from those of a full forward pass with the same weights. Every row says
its target and whether it is met; the exit status is 1 if one is not. Ratios are of best times.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks._rows import Row, Settings, arguments, report
from sparring.arrays import F32, I32
from sparring.backend import Lora
from sparring.backend.local import LocalBackend
from sparring.backend.models import resolve_model
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams

SEQUENCES, PROMPTS, PROMPT_TOKENS, DRAWN, RANK = 64, 8, 45, 64, 16
QUESTIONS = ("What is 7 + 5?", "Name three rivers.", "Why is the sky blue?", "Write a story about a fox.")
PARITY = {"bfloat16": (0.05, 0.5), "float32": (1e-5, 1e-4)}


class Generate:
    """transformers, as one writes it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, settings.dtype)).eval()

    def run(self, prompts: Sequence[I32]) -> None:
        """Draw from all prompts in one call."""
        ids = torch.from_numpy(np.stack(prompts)).long()
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=DRAWN,
            min_new_tokens=DRAWN,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )


async def draw(client: SamplingClient, prompts: Sequence[I32], params: SamplingParams) -> list[SampledSequence]:
    """One concurrent request for each prompt."""
    found: list[SampledSequence | None] = [None] * len(prompts)

    async def one(index: int) -> None:
        (found[index],) = await client.sample(prompts[index], params)

    async with anyio.create_task_group() as group:
        for index in range(len(prompts)):
            group.start_soon(one, index)
    return [sample for sample in found if sample is not None]


async def speed(client: SamplingClient, generate: Generate, vocabulary: int, rounds: int) -> list[Row]:
    """All ways in turn."""
    random = np.random.default_rng(0)
    apart = [random.integers(3, vocabulary, PROMPT_TOKENS).astype(np.int32) for _ in range(SEQUENCES)]
    shared = [apart[i % PROMPTS] for i in range(SEQUENCES)]
    seconds: dict[str, list[float]] = {"generate": [], "apart": [], "shared": []}
    for number in range(rounds + 1):
        for name, times in seconds.items():
            start = time.perf_counter()
            if name == "generate":
                generate.run(apart)
            else:
                await draw(client, apart if name == "apart" else shared, SamplingParams(max_tokens=DRAWN))
            if number > 0:
                times.append(time.perf_counter() - start)
    rates = {name: SEQUENCES * DRAWN / min(times) for name, times in seconds.items()}
    medians = {name: SEQUENCES * DRAWN / statistics.median(times) for name, times in seconds.items()}
    rows = [Row(name=f"{name}, tok/s", figure=f"{rates[name]:.0f} (median {medians[name]:.0f})") for name in seconds]
    for name in ("apart", "shared"):
        gain = rates[name] / rates["generate"]
        rows.append(Row(name=f"{name} / generate", figure=f"{gain:.2f}", target=">= 2.00", met=gain >= 2))
    return rows


async def parity(client: SamplingClient, prompts: Sequence[I32], dtype: str) -> list[Row]:
    """Drawn log-probs against a full forward pass."""
    params = SamplingParams(max_tokens=DRAWN, seed=0)
    differences: list[F32] = []
    four_times = [prompt for prompt in prompts for _ in range(8)]
    for prompt, sample in zip(four_times, await draw(client, four_times, params), strict=True):
        full = await client.logprobs(np.concatenate([prompt, sample.tokens]))
        differences.append(np.abs(full[len(prompt) :] - sample.logprobs))
    difference = np.concatenate(differences)
    mean, most = PARITY[dtype]
    return [
        Row(
            name=f"parity, mean of {len(difference)}",
            figure=f"{difference.mean():.2g}",
            target=f"<= {mean:g}",
            met=difference.mean() <= mean,
        ),
        Row(name="parity, max", figure=f"{difference.max():.2g}", target=f"<= {most:g}", met=difference.max() <= most),
    ]


async def main(settings: Settings) -> list[Row]:
    """All rows."""
    torch.set_num_threads(settings.threads)
    generate = Generate(resolve_model(settings.model), settings)
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        client = await model.sampler()
        prompts = [model.renderer.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
        vocabulary = int(generate.model.get_input_embeddings().weight.shape[0])
        return [
            *await speed(client, generate, vocabulary, settings.rounds),
            *await parity(client, prompts, settings.dtype),
        ]


if __name__ == "__main__":
    chosen = Settings(**vars(arguments(__doc__).parse_args()))
    sys.exit(0 if report(f"{chosen.dtype}, {chosen.model}", anyio.run(main, chosen)) else 1)
