"""The local backend as a whole: states, versions, shared bases, samplers, settings; on asyncio and trio."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import numpy as np
import pytest

from sparring.backend.datum import Datum, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import PPO, CrossEntropy, ImportanceSampling
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.backend.vllm.files import usual_parent
from sparring.errors import BackendError, SettingError, UnsupportedError
from tests.backend.batches import LORA, groups, lora_of, spread, trainer


async def test_a_loaded_state_continues_equally(backend: LocalBackend, tiny_llama: Path, tmp_path: Path) -> None:
    first = await backend.create_model(str(tiny_llama), lora=LORA, seed=1)
    second = await backend.create_model(str(tiny_llama), lora=LORA, seed=2)

    async def step(model: TorchModel, seed: int) -> None:
        model.forward_backward(token_mean(groups(seed=seed)), CrossEntropy())
        await model.optim_step(Adam(learning_rate=1e-2))

    await step(first, 0)
    path = await first.save_state("after one")
    assert Path(path) == tmp_path / "states" / "after one"
    await step(first, 1)
    await second.forward_backward(groups(), CrossEntropy())  # dropped by loading
    await second.load_state("after one")
    await step(second, 1)
    assert await first.digest() == await second.digest()


async def test_a_state_goes_to_an_absolute_path(model: TorchModel, tmp_path: Path) -> None:
    want = await model.digest()
    path = str(tmp_path / "elsewhere" / "s")
    assert await model.save_state(path) == path
    model.forward_backward(groups(), CrossEntropy())
    await model.optim_step(Adam())
    await model.load_state(path)
    assert await model.digest() == want


@pytest.mark.parametrize("name", ["", "../up", "a/../../b"])
async def test_a_state_name_that_leads_elsewhere_is_refused(model: TorchModel, name: str) -> None:
    with pytest.raises(SettingError, match="state name"):
        model.save_state(name)


async def test_a_state_that_does_not_fit_changes_nothing(
    backend: LocalBackend, model: TorchModel, tiny_qwen3: Path
) -> None:
    other = await backend.create_model(str(tiny_qwen3), lora=LORA)
    path = await other.save_state("other")
    before = await model.digest()
    with pytest.raises(SettingError, match="another base model"):
        await model.load_state(path)
    assert await model.digest() == before


async def test_two_models_share_a_base_and_nothing_else(backend: LocalBackend, tiny_llama: Path) -> None:
    first = await backend.create_model(str(tiny_llama), lora=LORA, seed=1)
    second = await backend.create_model(str(tiny_llama), lora=Lora(rank=2), seed=2)
    assert trainer(first).base is trainer(second).base
    before = await second.digest()
    first.forward_backward(groups(), CrossEntropy())
    await first.optim_step(Adam())
    assert await second.digest() == before
    assert lora_of(second).grad.count_nonzero() == 0


async def test_versions_never_go_back(model: TorchModel) -> None:
    await model.publish(3)
    for version in (3, 2, -1):
        with pytest.raises(SettingError, match=f"version={version}: 3 is published"):
            model.publish(version)
    with pytest.raises(SettingError, match="version=2 is not published"):
        await model.sampler(version=2)


async def test_old_versions_are_freed_when_nobody_samples_from_them(model: TorchModel) -> None:
    versions = model._versions  # pyright: ignore[reportPrivateUsage]
    await model.publish(0)
    first, again = await model.sampler(version=0), await model.sampler(version=0)
    await model.publish(1)
    await model.publish(2)
    assert list(versions.numbers) == [0, 2]
    await first.aclose()
    await model.digest()
    assert list(versions.numbers) == [0, 2]
    await again.aclose()
    await again.aclose()
    await model.digest()
    assert list(versions.numbers) == [2]


async def test_a_cancelled_opening_holds_nothing(model: TorchModel) -> None:
    versions = model._versions  # pyright: ignore[reportPrivateUsage]
    await model.publish(0)
    for version in (0, 7):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await model.sampler(version=version)
        assert scope.cancelled_caught
    await model.publish(1)
    assert list(versions.numbers) == [1]


async def test_a_published_version_keeps_its_weights(model: TorchModel) -> None:
    spread(model)
    data = groups(1, 1)[0]
    await model.publish(0)
    sampler = await model.sampler(version=0)
    before = await sampler.logprobs(data.tokens)
    model.forward_backward([data], CrossEntropy())
    await model.optim_step(Adam(learning_rate=0.1))
    assert np.array_equal(await sampler.logprobs(data.tokens), before, equal_nan=True)
    now = await model.sampler()
    assert now.version == 1
    assert np.abs(await now.logprobs(data.tokens) - before)[1:].max() > 1e-3


async def test_the_trainer_scores_what_the_sampler_drew_as_the_sampler_did(model: TorchModel) -> None:
    spread(model)
    sampler = await model.sampler()
    prompts = [np.array([5, 6, 7 + i], np.int32) for i in range(4)]
    data = []
    for prompt in prompts:
        samples = await sampler.sample(prompt, SamplingParams(max_tokens=20, temperature=0.8, seed=1), n=4)
        data += [Datum.completion(prompt, s, advantage=1.0, temperature=0.8) for s in samples]
    output = await model.forward(data, ImportanceSampling())
    for datum, logprobs in zip(data, output.logprobs, strict=True):
        np.testing.assert_allclose(logprobs, datum.logprobs, atol=1e-4)


async def test_a_closed_backend_refuses(tiny_llama: Path, tmp_path: Path) -> None:
    with anyio.fail_after(120):
        async with LocalBackend(deterministic=True, cache_dir=tmp_path) as backend:
            model = await backend.create_model(str(tiny_llama), lora=LORA)
            await model.publish(0)
            sampler = await model.sampler(version=0)
    with pytest.raises(BackendError, match="forward_backward: the backend is closed"):
        model.forward_backward(groups(), CrossEntropy())
    with pytest.raises(BackendError, match="closed"):
        await model.sampler()
    with pytest.raises(BackendError, match="closed"):
        await backend.create_model(str(tiny_llama), lora=LORA)
    await sampler.aclose()


async def test_statistics_are_those_of_engine_and_samplers(backend: LocalBackend, model: TorchModel) -> None:
    found = backend.statistics()
    assert found["engine/waiting"] == 0 and found["sampler/waiting"] == found["sampler/running"] == 0
    assert found["sampler/slots"] > 0


async def test_info_and_capabilities(backend: LocalBackend, model: TorchModel, tiny_llama: Path) -> None:
    info = model.info
    assert (info.model, info.context_length, info.dtype) == (str(tiny_llama), 256, "float32")
    assert info.trained_parameters == lora_of(model).master.numel()
    assert info.parameters > 0 and len(info.fingerprint) == 64
    assert backend.capabilities().deterministic
    assert PPO in backend.capabilities().losses


BAD_SETTINGS: list[tuple[dict[str, object], str]] = [
    ({"threads": 0}, "threads=0: must be at least 1"),
    ({"slots": 0}, "slots=0: must be at least 1"),
    ({"token_budget": 0}, "token_budget=0"),
    ({"decode_share": -1}, "decode_share=-1: must be at least 0"),
    ({"dtype": "float16"}, "dtype='float16': must be"),
    ({"dtype": "bfloat16", "deterministic": True}, "deterministic run computes in 'float32'"),
    ({"device": "abacus"}, "device='abacus'"),
    ({"replicas": 0}, "replicas=0: must be at least 1"),
    ({"replicas": 2}, "replicas=2: sampler='torch' draws in this process"),
    ({"sampler": "magic"}, "sampler='magic': must be 'torch' or 'vllm'"),
    ({"max_loras": 0}, "max_loras=0: must be at least 1"),
    ({"prefix_bytes": -1}, "prefix_bytes=-1: must be at least 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused_at_start(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LocalBackend(**settings)  # type: ignore[arg-type]


async def test_what_vllm_cannot_sample_from_is_refused_before_it_is_started(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="deterministic"):
        LocalBackend(sampler="vllm", deterministic=True)
    async with LocalBackend(sampler="vllm", max_loras=3, cache_dir=tmp_path) as backend:
        assert backend.capabilities().versions == 3
        assert backend.capabilities().kinds == {"snapshot", "inflight"}
        with pytest.raises(UnsupportedError, match="unembedding"):
            await backend.create_model(str(tiny_llama), lora=Lora(unembedding=True))


async def test_a_missing_vllm_is_said_and_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    before = set(usual_parent().iterdir())
    with anyio.fail_after(120):
        async with LocalBackend(sampler="vllm", cache_dir=tmp_path) as backend:
            with pytest.raises(SettingError, match=r"needs 'vllm': pip install 'sparring\[vllm\]'"):
                await backend.create_model(str(tiny_llama), lora=LORA)
    assert set(usual_parent().iterdir()) <= before  # what others had there may go meanwhile
