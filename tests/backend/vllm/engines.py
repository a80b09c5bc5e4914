"""What the tests of vLLM share: results on whichever event loop runs, backends on an engine that is there, moved weights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import numpy as np
import torch

from sparring.backend.local import LocalBackend
from sparring.backend.local.base import load_base
from sparring.backend.local.model import TorchModel
from sparring.backend.local.served import served_model
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SampledSequence, SamplingClient
from sparring.backend.vllm import VllmSampler, VllmSettings
from sparring.backend.vllm.asked import Post
from tests.backend.batches import trainer

T = TypeVar("T")


class Relay:
    """Settles results on the event loop of whichever test runs."""

    def __init__(self) -> None:
        self.to: Post | None = None

    def succeed(self, pending: PendingResult[T], value: T) -> None:
        if self.to is not None:
            self.to.succeed(pending, value)

    def fail(self, pending: PendingResult[Any], error: BaseException) -> None:
        if self.to is not None:
            self.to.fail(pending, error)


def sampler_on(folder: Path, relay: Relay, *, rank: int | None, start_within: float = 600.0) -> VllmSampler:
    """vLLM on a tiny model in fp32, for 4 adapters, or for all weights."""
    base = load_base(folder, dtype=torch.float32, device=torch.device("cpu"))
    settings = VllmSettings(
        max_loras=4, max_lora_rank=rank, slots=64, cache_tokens=16384, stuck_after=5.0, start_within=start_within
    )
    return VllmSampler(served_model(base, folder), relay, settings)


@asynccontextmanager
async def backend_on(
    sampler: VllmSampler, folder: Path, relay: Relay, cache: Path, *, whole: bool
) -> AsyncIterator[LocalBackend]:
    """A backend that samples from an engine which outlives it."""
    with anyio.fail_after(300):
        async with LocalBackend(dtype="float32", threads=2, cache_dir=cache, sampler="vllm", max_loras=4) as backend:
            backend._served[folder, whole] = sampler  # pyright: ignore[reportPrivateUsage]
            relay.to = backend._engine  # pyright: ignore[reportPrivateUsage]
            yield backend
            relay.to = None
            backend._served.clear()  # pyright: ignore[reportPrivateUsage]


async def learned(model: TorchModel, version: int) -> SamplingClient:
    """Weights that were moved, published and opened."""
    master = trainer(model).adapter.master
    far = 0.02 if model.info.lora is None else 0.2
    master.add_(torch.randn(master.shape, generator=torch.Generator().manual_seed(version)), alpha=far)
    trainer(model).adapter.refresh()
    await model.publish(version)
    return await model.sampler(version=version)


async def done(model: TorchModel, sampler: VllmSampler) -> None:
    """What was let go of so far is gone, in vLLM too: a model that is followed first, then the version that it had."""
    await model._engine.submit(lambda: None, "wait")  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        for thread in sampler.replicas.threads:
            await anyio.to_thread.run_sync(thread.submit(lambda engine: engine.answer()).result)


def same(one: Sequence[SampledSequence], other: Sequence[SampledSequence]) -> bool:
    return all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))
