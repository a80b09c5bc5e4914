"""All weights of a model in vLLM: the conformance suite, versions that take turns, an engine that dies in between."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import anyio
import pytest

from sparring.backend.check import (
    check_cancelled,
    check_closing,
    check_distribution,
    check_ends,
    check_inflight,
    check_likely,
    check_parity,
    check_seeds,
    check_turns,
    check_versions,
)
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.vllm import VllmSampler
from sparring.backend.vllm.files import WeightsFile, WeightsFolder, usual_parent
from sparring.backend.vllm.turns import Turns
from sparring.errors import BackendError
from tests.backend.drawing import prompt_of
from tests.backend.vllm.engines import done, learned, same

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.parametrize("anyio_backend", ["trio"])]
PARAMS = SamplingParams(max_tokens=60, seed=3)


@pytest.fixture
async def model(whole_backend: LocalBackend, tiny_tied: Path) -> TorchModel:
    return await whole_backend.create_model(str(tiny_tied))


async def test_the_conformance_suite(model: TorchModel, whole: VllmSampler) -> None:
    """Two versions are drawn from at the same time, and scored; the output layer that is the embedding moves too."""
    await check_parity(model)
    await check_distribution(model)
    await check_ends(model)
    await check_seeds(model)
    await check_likely(model)
    await check_versions(model, first=2)
    await check_turns(model, first=4)
    await check_inflight(model, first=6)
    await check_cancelled(model, lambda: whole.statistics().requests)


async def test_an_engine_that_dies_under_requests_comes_back_with_the_right_weights(
    model: TorchModel, whole: VllmSampler
) -> None:
    """Not with the base's, nor with those of the other version: each request finds what it named, and none is lost."""
    old, new = await learned(model, 0), await learned(model, 1)
    wanted = [await client.sample(prompt_of(0, 40), PARAMS, n=4) for client in (old, new)]
    assert not same(*wanted)
    died = whole.statistics().died
    found: dict[int, list[SampledSequence]] = {}

    async def draw(place: int, client: SamplingClient) -> None:
        found[place] = await client.sample(prompt_of(0, 40), PARAMS, n=4)

    async with anyio.create_task_group() as group:
        for place in range(6):
            group.start_soon(draw, place, (old, new)[place % 2])
        await anyio.wait_all_tasks_blocked()
        for process in whole.replicas.processes:
            os.kill(process, signal.SIGKILL)
    assert whole.statistics().died == died + 1
    for place, samples in found.items():
        assert same(samples, wanted[place % 2]), place
        assert {sample.versions for sample in samples} == {((place % 2, 60),)}


async def test_versions_are_removed_when_nobody_needs_them(model: TorchModel, whole: VllmSampler) -> None:
    before = whole.statistics().versions
    held = await learned(model, 0)
    for version in (1, 2, 3):
        await (await learned(model, version)).aclose()
    assert whole.statistics().versions == before + 2
    assert {sample.versions for sample in await held.sample(prompt_of(0, 5), PARAMS)} == {((0, 60),)}
    await held.aclose()
    await model.unload()
    await done(model, whole)
    assert whole.statistics().versions == before


class Reused(WeightsFolder):
    """The planted defect: what is new has the name of what was installed before."""

    def write(self, files: Mapping[str, bytes], *, version: int) -> WeightsFile:
        fresh = super().write(files, version=version)
        return WeightsFile(name="reused", number=1, version=0, folder=fresh.folder.rename(self.path / "reused"))


async def test_stale_weights_are_seen_at_publication(
    model: TorchModel, whole: VllmSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the canary where vLLM was never told of the new ones; by vLLM's own stamp where requests meet another's turn."""
    reused = Reused()
    monkeypatch.setattr(whole, "_files", reused)
    client = await learned(model, 0)
    await client.aclose()
    shutil.rmtree(reused.path / "reused")
    with pytest.raises(BackendError, match="drifted apart"):
        await learned(model, 1)
    monkeypatch.undo()
    reused.close()
    monkeypatch.setattr(Turns, "of", lambda turns, weights: nullcontext())
    with pytest.raises(BackendError, match=r"drew with weights '1:0', which does not say the version of"):
        await learned(model, 2)


async def test_a_file_that_cannot_be_read_is_said_and_the_next_is_taken(
    model: TorchModel, whole: VllmSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine that began to read it is replaced."""
    before = await learned(model, 0)
    wanted = await before.sample(prompt_of(0, 40), PARAMS)
    monkeypatch.setattr("sparring.backend.local.served.save", lambda tensors, metadata: b"damaged")
    with pytest.raises(BackendError, match="vLLM did not take the weights"):
        await learned(model, 1)
    monkeypatch.undo()
    assert same(await before.sample(prompt_of(0, 40), PARAMS), wanted)
    await (await learned(model, 2)).aclose()


async def test_closing_leaves_nothing(tiny_wide: Path, tmp_path: Path) -> None:
    """On an engine of its own, of a model whose output layer is not its embedding."""

    async def use() -> None:
        async with LocalBackend(dtype="float32", threads=1, cache_dir=tmp_path, sampler="vllm") as backend:
            model = await backend.create_model(str(tiny_wide))
            await check_versions(model)
            await learned(model, 5)

    with anyio.fail_after(200):
        await check_closing(use, folders=[usual_parent()])
