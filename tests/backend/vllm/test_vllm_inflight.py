"""vLLM with weights in flight: models that are followed side by side, an engine that dies in between, what the canary sees."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm import VllmSampler
from sparring.backend.vllm.following import Followed
from sparring.errors import BackendError
from tests.backend.drawing import prompt_of
from tests.backend.vllm.engines import Relay, backend_on, done, learned

pytestmark = [pytest.mark.vllm, pytest.mark.parametrize("anyio_backend", ["trio"])]
PROMPT = prompt_of(0, 40)
LORA = Lora(rank=8, alpha=16.0)
BY_KIND = pytest.mark.parametrize("kind", ["adapters", "whole"])


@pytest.fixture
async def on(
    kind: str, request: pytest.FixtureRequest, relay: Relay, tmp_path: Path
) -> AsyncIterator[tuple[LocalBackend, str, VllmSampler]]:
    """A backend on the shared engine of either kind, the model there, and its sampler."""
    fixtures = ("served", "tiny_wide") if kind == "adapters" else ("whole", "tiny_tied")
    sampler, folder = (request.getfixturevalue(name) for name in fixtures)
    async with backend_on(sampler, folder, relay, tmp_path, whole=kind == "whole") as backend:
        yield backend, str(folder), sampler


@asynccontextmanager
async def drawing(client: SamplingClient, tokens: int) -> AsyncIterator[list[SampledSequence]]:
    """Sequences, of a seed, that are under way when the block begins, and there once it was left."""
    found: list[SampledSequence] = []

    async def draw() -> None:
        found.extend(await client.sample(PROMPT, SamplingParams(max_tokens=tokens, seed=7), n=4))

    async with anyio.create_task_group() as group:
        group.start_soon(draw)
        await client.sample(PROMPT, SamplingParams(max_tokens=1))
        yield found


async def assert_drawn_by(clients: Mapping[int, SamplingClient], samples: Sequence[SampledSequence]) -> None:
    """Each token's log-prob is that of the version it is stamped with, after the whole context."""
    for sample in samples:
        tokens, start = np.concatenate([PROMPT, sample.tokens]), 0
        assert [version for version, _ in sample.versions] == sorted({version for version, _ in sample.versions})
        for version, count in sample.versions:
            scored = (await clients[version].logprobs(tokens))[len(PROMPT) + start :][:count]
            np.testing.assert_allclose(sample.logprobs[start : start + count], scored, atol=1e-4)
            start += count
        assert start == len(sample.tokens)


@pytest.mark.parametrize("kind", ["adapters"])
async def test_models_on_one_engine_are_followed_side_by_side(on: tuple[LocalBackend, str, VllmSampler]) -> None:
    """vLLM has one label for the whole engine; each model's tokens are stamped with its own versions all the same."""
    backend, folder, _ = on
    models = [await backend.create_model(folder, lora=LORA, seed=seed) for seed in (1, 2)]
    fixed = [{first: await learned(model, first)} for model, first in zip(models, (0, 10), strict=True)]
    clients = [await model.sampler("inflight") for model in models]
    async with drawing(clients[0], 120) as one, drawing(clients[1], 120) as other:
        for index, version in ((0, 1), (1, 11), (0, 2)):
            fixed[index][version] = await learned(models[index], version)
    for versions, samples in zip(fixed, (one, other), strict=True):
        await assert_drawn_by(versions, samples)
    assert {version for sample in one for version, _ in sample.versions} <= {0, 1, 2}
    assert any(len(sample.versions) > 1 for sample in one), "none of them was under way when its model went on"
    for client, version in zip(clients, (2, 11), strict=True):
        (sample,) = await client.sample(PROMPT, SamplingParams(max_tokens=4))
        assert (client.version, sample.versions) == (version, ((version, 4),))


