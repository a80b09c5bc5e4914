"""How fast the local backend trains, against the plain loop that one would write with transformers and PEFT.

    python -m benchmarks.backend [--model NAME] [--rounds 3] [--dtype bfloat16] [--threads 2] [--device cpu]
                                 [--shapes 45/30 400/60 20/300]

Steps of GRPO's shape: 8 prompts with 8 completions each, LoRA of rank 16 on every linear layer, forward, backward and an
optimizer step, in micro-batches of the same number of tokens. The ways take turns, so that a noisy machine is noisy for all;
each is a process of its own (`_child.py` says why); the first round warms up:

    plain     transformers + PEFT, padded batches, logits of every position
    apart     sparring, no two prompts equal: log-probs at sampled positions only
    shared    sparring, 8 prompts with 8 completions each: every prompt computed once

Then the memory that a step takes on top of what is there before it, each in a process of its own; and how long two adapters
take in one pass, 32 sequences each, against one adapter with all 64.

Tokens per second count every token of every sequence, computed or shared, so the figures are comparable. `of the matrix rate`
says how long the products that cannot be avoided would take at the rate of one large product, as a part of the time taken.
`benchmarks.cuda` measures more of a CUDA device, in one process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import anyio
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks._child import Child, in_turn
from benchmarks._device import matrix_rate
from benchmarks._memory import memory_rows
from benchmarks._rows import Row, Settings, arguments, at_least, at_most, report
from benchmarks._training import COMPLETIONS, RANK, SHAPES, WAYS, Shape, batch, vocabulary_of
from sparring.backend import ImportanceSampling, Lora
from sparring.backend.local import LocalBackend
from sparring.backend.models import resolve_model


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings(Settings):
    """And which shapes."""

    shapes: list[str]


def needed(model: nn.Module, shape: Shape) -> float:
    """FLOP of the products that a step with shared prompts cannot avoid: through frozen weights forwards and backwards
    (these get no gradient), for every distinct token; through the head for sampled positions alone."""
    head = model.get_input_embeddings().weight.numel()  # type: ignore[operator, union-attr]
    layers = [p for name, p in model.named_parameters() if p.ndim == 2 and not {"embed", "lm_head"} & _words(name)]
    sampled = shape.prompts * COMPLETIONS * shape.completion
    return 4.0 * (sum(p.numel() for p in layers) * (shape.prompts * shape.prompt + sampled) + head * sampled)


def _words(name: str) -> set[str]:
    return {"embed" if part.startswith("embed") else part for part in name.split(".")}


async def measure_shape(settings: Settings, shape: Shape, model: nn.Module) -> list[Row]:
    """All ways in turn."""
    with ExitStack() as stack:
        children = {way: stack.enter_context(Child("benchmarks._training", way, settings, shape.name)) for way in WAYS}
        middle = await in_turn({way: child.step for way, child in children.items()}, settings.rounds)
    rate = matrix_rate(getattr(torch, settings.dtype), settings.device)
    return rows(shape, middle, needed(model, shape) / rate)


def rows(shape: Shape, middle: Mapping[str, float], least: float) -> list[Row]:
    """Rates and gains of one shape; `least` seconds is what its products take at the machine's matrix rate."""
    at = f"{shape.name} "
    return [
        *(Row(name=f"{at}{name}, tok/s", figure=f"{shape.tokens / seconds:.0f}") for name, seconds in middle.items()),
        Row(name=f"{at}apart / plain", figure=f"{middle['plain'] / middle['apart']:.2f}"),
        at_least(f"{at}shared / plain", middle["plain"] / middle["shared"], shape.target),
        Row(name=f"{at}shared, of the matrix rate", figure=f"{least / middle['shared']:.2f}"),
    ]


async def measure_adapters(settings: Settings, shape: Shape) -> list[Row]:
    """Forward and backward of 64 sequences: through one adapter, and through two, together and one after the other."""
    async with LocalBackend(
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        token_budget=shape.token_budget(settings.device),
    ) as backend:
        lora = Lora(rank=RANK, alpha=RANK)
        first, second = [await backend.create_model(settings.model, lora=lora, seed=seed) for seed in (0, 1)]
        data = batch(vocabulary_of(resolve_model(settings.model)), shape, shared=True)
        half, other = data[: len(data) // 2], data[len(data) // 2 :]

        async def one() -> float:
            start = time.perf_counter()
            await first.forward_backward(data, ImportanceSampling())
            return time.perf_counter() - start

        async def together() -> float:
            start = time.perf_counter()
            await backend.forward_backward([(first, half, ImportanceSampling()), (second, other, ImportanceSampling())])
            return time.perf_counter() - start

        async def apart() -> float:
            start = time.perf_counter()
            await first.forward_backward(half, ImportanceSampling())
            await second.forward_backward(other, ImportanceSampling())
            return time.perf_counter() - start

        middle = await in_turn({"one": one, "together": together, "apart": apart}, settings.rounds)
    return [
        at_most(f"{shape.name} two adapters in one pass / one", middle["together"] / middle["one"], 1.2),
        Row(name=f"{shape.name} two adapters, one by one / one", figure=f"{middle['apart'] / middle['one']:.2f}"),
    ]


async def main(settings: BackendSettings) -> list[Row]:
    """All shapes."""
    torch.set_num_threads(settings.threads)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(str(resolve_model(settings.model)), dtype=settings.dtype)
    shapes = [SHAPES[name] for name in settings.shapes]
    speed = [row for shape in shapes for row in await measure_shape(settings, shape, model)]
    adapters = await measure_adapters(settings, shapes[0])
    return [*speed, *memory_rows(settings, shapes[0]), *adapters]


def _settings() -> BackendSettings:
    parser = arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    return BackendSettings(**vars(parser.parse_args()))


if __name__ == "__main__":
    chosen = _settings()
    sys.exit(0 if report(f"{chosen.dtype}, {chosen.model}", anyio.run(main, chosen), chosen.device) else 1)
