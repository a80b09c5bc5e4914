"""One step of GRPO's shape, by a plain loop of transformers and PEFT and by the local backend: what the benchmarks compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from sparring.backend import Adam, Datum, ImportanceSampling, token_mean
from sparring.backend.local.model import TorchModel

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
