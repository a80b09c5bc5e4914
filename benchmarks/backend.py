"""How fast the local backend trains, against the plain loop that one would write with transformers and PEFT.

    python -m benchmarks.backend [--model NAME] [--rounds 5] [--dtype bfloat16] [--threads 2]

One step of GRPO's shape: 64 sequences of a 45-token prompt and 10 to 30 sampled tokens, LoRA of rank 16 on every linear layer,
forward, backward and an optimizer step. Three ways take turns, so that a noisy machine is noisy for all:

    plain     transformers + PEFT, padded batches of 16, logits of every position
    apart     sparring, no two prompts equal: log-probs at sampled positions only
    shared    sparring, 8 prompts with 8 completions each: every prompt computed once

Tokens per second count every token of every sequence, computed or shared, so the three figures are comparable.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from sparring.backend import Adam, Datum, ImportanceSampling, Lora, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model

PROMPTS, COMPLETIONS, PROMPT_TOKENS, RANK = 8, 8, 45, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    model: str
    rounds: int
    dtype: str
    threads: int


def batch(vocabulary: int, *, shared: bool, seed: int = 0) -> list[Datum]:
    """64 sequences of random tokens; the same lengths whether prompts are shared or not."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(PROMPTS):
        prompt = random.integers(3, vocabulary, PROMPT_TOKENS)
        for _ in range(COMPLETIONS):
            own = prompt if shared else random.integers(3, vocabulary, PROMPT_TOKENS)
            tokens = np.concatenate([own, random.integers(3, vocabulary, random.integers(10, 31))]).astype(np.int32)
            mask = np.arange(len(tokens)) >= PROMPT_TOKENS
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

    def __init__(self, folder: Path, settings: Settings) -> None:
        dtype = getattr(torch, settings.dtype)
        base = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: nn.Module = get_peft_model(base, config)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)

    def step(self, data: Sequence[Datum], size: int = 16) -> None:
        """Forward, backward, optimizer step."""
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


async def main(settings: Settings) -> None:
    """Run all ways in turn and print seconds and rates."""
    torch.set_num_threads(settings.threads)
    folder = resolve_model(settings.model)
    plain = PlainLoop(folder, settings)
    vocabulary = int(plain.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    apart, shared = batch(vocabulary, shared=False), batch(vocabulary, shared=True)
    tokens = sum(len(datum.tokens) for datum in shared)
    seconds: dict[str, list[float]] = {"plain": [], "apart": [], "shared": []}
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads) as backend:  # type: ignore[arg-type]
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        for number in range(settings.rounds + 1):
            for name, times in seconds.items():
                start = time.perf_counter()
                if name == "plain":
                    plain.step(shared)
                else:
                    await our_step(model, apart if name == "apart" else shared)
                if number > 0:  # the first round warms up
                    times.append(time.perf_counter() - start)
    report(settings, tokens, seconds)


def report(settings: Settings, tokens: int, seconds: dict[str, list[float]]) -> None:
    """One line a way."""
    print(
        f"{platform.processor() or platform.machine()}, {settings.threads} threads, {settings.dtype}, torch {torch.__version__}"
    )
    print(f"{settings.model}: {tokens} tokens a step, {settings.rounds} rounds")
    for name, times in seconds.items():
        best, middle = min(times), statistics.median(times)
        rate = f"{tokens / best:6.0f} tok/s best, {tokens / middle:6.0f} median"
        gain = min(seconds["plain"]) / best
        print(f"{name:8s} {best:6.2f} s best, {middle:6.2f} s median   {rate}   {gain:.2f}x plain")


def _settings() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    return Settings(**vars(parser.parse_args()))


if __name__ == "__main__":
    anyio.run(main, _settings())
