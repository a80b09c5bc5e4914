"""With the torch sampler: each publication is compared with what is drawn of it, and a planted drift stops the next one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from torch import Tensor

from sparring import Local
from sparring.backend.datum import token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.canary import DRAWN
from sparring.backend.local.lora import Adapter, AdapterWeights
from sparring.backend.local.model import TorchModel
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.losses import CrossEntropy
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import BackendError
from tests.backend.batches import LORA, groups


def watched(folder: Path, **settings: Any) -> LocalBackend:
    return LocalBackend(cache_dir=folder, canary=True, **{"dtype": "float32"} | settings)


async def published(backend: LocalBackend, model: TorchModel, version: int) -> None:
    """A step and its weights, until the canary's tokens are drawn of them."""
    model.forward_backward(token_mean(groups(seed=version)), CrossEntropy())
    await model.optim_step(Adam(learning_rate=1e-2))
    await model.publish(version)
    client = await model.sampler(version=version)
    prompt, params = np.arange(3, 9, dtype=np.int32), SamplingParams(max_tokens=2 * DRAWN)
    await client.sample(prompt, params)  # longer than those that were asked for before it
    await client.aclose()
    assert backend.statistics()["sampler/drawn_tokens"] >= (version + 1) * 3 * DRAWN


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [LORA, None], ids=["an adapter", "all weights"])
async def test_nothing_is_said_where_nothing_is_wrong(
    tmp_path: Path, tiny_llama: Path, dtype: str, lora: Lora | None
) -> None:
    async with watched(tmp_path, dtype=dtype) as backend:
        model = await backend.create_model(str(tiny_llama), lora=lora)
        for version in range(4):
            await published(backend, model, version)


async def test_a_sampler_that_draws_otherwise_stops_the_next_publication(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = TorchSampler._logits  # pyright: ignore[reportPrivateUsage]

    def sharper(self: TorchSampler, *given: Any) -> Tensor:
        return logits(self, *given) * 1.5

    async with watched(tmp_path) as backend:
        model = await backend.create_model(str(tiny_llama), lora=LORA)
        await published(backend, model, 0)
        monkeypatch.setattr(TorchSampler, "_logits", sharper)
        await published(backend, model, 1)
        with pytest.raises(
            BackendError, match=r"8 tokens that the torch sampler drew .* in float32; seen at version 1"
        ):
            await model.publish(2)


async def test_weights_that_are_not_the_trainer_s_are_not_published(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot of before the step."""
    snapshot, taken = Adapter.snapshot, list[AdapterWeights]()

    def stale(self: Adapter) -> AdapterWeights:
        taken.append(snapshot(self))
        return replace(taken[0])

    monkeypatch.setattr(Adapter, "snapshot", stale)
    async with watched(tmp_path) as backend:
        model = await backend.create_model(str(tiny_llama), lora=LORA)
        with pytest.raises(
            BackendError, match=r"version 1: \d+ of \d+ matrices that were published are not the trainer's"
        ):
            for version in range(2):
                await published(backend, model, version)


async def test_a_run_is_watched_and_a_deterministic_one_is_not(tmp_path: Path, tiny_llama: Path) -> None:
    """What a deterministic sampler draws costs as much for one as for all that it could draw."""
    assert Local().canary
    async with watched(tmp_path, deterministic=True) as backend:
        model = await backend.create_model(str(tiny_llama), lora=LORA)
        await model.publish(0)
        await anyio.sleep(0.2)
        assert backend.statistics()["sampler/drawn_tokens"] == 0
