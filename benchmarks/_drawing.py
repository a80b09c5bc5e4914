"""Drawing many sequences at once: by transformers' `generate`, and through a sampling client; what the benchmarks compare.

    python -m benchmarks._drawing generate|adapted|sparring|bare MODEL DTYPE THREADS DEVICE

draws as each line read says, and prints its seconds.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks._child import answer, given
from benchmarks._rows import Settings
from sparring.arrays import I32
from sparring.backend import Lora
from sparring.backend.local import LocalBackend
from sparring.backend.models import resolve_model
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams

SEQUENCES, PROMPTS, PROMPT_TOKENS, DRAWN, RANK, VOCABULARY = 64, 8, 45, 64, 16, 49000
SHORTEST, LONGEST = 8, 128


class Generate:
    """transformers, as one writes it; with a `rank` through PEFT's adapter on every linear layer, in the same dtype."""

    def __init__(self, folder: Path, dtype: str, device: str = "cpu", *, rank: int = 0) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
        if rank:
            lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        self.model = model.to(device).eval()

    def run(self, prompts: Sequence[I32], tokens: int) -> None:
        """Draw so many from all prompts in one call."""
        ids = torch.from_numpy(np.stack(prompts)).long().to(self.model.device)
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )


async def draw(
    client: SamplingClient, prompts: Sequence[I32], params: Sequence[SamplingParams]
) -> list[SampledSequence]:
    """One concurrent request for each prompt."""
    found: list[SampledSequence | None] = [None] * len(prompts)

    async def one(index: int) -> None:
        (found[index],) = await client.sample(prompts[index], params[index])

    async with anyio.create_task_group() as group:
        for index in range(len(prompts)):
            group.start_soon(one, index)
    return [sample for sample in found if sample is not None]


def prompts() -> list[I32]:
    """As many different ones as there are sequences."""
    random = np.random.default_rng(0)
    return [random.integers(3, VOCABULARY, PROMPT_TOKENS).astype(np.int32) for _ in range(SEQUENCES)]


def lengths() -> list[int]:
    """Of as many sequences, uniform."""
    found: list[int] = np.random.default_rng(1).integers(SHORTEST, LONGEST + 1, SEQUENCES).tolist()
    return found


async def _generated(settings: Settings, *, rank: int = 0) -> None:
    generate = Generate(resolve_model(settings.model), settings.dtype, settings.device, rank=rank)
    apart = prompts()

    async def step(what: str) -> float:
        start = time.perf_counter()
        generate.run(apart, {"even": DRAWN, "padded": max(lengths())}[what])
        return time.perf_counter() - start

    await answer(step)


async def _sampled(settings: Settings, *, rank: int = RANK) -> None:
    apart = prompts()
    shared = [apart[i % PROMPTS] for i in range(SEQUENCES)]
    even, first = [SamplingParams(max_tokens=DRAWN)] * SEQUENCES, [SamplingParams(max_tokens=1)] * SEQUENCES
    uneven = [SamplingParams(max_tokens=length) for length in lengths()]
    ways = {"apart": (apart, even), "shared": (shared, even), "uneven": (apart, uneven), "first": (apart, first)}
    async with LocalBackend(
        dtype=settings.dtype, threads=settings.threads, device=settings.device, prefix_bytes=0
    ) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=rank, alpha=rank) if rank else None)
        client = await model.sampler()

        async def step(what: str) -> float:
            start = time.perf_counter()
            await draw(client, *ways[what])
            return time.perf_counter() - start

        await answer(step)


if __name__ == "__main__":
    way, given_settings, _ = given()
    torch.set_num_threads(given_settings.threads)
    ways: dict[str, Callable[[Settings], Awaitable[None]]] = {
        "generate": _generated,
        "adapted": partial(_generated, rank=RANK),
        "sparring": _sampled,
        "bare": partial(_sampled, rank=0),
    }
    anyio.run(ways[way], given_settings)
