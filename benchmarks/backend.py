"""How fast the local backend trains, against the plain loop that one would write with transformers and PEFT.

    python -m benchmarks.backend [--model NAME] [--rounds 3] [--dtype bfloat16] [--threads 2] [--shapes 45/30 400/60 20/300]

Steps of GRPO's shape: 8 prompts with 8 completions each, LoRA of rank 16 on every linear layer, forward, backward and an
optimizer step, in micro-batches of the same number of tokens. The ways take turns, so that a noisy machine is noisy for all;
the first round warms up:

    plain     transformers + PEFT, padded batches, logits of every position
    apart     sparring, no two prompts equal: log-probs at sampled positions only
    shared    sparring, 8 prompts with 8 completions each: every prompt computed once

Tokens per second count every token of every sequence, computed or shared, so the figures are comparable. `of the matrix rate`
says how long the products that cannot be avoided would take at the rate of one large product, as a part of the time taken.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks._rows import Row, Settings, arguments, at_least, report
from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model

PROMPTS, COMPLETIONS, RANK = 8, 8, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens of a prompt and of a completion, sequences in a micro-batch of the plain loop, and the gain that is wanted."""

    prompt: int
    completion: int
    sequences: int
    target: float

    @property
    def name(self) -> str:
        """As the command line names it."""
        return f"{self.prompt}/{self.completion}"

    @property
    def token_budget(self) -> int:
        """Of our micro-batches: the same number of tokens."""
        return self.sequences * (self.prompt + self.completion)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(prompt=45, completion=30, sequences=16, target=3.0),
        Shape(prompt=400, completion=60, sequences=4, target=4.0),
        Shape(prompt=20, completion=300, sequences=4, target=1.5),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings(Settings):
    """And which shapes."""

    shapes: list[str]


def batch(vocabulary: int, shape: Shape, *, shared: bool, seed: int = 0) -> list[Datum]:
    """64 sequences of random tokens; the same lengths whether prompts are shared or not."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(PROMPTS):
        prompt = random.integers(3, vocabulary, shape.prompt)
        for _ in range(COMPLETIONS):
            own = prompt if shared else random.integers(3, vocabulary, shape.prompt)
            tokens = np.concatenate([own, random.integers(3, vocabulary, shape.completion)]).astype(np.int32)
            mask = np.arange(len(tokens)) >= shape.prompt
            scored = mask.astype(np.float32)
            data.append(
                Datum(
                    tokens=tokens,
                    mask=mask,
                    logprobs=-10 * scored,
                    advantages=np.float32(random.normal()) * scored,
                    weights=scored,
                )
            )
    return token_mean(data)


class PlainLoop:
    """What one writes without a library for it."""

    def __init__(self, folder: Path, dtype: str) -> None:
        base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: nn.Module = get_peft_model(base, config)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)

    def step(self, data: Sequence[Datum], size: int) -> None:
        """Forward, backward, optimizer step, in batches of `size` sequences."""
        for start in range(0, len(data), size):
            part = data[start : start + size]
            longest = max(len(datum.tokens) for datum in part)
            ids, seen = torch.zeros(len(part), longest, dtype=torch.long), torch.zeros(len(part), longest)
            mask, q, advantages = (torch.zeros(len(part), longest) for _ in range(3))
            for i, datum in enumerate(part):
                length = len(datum.tokens)
                ids[i, :length], seen[i, :length] = torch.from_numpy(datum.tokens), 1
                mask[i, :length] = torch.from_numpy(datum.mask)
                q[i, :length] = torch.from_numpy(datum.logprobs)
                advantages[i, :length] = torch.from_numpy(datum.advantages)
            logits = self.model(input_ids=ids, attention_mask=seen).logits[:, :-1].float()
            lp = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[..., 0]
            loss = -(torch.exp(lp - q[:, 1:]) * advantages[:, 1:] * mask[:, 1:]).sum()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


async def our_step(model: TorchModel, data: Sequence[Datum]) -> None:
    """The same through the backend."""
    model.forward_backward(data, ImportanceSampling())
    await model.optim_step(Adam())


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large product on this machine now: the best of some."""
    a, b = torch.randn(1024, 1536).to(dtype), torch.randn(1536, 1024).to(dtype)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024 * 1536 * 1024 / (time.perf_counter() - start))
    return best


def needed(model: nn.Module, shape: Shape) -> float:
    """FLOP of the products that a step with shared prompts cannot avoid: through frozen weights forwards and backwards
    (these get no gradient), for every distinct token; through the head for sampled positions alone."""
    head = model.get_input_embeddings().weight.numel()  # type: ignore[operator, union-attr]
    body = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    sampled = PROMPTS * COMPLETIONS * shape.completion
    return 4.0 * (body * (PROMPTS * shape.prompt + sampled) + head * sampled)


async def seconds_of(step: Callable[[], Awaitable[None]]) -> float:
    """One step."""
    start = time.perf_counter()
    await step()
    return time.perf_counter() - start


async def measure_shape(settings: Settings, shape: Shape, plain: PlainLoop) -> list[Row]:
    """All ways in turn."""
    vocabulary = int(plain.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    apart, shared = batch(vocabulary, shape, shared=False), batch(vocabulary, shape, shared=True)
    found: dict[str, list[float]] = {"plain": [], "apart": [], "shared": []}
    async with LocalBackend(
        dtype=settings.dtype,
        threads=settings.threads,
        token_budget=shape.token_budget,
    ) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))

        async def plain_step() -> None:
            plain.step(shared, shape.sequences)

        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "plain": plain_step,
            "apart": lambda: our_step(model, apart),
            "shared": lambda: our_step(model, shared),
        }
        for number in range(settings.rounds + 1):
            for name, step in ways.items():
                taken = await seconds_of(step)
                if number > 0:
                    found[name].append(taken)
    return rows(shape, found, needed(plain.model, shape) / matrix_rate(getattr(torch, settings.dtype)))


def rows(shape: Shape, found: dict[str, list[float]], least: float) -> list[Row]:
    """Rates and gains of one shape; `least` seconds is what its products take at the machine's matrix rate."""
    tokens = PROMPTS * COMPLETIONS * (shape.prompt + shape.completion)
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    at = f"{shape.name} "
    return [
        *(Row(name=f"{at}{name}, tok/s", figure=f"{tokens / seconds:.0f}") for name, seconds in middle.items()),
        Row(name=f"{at}apart / plain", figure=f"{middle['plain'] / middle['apart']:.2f}"),
        at_least(f"{at}shared / plain", middle["plain"] / middle["shared"], shape.target),
        Row(name=f"{at}shared, of the matrix rate", figure=f"{least / middle['shared']:.2f}"),
    ]


async def main(settings: BackendSettings) -> list[Row]:
    """All shapes."""
    torch.set_num_threads(settings.threads)
    plain = PlainLoop(resolve_model(settings.model), settings.dtype)
    return [row for name in settings.shapes for row in await measure_shape(settings, SHAPES[name], plain)]


def _settings() -> BackendSettings:
    parser = arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    return BackendSettings(**vars(parser.parse_args()))


if __name__ == "__main__":
    chosen = _settings()
    sys.exit(0 if report(f"{chosen.dtype}, {chosen.model}", anyio.run(main, chosen)) else 1)
