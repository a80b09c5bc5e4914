"""One step of GRPO's shape, by a plain loop of transformers and PEFT and by the local backend: what the benchmarks compare.

python -m benchmarks._training plain|apart|shared MODEL DTYPE THREADS DEVICE SHAPE     a step for each line read, prints its
seconds
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks._child import answer, given
from benchmarks._device import Measured, Watch
from benchmarks._rows import Settings
from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model

COMPLETIONS, RANK = 8, 16
WAYS = ("plain", "apart", "shared")

CUDA_TOKENS = 8192
"""Of a micro-batch on CUDA: what the plain loop has room for on a device of 80 GB, where a vocabulary is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens of a prompt and of a completion, prompts of a step (each with 8 completions), sequences in a micro-batch of the
    plain loop on a CPU, and the gain that is wanted."""

    prompt: int
    completion: int
    sequences: int = 4
    target: float = 0.0
    prompts: int = 8

    @property
    def name(self) -> str:
        """As the command line names it."""
        return f"{self.prompt}/{self.completion}"

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.completion

    @property
    def tokens(self) -> int:
        """Of a step, computed or shared."""
        return self.prompts * COMPLETIONS * self.length

    def token_budget(self, device: str) -> int:
        """Of a micro-batch of any way."""
        return CUDA_TOKENS if device.startswith("cuda") else self.sequences * self.length


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(prompt=45, completion=30, sequences=16, target=3.0),
        Shape(prompt=400, completion=60, sequences=4, target=4.0),
        Shape(prompt=20, completion=300, sequences=4, target=1.5),
    )
}


def shape_of(name: str) -> Shape:
    """One of `SHAPES`, or any other "prompt/completion", without a target."""
    if name in SHAPES:
        return SHAPES[name]
    prompt, completion = (int(part) for part in name.split("/"))
    return Shape(prompt=prompt, completion=completion)


def vocabulary_of(folder: Path) -> int:
    """Token ids of a model are below this."""
    return int(AutoConfig.from_pretrained(str(folder)).vocab_size)


def batch(vocabulary: int, shape: Shape, *, shared: bool, seed: int = 0) -> list[Datum]:
    """Sequences of random tokens, 8 for each prompt; the same lengths whether prompts are shared or not."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(shape.prompts):
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

    def __init__(self, folder: Path, dtype: str, device: str = "cpu") -> None:
        base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype)).to(device)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: nn.Module = get_peft_model(base, config)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.device = device

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
            ids, seen, mask, q, advantages = (one.to(self.device) for one in (ids, seen, mask, q, advantages))
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


Step = Callable[[Shape], Awaitable[Measured]]


@asynccontextmanager
async def steps(way: str, settings: Settings, token_budget: int | None) -> AsyncIterator[Step]:
    """Steps of any shape, made one way; ours takes its own token budget for None."""
    folder = resolve_model(settings.model)
    vocabulary = vocabulary_of(folder)
    made: dict[Shape, list[Datum]] = {}

    def data_of(shape: Shape) -> list[Datum]:
        if shape not in made:
            made[shape] = batch(vocabulary, shape, shared=way != "apart")
        return made[shape]

    if way == "plain":
        assert token_budget is not None
        plain = PlainLoop(folder, settings.dtype, settings.device)

        async def plain_step(shape: Shape) -> Measured:
            data = data_of(shape)
            watch = Watch(settings.device)
            plain.step(data, max(1, token_budget // shape.length))
            return watch.measured()

        yield plain_step
        return
    async with LocalBackend(
        dtype=settings.dtype, device=settings.device, threads=settings.threads, token_budget=token_budget
    ) as backend:
        ours = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))

        async def step(shape: Shape) -> Measured:
            data = data_of(shape)
            watch = Watch(settings.device)
            await our_step(ours, data)
            return watch.measured()

        yield step


async def _serve(way: str, settings: Settings, shape: Shape) -> None:
    torch.set_num_threads(settings.threads)
    async with steps(way, settings, shape.token_budget(settings.device)) as step:

        async def seconds(_: str) -> float:
            return (await step(shape)).seconds

        await answer(seconds)


if __name__ == "__main__":
    chosen, given_settings, (shape_name,) = given()
    anyio.run(_serve, chosen, given_settings, shape_of(shape_name))
