"""What the tests of the sampler share: tiny bases and adapters, prompts, an engine that is driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import numpy as np
import pytest
import torch

from sparring.arrays import I32
from sparring.backend.local.base import BaseModel, load_base
from sparring.backend.local.lora import Adapter, AdapterWeights
from sparring.backend.local.source import Source, Stamped
from sparring.backend.local.thread import Background
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.errors import ContextFull, SettingError

T = TypeVar("T")
VOCABULARY = 320


def base_of(folder: Path) -> BaseModel:
    return load_base(folder, dtype=torch.float32, device=torch.device("cpu"))


def adapter_of(base: BaseModel, seed: int) -> AdapterWeights:
    """An adapter that matters: a fresh one's B is zero."""
    adapter = Adapter(base.targets, Lora(rank=4, alpha=8.0), seed=seed, dtype=base.dtype, device=base.device)
    generator = torch.Generator().manual_seed(seed)
    for b in adapter.master_b:
        b.normal_(0, 0.05, generator=generator)
    adapter.refresh()
    return adapter.snapshot()


def fixed(version: int, weights: AdapterWeights | None = None) -> Source:
    """A source that never moves."""
    return Source(Stamped(version=version, weights=weights))


class HandEngine:
    """An engine without a thread: a test makes every step by hand."""

    closed = False

    def __init__(self) -> None:
        self.background: list[Background] = []

    def submit(self, run: Callable[[], T], name: str) -> PendingResult[T]:
        pending: PendingResult[T] = PendingResult(name)
        pending.succeed(run())
        return pending

    def register(self, background: Background) -> None:
        self.background.append(background)

    def wake(self) -> None: ...

    def succeed(self, pending: PendingResult[T], value: T) -> None:
        pending.succeed(value)

    def fail(self, pending: PendingResult[Any], error: BaseException) -> None:
        pending.fail(error)


def prompt_of(seed: int, length: int) -> I32:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).astype(np.int32)


async def all_of(*calls: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    async def one(index: int) -> None:
        results[index] = await calls[index]()

    async with anyio.create_task_group() as group:
        for index in range(len(calls)):
            group.start_soon(one, index)
    return results


async def assert_refused(client: SamplingClient) -> None:
    """By every sampler of a tiny model, whose context has 256 tokens: what does not fit, and what is no prompt."""
    with pytest.raises(ContextFull, match=r"200 tokens and max_tokens=57 .* 256"):
        await client.sample(prompt_of(0, 200), SamplingParams(max_tokens=57))
    (whole,) = await client.sample(prompt_of(0, 200), SamplingParams(max_tokens=56))
    assert len(whole.tokens) == 56
    with pytest.raises(ContextFull, match="257"):
        await client.logprobs([5] * 257)
    wrong: list[tuple[Any, str]] = [([], "at least one"), ([5, 320], "320"), ([-1], "-1"), ([[5]], "shape")]
    for bad, said in wrong:
        with pytest.raises(SettingError, match=said):
            await client.sample(bad, SamplingParams(max_tokens=1))
        with pytest.raises(SettingError, match=said):
            await client.logprobs(bad)
    with pytest.raises(SettingError, match="n=0"):
        await client.sample([5], SamplingParams(max_tokens=1), n=0)
