"""All weights trained: gradients and steps equal to transformers with torch's AdamW, the base untouched, states, samplers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from sparring.backend.datum import Datum, token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.full import FullModel
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import CrossEntropy
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam
from sparring.errors import SettingError
from tests.backend.architectures import full_pass, plain
from tests.backend.batches import LORA, groups, relative, spread, trainer
from tests.backend.drawing import all_of, base_of

PROMPT = np.arange(5, 12, dtype=np.int32)


@pytest.fixture
def anyio_backend() -> str:
    """One event loop is enough: what is compared here happens on the engine thread."""
    return "asyncio"


@pytest.fixture
async def full(backend: LocalBackend, tiny_llama: Path) -> TorchModel:
    return await backend.create_model(str(tiny_llama))


def _plain_backward(model: torch.nn.Module, data: list[Datum], temperature: float = 1.0) -> None:
    for datum in data:
        lp = full_pass(model, datum.tokens, temperature=temperature)
        mask = torch.from_numpy(datum.mask[1:])
        (-(lp * torch.from_numpy(datum.weights[1:]))[mask].sum()).backward()


def _trained(model: TorchModel) -> FullModel:
    trained = trainer(model).adapter
    assert isinstance(trained, FullModel)
    return trained


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_gradients_of_every_weight_equal_transformers(
    backend: LocalBackend, architecture: Path, temperature: float
) -> None:
    model = await backend.create_model(str(architecture))
    data = groups(2, 3, temperature=temperature)
    await model.forward_backward(data, CrossEntropy())
    theirs = plain(architecture)
    _plain_backward(theirs, data, temperature)
    trained = _trained(model)
    names = dict(theirs.named_parameters())
    assert list(trained.named()) == list(names)
    for (name, want), got in zip(names.items(), trained.weights.grads, strict=True):
        assert want.grad is not None
        assert float((got - want.grad).norm()) <= 1e-5 * float(want.grad.norm()) + 1e-6, name
    whole = torch.cat([p.grad.reshape(-1) for p in names.values() if p.grad is not None])
    assert relative(trained.grad, whole) <= 1e-5


async def test_steps_equal_torchs_adamw(full: TorchModel, tiny_llama: Path) -> None:
    theirs = plain(tiny_llama)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
    for seed in range(3):
        data = token_mean(groups(2, 2, seed=seed))
        optimizer.zero_grad()
        _plain_backward(theirs, data)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        await full.forward_backward(data, CrossEntropy())
        output = await full.optim_step(Adam(learning_rate=1e-3, eps=1e-6, weight_decay=0.1))
        assert output.metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, want in theirs.named_parameters():
        torch.testing.assert_close(_trained(full).named()[name], want.detach(), rtol=1e-4, atol=1e-6)


async def _step(model: TorchModel, seed: int = 0) -> None:
    model.forward_backward(token_mean(groups(seed=seed)), CrossEntropy())
    await model.optim_step(Adam(learning_rate=1e-2))


async def test_the_base_and_its_other_models_are_untouched(
    backend: LocalBackend, full: TorchModel, tiny_llama: Path
) -> None:
    adapted, second = (
        await backend.create_model(str(tiny_llama), lora=LORA),
        await backend.create_model(str(tiny_llama)),
    )
    spread(adapted)
    base = trainer(full).base
    assert trainer(adapted).base is base is trainer(second).base
    weights = {name: p.detach().clone() for name, p in base.named_parameters.items()}
    data, digests = groups(1, 2), [await adapted.digest(), await second.digest()]
    before = await adapted.forward(data, CrossEntropy())
    await _step(full)
    after = await adapted.forward(data, CrossEntropy())
    assert all(np.array_equal(a, b) for a, b in zip(before.logprobs, after.logprobs, strict=True))
    assert all(torch.equal(weights[name], p) for name, p in base.named_parameters.items())
    assert not any(p.requires_grad or p.grad is not None for p in base.named_parameters.values())
    assert [await adapted.digest(), await second.digest()] == digests
    assert not trainer(second).adapter.grad.any()


async def test_a_failing_pass_leaves_the_base_as_it_was(full: TorchModel) -> None:
    base = trainer(full).base
    weights = [p.detach().clone() for p in base.call.parameters]
    await _step(full)
    with pytest.raises(ZeroDivisionError), base.call.rows([(_trained(full).weights, 1)]):
        assert not torch.equal(base.call.parameters[0], weights[0])
        raise ZeroDivisionError
    assert all(torch.equal(p, w) for p, w in zip(base.call.parameters, weights, strict=True))
    assert not any(p.requires_grad for p in base.call.parameters)


def test_full_weights_are_alone_in_a_pass(tiny_llama: Path) -> None:
    base = base_of(tiny_llama)
    weights = FullModel(base.named_parameters, head=base.head).snapshot()
    with pytest.raises(AssertionError, match="full weights share a pass"), base.call.rows([(weights, 1), (None, 1)]):
        pass


@pytest.mark.parametrize("deterministic", [True, False])
async def test_samplers_draw_from_the_version_they_were_opened_with(
    tiny_qwen3: Path, tmp_path: Path, *, deterministic: bool
) -> None:
    """Two versions of full weights and an adapter on the same base, drawn from at once; each against one full pass."""
    async with LocalBackend(deterministic=deterministic, dtype="float32", cache_dir=tmp_path) as backend:
        model, adapted = (
            await backend.create_model(str(tiny_qwen3)),
            await backend.create_model(str(tiny_qwen3), lora=LORA),
        )
        spread(adapted)
        samplers: list[Any] = [await adapted.sampler()]
        folders = [await adapted.export("adapted", "merged")]
        for version in (1, 2):
            await _step(model, version)
            await model.publish(version)
            samplers.append(await model.sampler(version=version))
            folders.append(await model.export(f"full-{version}", "merged"))
        params = SamplingParams(max_tokens=12, seed=3)
        drawn = await all_of(*(lambda s=s: s.sample(PROMPT, params, n=2) for s in samplers))
        for sampler, folder, sequences in zip(samplers, folders, drawn, strict=True):
            theirs = plain(Path(folder))
            for one in sequences:
                whole = np.concatenate([PROMPT, one.tokens])
                with torch.no_grad():
                    want = full_pass(theirs, whole)
                np.testing.assert_allclose(one.logprobs, want[len(PROMPT) - 1 :], rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose((await sampler.logprobs(whole))[1:], want, rtol=1e-4, atol=1e-4)
        assert not np.array_equal(drawn[1][0].logprobs, drawn[2][0].logprobs)


async def test_states_continue_equally(backend: LocalBackend, full: TorchModel) -> None:
    await _step(full)
    path = await full.save_state("s")
    assert sorted(p.name for p in Path(path).iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
    ]
    second = await backend.create_from_state(path)
    bare = await backend.create_from_state(path, optimizer=False)
    assert second.info.lora is None
    assert second.info.trained_parameters == second.info.parameters
    await _step(full, 1)
    assert await full.digest() != await second.digest()
    await _step(second, 1)
    assert await full.digest() == await second.digest()
    await bare.load_state(path)
    await _step(bare, 1)
    assert await full.digest() == await bare.digest()


async def test_a_state_of_an_adapter_does_not_fit_and_the_other_way_round(
    backend: LocalBackend, full: TorchModel, model: TorchModel
) -> None:
    paths = [await full.save_state("full"), await model.save_state("lora")]
    with pytest.raises(SettingError, match=r"was saved with lora=None, this model has lora=Lora\(rank=4"):
        await model.load_state(paths[0])
    with pytest.raises(SettingError, match=r"was saved with lora=Lora\(rank=4, .*, this model has lora=None"):
        await full.load_state(paths[1])
    with pytest.raises(SettingError, match="form='adapter' of a model without one; write form='merged'"):
        await full.export("mine")
    await _step(full)


async def test_bfloat16_computes_and_fp32_masters_gather_small_steps(tiny_llama: Path, tmp_path: Path) -> None:
    async with LocalBackend(dtype="bfloat16", cache_dir=tmp_path) as backend:
        model = await backend.create_model(str(tiny_llama))
        trained = _trained(model)
        assert trained.weights.tensors[0].dtype == torch.bfloat16
        assert trained.master.dtype == trained.grad.dtype == torch.float32
        exact = plain(tiny_llama)
        data = groups(2, 2)
        await model.forward_backward(data, CrossEntropy())
        _plain_backward(exact, data)
        whole = torch.cat([p.grad.reshape(-1) for p in exact.parameters() if p.grad is not None])
        assert relative(trained.grad, whole) < 0.1
        before = trained.master.clone()
        for _ in range(4):
            await model.forward_backward(data, CrossEntropy())
            await model.optim_step(Adam(learning_rate=1e-5))
        moved = (trained.master != before).float().mean()
        assert float(moved) > 0.5
        torch.testing.assert_close(trained.weights.tensors[0].reshape(-1), trained.master[: 320 * 32].bfloat16())
        sent = load(save(trained.computed()))
        assert set(sent) == set(trained.named()) and all(value.dtype == torch.bfloat16 for value in sent.values())
        for name, values in trained.named().items():
            assert torch.equal(sent[name], values.bfloat16()), (
                f"{name}: what a sampler is sent is not what is computed with"
            )
        before_rounding = trained.master.clone()
        await model.load_state(await model.save_state("s"))
        assert torch.equal(trained.master, before_rounding)
