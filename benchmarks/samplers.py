"""How fast and how exactly the samplers draw.

    python -m benchmarks.samplers [--model NAME] [--rounds 2] [--dtype bfloat16] [--threads 2]

The torch sampler against transformers' own `generate`: 64 sequences of 45 prompt tokens at temperature 1. Each way is a process
of its own, and they take turns, so that a noisy machine is noisy for all; the first round warms up; ratios are of medians. The
targets are for what a run samples from, a model with an adapter (rank 16, unmerged; `generate` through PEFT's). Beside it the
base alone is shown ("bare"):

    generate   transformers, all 64 prompts in one call, 64 tokens drawn for each
    apart      sparring, 64 concurrent requests with a prompt each, 64 tokens
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import numpy as np
import torch

from benchmarks._child import Child, in_turn
from benchmarks._drawing import DRAWN, RANK, SEQUENCES, draw, lengths
from benchmarks._grpo import grpo_rows
from benchmarks._rows import Row, Settings, arguments, at_least, at_most, report
from benchmarks._vllm import vllm_rows
from sparring.arrays import F32, I32
from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.sampling import SamplingClient, SamplingParams

PARTS = ("torch", "grpo", "vllm")
QUESTIONS = ("What is 7 + 5?", "Name three rivers.", "Why is the sky blue?", "Write a story about a fox.")
TARGETS = (("apart", "generate", 2.0), ("shared", "generate", 2.0), ("uneven", "padded", 3.0))
PARITY = {"bfloat16": (0.05, 0.5), "float32": (1e-5, 1e-4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings(Settings):
    """And which parts."""

    parts: list[str]


async def speed(settings: Settings) -> list[Row]:
    """All ways in turn."""
    with (
        Child("benchmarks._drawing", "adapted", settings) as adapted,
        Child("benchmarks._drawing", "sparring", settings) as ours,
        Child("benchmarks._drawing", "generate", settings) as generate,
        Child("benchmarks._drawing", "bare", settings) as bare,
    ):
        ways = {"generate": partial(adapted.step, "even"), "padded": partial(adapted.step, "padded")}
        ways |= {name: partial(ours.step, name) for name in ("apart", "shared", "uneven", "first")}
        ways |= {"bare generate": partial(generate.step, "even"), "bare padded": partial(generate.step, "padded")}
        ways |= {f"bare {name}": partial(bare.step, name) for name in ("apart", "shared", "uneven")}
        middle = await in_turn(ways, settings.rounds)
    between = (middle["apart"] - middle["first"]) / (DRAWN - 1)
    return [
        *_compared(middle),
        *_compared(middle, "bare "),
        Row(name=f"between two tokens of a request among {SEQUENCES}, ms", figure=f"{1000 * between:.0f}"),
    ]


def _compared(middle: Mapping[str, float], kind: str = "") -> list[Row]:
    """Ours against `generate`, both with an adapter or both without."""
    even, uneven = SEQUENCES * DRAWN, sum(lengths())
    tokens = {"generate": even, "apart": even, "shared": even, "padded": uneven, "uneven": uneven}
    rates = [
        Row(name=f"{kind}{name}, tok/s", figure=f"{count / middle[kind + name]:.0f}") for name, count in tokens.items()
    ]
    ratios = {f"{kind}{one} / {other}": middle[kind + other] / middle[kind + one] for one, other, _ in TARGETS}
    if kind:
        return [*rates, *(Row(name=name, figure=f"{ratio:.3g}") for name, ratio in ratios.items())]
    pairs = zip(ratios.items(), TARGETS, strict=True)
    return [*rates, *(at_least(name, ratio, least) for (name, ratio), (*_, least) in pairs)]


async def publication(model: TorchModel, prompt: I32, rounds: int) -> list[Row]:
    """From the end of `optim_step` to the first token of its weights: by a new snapshot, and by a client that follows."""
    found: dict[str, list[float]] = {"snapshot": [], "in flight": []}
    await model.publish(0)
    following = await model.sampler("inflight")
    for version in range(1, rounds + 2):
        samples = await following.sample(prompt, SamplingParams(max_tokens=8), n=8)
        data = [Datum.completion(prompt, sample, advantage=float(i - 4)) for i, sample in enumerate(samples)]
        model.forward_backward(token_mean(data), ImportanceSampling())
        await model.optim_step(Adam(learning_rate=1e-5))
        start = time.perf_counter()
        client = await model.sampler()
        await client.sample(prompt, SamplingParams(max_tokens=1))
        found["snapshot"].append(time.perf_counter() - start)
        await client.aclose()
        start = time.perf_counter()
        await model.publish(version)
        (sample,) = await following.sample(prompt, SamplingParams(max_tokens=1))
        found["in flight"].append(time.perf_counter() - start)
        assert sample.versions[0][0] == version, sample.versions
    await following.aclose()
    return [
        Row(name=f"publication, {name}, ms", figure=f"{1000 * statistics.median(seconds[1:]):.0f}")
        for name, seconds in found.items()
    ]


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


async def exactness(settings: Settings) -> list[Row]:
    """Parity and publication."""
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        prompts = [model.renderer.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
        client = await model.sampler()
        rows = await parity(client, prompts, settings.dtype)
        await client.aclose()
        return [*rows, *await publication(model, prompts[0], settings.rounds)]


async def main(settings: SamplerSettings) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    if "torch" in settings.parts:
        rows += [*await speed(settings), *await exactness(settings)]
    if "grpo" in settings.parts:
        rows += await grpo_rows(settings)
    if "vllm" in settings.parts:
        rows += vllm_rows(settings)
    return rows


def _settings() -> SamplerSettings:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    return SamplerSettings(**vars(parser.parse_args()))


if __name__ == "__main__":
    chosen = _settings()
    torch.set_num_threads(chosen.threads)
    sys.exit(0 if report(f"{chosen.dtype}, {chosen.model}", anyio.run(main, chosen)) else 1)