@BY_KIND
@pytest.mark.slow
async def test_an_engine_that_dies_while_a_version_is_on_its_way(on: tuple[LocalBackend, str, VllmSampler]) -> None:
    """Nothing is lost, what is asked again has no older weights than before, and the version arrives."""
    backend, folder, sampler = on
    model = await backend.create_model(folder, lora=LORA if sampler_takes_adapters(sampler) else None)
    clients = {0: await learned(model, 0)}
    inflight = await model.sampler("inflight")
    clients[1] = await learned(model, 1)
    died = sampler.statistics().died
    async with drawing(inflight, 120) as found, anyio.create_task_group() as group:
        group.start_soon(publish, model, 2, clients)
        await anyio.wait_all_tasks_blocked()
        for process in sampler.replicas.processes:
            os.kill(process, signal.SIGKILL)
    assert sampler.statistics().died == died + 1
    assert len(found) == 4 and min(sample.versions[0][0] for sample in found) >= 1
    await assert_drawn_by(clients, found)
    (after,) = await inflight.sample(PROMPT, SamplingParams(max_tokens=4))
    assert (inflight.version, after.versions) == (2, ((2, 4),))


def sampler_takes_adapters(sampler: VllmSampler) -> bool:
    return sampler._settings.max_lora_rank is not None  # pyright: ignore[reportPrivateUsage]


async def publish(model: TorchModel, version: int, clients: dict[int, SamplingClient]) -> None:
    clients[version] = await learned(model, version)


@BY_KIND
async def test_keys_and_values_of_older_weights_are_seen(
    on: tuple[LocalBackend, str, VllmSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect: what is cached is not forgotten when the weights change."""
    backend, folder, sampler = on
    await assert_drift_is_seen(backend, folder, sampler, lambda: keep_the_cache(monkeypatch))


def keep_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    pause: Callable[..., Awaitable[None]] = AsyncLLM.pause_generation

    async def paused(llm: Any, *, mode: str, clear_cache: bool) -> None:
        assert clear_cache
        await pause(llm, mode=mode, clear_cache=False)

    monkeypatch.setattr(AsyncLLM, "pause_generation", paused)


@pytest.mark.parametrize("kind", ["adapters"])
async def test_an_adapter_that_is_not_read_anew_is_seen(
    on: tuple[LocalBackend, str, VllmSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, folder, sampler = on
    await assert_drift_is_seen(
        backend, folder, sampler, lambda: monkeypatch.setattr(Followed, "point", lambda *_: None)
    )


async def assert_drift_is_seen(
    backend: LocalBackend, folder: str, sampler: VllmSampler, plant: Callable[[], None]
) -> None:
    """By the canary, at the second publication after the defect was planted at the latest; nothing is drawn any more then."""
    before = sampler.statistics().versions
    model = await backend.create_model(folder, lora=LORA if sampler_takes_adapters(sampler) else None)
    await model.publish(0)
    inflight = await model.sampler("inflight")
    plant()
    with pytest.raises(BackendError, match="drifted apart"):
        for version in (1, 2):
            await (await learned(model, version)).aclose()
    with pytest.raises(BackendError, match="is drawn no more: sampler and trainer drifted apart"):
        await inflight.sample(PROMPT, SamplingParams(max_tokens=1))
    await inflight.aclose()
    await model.unload()
    await done(model, sampler)
    assert sampler.statistics().versions == before


@BY_KIND
async def test_a_model_that_nobody_follows_any_more_is_followed_again(
    on: tuple[LocalBackend, str, VllmSampler],
) -> None:
    backend, folder, sampler = on
    before = sampler.statistics().versions
    model = await backend.create_model(folder, lora=LORA if sampler_takes_adapters(sampler) else None)
    for version in (0, 1):
        client = await learned(model, version)
        inflight = [await model.sampler("inflight") for _ in range(2)]
        await inflight[0].aclose()
        (sample,) = await inflight[1].sample(PROMPT, SamplingParams(max_tokens=4))
        assert sample.versions == ((version, 4),)
        scores, wanted = await inflight[1].logprobs(PROMPT), await client.logprobs(PROMPT)
        np.testing.assert_allclose(scores[1:], wanted[1:], atol=1e-5)
        await inflight[1].aclose()
        await client.aclose()
    await model.unload()
    await done(model, sampler)
    assert sampler.statistics().versions == before
