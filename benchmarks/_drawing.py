"""Drawing many sequences at once: by transformers' `generate`, and through a sampling client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sparring.arrays import I32
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams


class Generate:
    """transformers, as one writes it."""

    def __init__(self, folder: Path, dtype: str, device: str = "cpu") -> None:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
        self.model: Any = model.to(device).eval()

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
