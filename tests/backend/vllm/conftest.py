"""One vLLM engine of each kind for all tests that break nothing: starting one takes longer than most tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sparring.backend.local import LocalBackend
from sparring.backend.vllm import VllmSampler
from tests.backend.vllm.engines import Relay, backend_on, sampler_on


@pytest.fixture(scope="session")
def relay() -> Relay:
    return Relay()


@pytest.fixture(scope="session")
def served(tiny_wide: Path, relay: Relay) -> Iterator[VllmSampler]:
    """vLLM for adapters on the tiny model: 4 versions, ranks up to 8."""
    sampler = sampler_on(tiny_wide, relay, rank=8)
    sampler.start()
    yield sampler
    sampler.close()


@pytest.fixture(scope="session")
def whole(tiny_tied: Path, relay: Relay) -> Iterator[VllmSampler]:
    """vLLM for all weights of a tiny model whose output layer is its input embedding."""
    sampler = sampler_on(tiny_tied, relay, rank=None)
    sampler.start()
    yield sampler
    sampler.close()


@pytest.fixture
async def backend(served: VllmSampler, relay: Relay, tiny_wide: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """A backend that samples from the shared engine for adapters."""
    async with backend_on(served, tiny_wide, relay, tmp_path, whole=False) as backend:
        yield backend


@pytest.fixture
async def whole_backend(
    whole: VllmSampler, relay: Relay, tiny_tied: Path, tmp_path: Path
) -> AsyncIterator[LocalBackend]:
    """A backend that samples from the shared engine for all weights."""
    async with backend_on(whole, tiny_tied, relay, tmp_path, whole=True) as backend:
        yield backend
