"""One vLLM engine for all tests that break nothing: starting one takes longer than most tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
import torch

from sparring.backend.local import LocalBackend
from sparring.backend.local.base import load_base
from sparring.backend.local.served import served_model
from sparring.backend.pending import PendingResult
from sparring.backend.vllm import VllmSampler, VllmSettings
from sparring.backend.vllm.asked import Post

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


@pytest.fixture(scope="session")
def relay() -> Relay:
    return Relay()


@pytest.fixture(scope="session")
def served(tiny_wide: Path, relay: Relay) -> Iterator[VllmSampler]:
    """vLLM on the tiny model in fp32: 4 versions, ranks up to 8."""
    base = load_base(tiny_wide, dtype=torch.float32, device=torch.device("cpu"))
    settings = VllmSettings(max_loras=4, max_lora_rank=8, slots=64, cache_tokens=16384, stuck_after=5.0)
    sampler = VllmSampler(served_model(base, tiny_wide), relay, settings)
    sampler.start()
    yield sampler
    sampler.close()


@pytest.fixture
async def backend(served: VllmSampler, relay: Relay, tiny_wide: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """A backend that samples from the shared engine."""
    with anyio.fail_after(300):
        async with LocalBackend(dtype="float32", threads=2, cache_dir=tmp_path, sampler="vllm", max_loras=4) as backend:
            backend._served[tiny_wide, False] = served  # pyright: ignore[reportPrivateUsage]
            relay.to = backend._engine  # pyright: ignore[reportPrivateUsage]
            yield backend
            relay.to = None
            backend._served.clear()  # pyright: ignore[reportPrivateUsage]
