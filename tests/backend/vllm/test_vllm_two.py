"""Two vLLM engines with the same versions: the suite, one that dies, one that does not take a version, and nothing left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from sparring.arrays import I32
from sparring.backend.check import check_closing, check_parity, check_versions
from sparring.backend.local import LocalBackend
from sparring.backend.local.canary import compare
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm import VllmSampler
from sparring.backend.vllm.files import usual_parent
from sparring.errors import BackendError
from tests.backend.drawing import prompt_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.parametrize("anyio_backend", ["trio"])]
PARAMS = SamplingParams(max_tokens=100, seed=3)


def standing(sampler: VllmSampler) -> tuple[int, int, int]:
    """Engines in the rotation, deaths, engines that left."""
    found = sampler.statistics()
    return found.replicas, found.died, found.left


def failing_first() -> Callable[..., None]:
    """The canary, that finds fault with what the first engine draws."""
    fails = [True]

    def compared(trainer: Any, prompt: I32, sample: SampledSequence) -> None:
        if fails.pop() if fails else False:
            raise BackendError("sampler and trainer drifted apart")
        compare(trainer, prompt, sample)

    return compared


def ours() -> set[Path]:
    """Of the files in memory those that are ours; what vLLM's killed process had there goes when this process ends."""
    return set(usual_parent().glob("sparring-vllm-*"))


async def all_of(client: SamplingClient, count: int) -> list[list[SampledSequence]]:
    """Requests with a beginning each, at the same time."""
    found: dict[int, list[SampledSequence]] = {}

    async def draw(place: int) -> None:
        found[place] = await client.sample(prompt_of(place, 140), PARAMS, n=2)

    async with anyio.create_task_group() as group:
        for place in range(count):
            group.start_soon(draw, place)
    return [found[place] for place in range(count)]


def assert_same(wanted: list[list[SampledSequence]], found: list[list[SampledSequence]]) -> None:
    for one, other in zip(wanted, found, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


async def test_two_engines(tiny_wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with LocalBackend(
            dtype="float32", threads=1, cache_dir=tmp_path, sampler="vllm", max_loras=4, replicas=2
        ) as backend:
            model = await backend.create_model(str(tiny_wide), lora=Lora(rank=8, alpha=16.0))
            (sampler,) = backend._served.values()  # pyright: ignore[reportPrivateUsage]
            await check_parity(model)
            await check_versions(model, first=2)
            client = await model.sampler(version=3)
            wanted = await all_of(client, 4)
            found: list[list[list[SampledSequence]]] = []

            async def again() -> None:
                found.append(await all_of(client, 4))

            async with anyio.create_task_group() as group:
                group.start_soon(again)
                await anyio.wait_all_tasks_blocked()
                for process in sampler.replicas.threads[0].processes:
                    os.kill(process, signal.SIGKILL)
            assert_same(wanted, found[0])
            assert standing(sampler) == (2, 1, 0)
            with monkeypatch.context() as patched:
                patched.setattr("sparring.backend.local.served.compare", failing_first())
                await model.publish(4)
            assert standing(sampler) == (1, 1, 1)
            assert_same(wanted, await all_of(client, 4))
            await model.publish(5)
            with monkeypatch.context() as patched, pytest.raises(BackendError, match="drifted apart"):
                patched.setattr("sparring.backend.local.served.compare", failing_first())
                await model.publish(6)
            assert standing(sampler) == (1, 1, 1), "the last one stays"
            await model.publish(7)

    before = ours()
    with anyio.fail_after(400):
        await check_closing(use)
    assert ours() == before
