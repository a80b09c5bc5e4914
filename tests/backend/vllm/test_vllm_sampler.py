"""The vLLM sampler on a tiny model: the conformance suite, what it refuses, when versions are unloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.backend.check import check_backend
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm import VllmSampler
from sparring.backend.vllm.files import WeightsFile, WeightsFolder
from sparring.errors import BackendError, CheckFailed, SettingError, UnsupportedError
from tests.backend.batches import spread
from tests.backend.drawing import assert_refused, prompt_of
from tests.backend.vllm.engines import done

pytestmark = [pytest.mark.vllm, pytest.mark.parametrize("anyio_backend", ["asyncio"])]
LORA = Lora(rank=8, alpha=16.0)


@pytest.fixture
async def model(backend: LocalBackend, tiny_wide: Path) -> TorchModel:
    made = await backend.create_model(str(tiny_wide), lora=LORA)
    spread(made)
    return made


async def test_the_conformance_suite(backend: LocalBackend, served: VllmSampler, tiny_wide: Path) -> None:
    await check_backend(backend, str(tiny_wide), lora=LORA, busy=lambda: served.statistics().requests)


async def test_versions_are_unloaded_when_nobody_needs_them(model: TorchModel, served: VllmSampler) -> None:
    before = served.statistics().versions
    for version in range(3):
        await model.publish(version)
    assert served.statistics().versions == before + 1
    held = await model.sampler(version=2)
    await held.logprobs([5, 6])  # asked after what unloads the older ones
    assert len(folders(served)) == before + 1
    await model.publish(3)
    await model.publish(4)
    assert served.statistics().versions == before + 2
    sample = await held.sample(prompt_of(0, 5), SamplingParams(max_tokens=3))
    assert sample[0].versions == ((2, 3),)
    await held.aclose()
    await model.unload()
    await done(model, served)
    assert served.statistics().versions == before


async def test_what_cannot_be_drawn_is_refused(model: TorchModel, backend: LocalBackend, tiny_wide: Path) -> None:
    client = await model.sampler()
    await assert_refused(client)
    full = prompt_of(1, 256)
    scores = await client.logprobs(full)
    assert np.isnan(scores[0]) and np.isfinite(scores[1:]).all() and scores.shape == (256,)
    for params, said in (
        (SamplingParams(max_tokens=1, temperature=0.001), "temperature=0.001"),
        (SamplingParams(max_tokens=1, temperature=2.5), "temperature=2.5"),
        (SamplingParams(max_tokens=1, stop=("",)), "empty"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            await client.sample([5], params)
    with pytest.raises(SettingError, match="no version is published yet"):
        await model.sampler("inflight")
    with pytest.raises(SettingError, match=r"rank=16.*up to 8"):
        await backend.create_model(str(tiny_wide), lora=Lora(rank=16))
    await client.aclose()
    await client.aclose()
    with pytest.raises(BackendError, match="closed"):
        await client.sample([5], SamplingParams(max_tokens=1))


async def test_one_token_is_scored_too(model: TorchModel) -> None:
    client = await model.sampler()
    scores = await client.logprobs([7])
    assert scores.shape == (1,) and np.isnan(scores[0])


class Reused(WeightsFolder):
    """The planted defect: every version is written over the one before, under the same name and number."""

    def write(self, files: Any, *, version: int) -> WeightsFile:
        fresh = super().write(files, version=version)
        folder = self.path / "reused"
        folder.mkdir(exist_ok=True)
        for path in fresh.folder.iterdir():
            path.replace(folder / path.name)
        return WeightsFile(name="reused", number=999, version=version, folder=folder)

    def remove(self, weights: WeightsFile) -> None:
        """What comes next is written over it."""


@pytest.mark.parametrize("canary", [True, False])
async def test_a_stale_cache_is_seen(
    backend: LocalBackend, served: VllmSampler, tiny_wide: Path, monkeypatch: pytest.MonkeyPatch, *, canary: bool
) -> None:
    """By the canary at publication; and where that looks away, by the suite."""
    reused = Reused()
    monkeypatch.setattr(served, "_files", reused)
    if not canary:
        monkeypatch.setattr("sparring.backend.local.served.compare", lambda trainer, prompt, sample: None)
    with pytest.raises(
        BackendError if canary else CheckFailed, match="drifted apart" if canary else "log-probs differ"
    ):
        await check_backend(backend, str(tiny_wide), lora=LORA)
    reused.close()


def folders(served: VllmSampler) -> list[Path]:
    """Of versions; what follows a model has links to them."""
    files = served._files  # pyright: ignore[reportPrivateUsage]
    assert files is not None
    return [path for path in files.path.iterdir() if path.is_dir() and not path.is_symlink()]
