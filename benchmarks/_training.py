"""One step of GRPO's shape, by a plain loop of transformers and PEFT and by the local backend: what the benchmarks compare.

python -m benchmarks._training plain|apart|shared MODEL DTYPE THREADS SHAPE     a step for each line read, prints its seconds
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks._rows import Settings
from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model

PROMPTS, COMPLETIONS, RANK, VOCABULARY = 8, 8, 16, 49000
WAYS = ("plain", "apart", "shared")


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


def batch(vocabulary: int, shape: Shape, *, shared: bool, prompts: int = PROMPTS, seed: int = 0) -> list[Datum]:
    """Sequences of random tokens, 8 for each prompt; the same lengths whether prompts are shared or not."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(prompts):
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


class Child:
    """One way of making a step, in a process of its own that waits between two of them."""

    def __init__(self, way: str, settings: Settings, shape: Shape) -> None:
        given = [way, settings.model, settings.dtype, str(settings.threads), shape.name]
        command = [sys.executable, "-m", "benchmarks._training", *given]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    async def step(self) -> float:
        """The seconds that it took."""
        return float(await anyio.to_thread.run_sync(self._asked))

    def _asked(self) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


async def _serve(way: str, model: str, dtype: str, threads: int, shape: Shape) -> None:
    assert dtype in ("bfloat16", "float32"), dtype
    torch.set_num_threads(threads)
    data = batch(VOCABULARY, shape, shared=way != "apart")

    async def answer(step: Callable[[], Awaitable[None]]) -> None:
        for _ in iter(sys.stdin.readline, ""):
            start = time.perf_counter()
            await step()
            print(time.perf_counter() - start, flush=True)

    if way == "plain":
        plain = PlainLoop(resolve_model(model), dtype)

        async def plain_step() -> None:
            plain.step(data, shape.sequences)

        await answer(plain_step)
        return
    async with LocalBackend(dtype=dtype, threads=threads, token_budget=shape.token_budget) as backend:
        ours = await backend.create_model(model, lora=Lora(rank=RANK, alpha=RANK))
        await answer(lambda: our_step(ours, data))


if __name__ == "__main__":
    chosen, name, number_format, count, shape_name = sys.argv[1:]
    anyio.run(_serve, chosen, name, number_format, int(count), SHAPES[shape_name])
