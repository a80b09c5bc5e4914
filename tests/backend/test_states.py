"""Models from saved states: with and without the optimizer, from PEFT's folders; unloaded; refused, and usable after that."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from sparring.backend import Backend, ScriptedBackend, TrainingClient
from sparring.backend.datum import token_mean
from sparring.backend.local import LocalBackend
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import CrossEntropy
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Adam, Lora
from sparring.errors import BackendError, SettingError, UnsupportedError
from tests.backend.architectures import full_pass, plain
from tests.backend.batches import LORA, groups, lora_of, spread, trainer

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


async def _step(model: TrainingClient, seed: int = 0) -> None:
    model.forward_backward(token_mean(groups(seed=seed)), CrossEntropy())
    await model.optim_step(Adam(learning_rate=1e-2))


async def test_a_model_created_from_a_state_continues_equally(backend: LocalBackend, tiny_llama: Path) -> None:
    first = await backend.create_model(str(tiny_llama), lora=Lora(rank=3, alpha=5.0, mlp=False, seed=7))
    await _step(first)
    path = await first.save_state("s")
    second = await backend.create_from_state("s")
    assert second.info.lora == Lora(rank=3, alpha=5.0, mlp=False)
    assert second.info.model == str(tiny_llama)
    assert second.info.architecture == "LlamaForCausalLM"
    third = await backend.create_from_state(path, model=str(tiny_llama))
    for model in (first, second, third):
        await _step(model, 1)
    assert await first.digest() == await second.digest() == await third.digest()


async def test_without_the_optimizer_the_weights_alone_are_taken(model: TorchModel, backend: LocalBackend) -> None:
    await _step(model)
    path = await model.save_state("s")
    bare = await backend.create_from_state(path, optimizer=False)
    assert torch.equal(lora_of(bare).master, lora_of(model).master)
    assert trainer(bare).steps == 0
    assert not trainer(bare).mean.any()
    assert not trainer(bare).square.any()
    assert await bare.digest() != await model.digest()
    await model.load_state(path, optimizer=False)
    assert await bare.digest() == await model.digest()


@pytest.mark.parametrize("kind", ["local", "scripted"])
async def test_the_contract_of_states_and_unloading(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    """On every backend: a state outlives its model, and an unloaded model refuses by name."""
    backend: Backend = LocalBackend(cache_dir=tmp_path) if kind == "local" else ScriptedBackend()
    async with backend:
        model = await backend.create_model(str(tiny_llama), lora=LORA)
        name = model.info.model
        await model.publish(1)
        path, want = await model.save_state(str(tmp_path / "state")), await model.digest()
        sampler = await model.sampler(version=1)
        await model.unload()
        for call in (model.digest, model.unload, lambda: model.forward_backward(groups(), CrossEntropy())):
            with pytest.raises(BackendError, match=f"model '{name}' was unloaded"):
                call()
        with pytest.raises(BackendError, match="was unloaded"):
            await model.sampler()
        assert await sampler.sample([5, 6, 7], SamplingParams(max_tokens=3, seed=0))
        await sampler.aclose()
        again = await backend.create_from_state(path)
        assert again.info.model == name
        assert await again.digest() == want
        with pytest.raises(SettingError, match="nothing here"):
            await backend.create_from_state(str(tmp_path / "nothing here"))


async def test_unloading_frees_adapter_and_published_weights(model: TorchModel) -> None:
    await model.publish(1)
    sampler = await model.sampler(version=1)
    await model.publish(2)
    await model.unload()
    assert not hasattr(model, "_trainer")
    assert model._versions.numbers == (1,)  # pyright: ignore[reportPrivateUsage]
    await sampler.aclose()
    await model._engine.submit(lambda: None, "settle")  # pyright: ignore[reportPrivateUsage]
    assert not model._versions.numbers  # pyright: ignore[reportPrivateUsage]


async def test_what_was_called_before_unloading_still_runs(model: TorchModel) -> None:
    before = model.digest()
    model.unload()
    assert await before


def _peft_folder(base: Path, folder: Path, **settings: Any) -> torch.nn.Module:
    """An adapter that PEFT itself made and saved."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ATTENTION}
    peft = get_peft_model(plain(base), LoraConfig(**given | settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    peft.save_pretrained(str(folder))
    assert isinstance(peft, torch.nn.Module)
    return peft.eval()


async def test_pefts_own_folder_is_loaded(backend: LocalBackend, tiny_llama: Path, tmp_path: Path) -> None:
    peft = _peft_folder(tiny_llama, tmp_path / "peft")
    model = await backend.create_from_state(str(tmp_path / "peft"), optimizer=False)
    assert model.info.lora == Lora(rank=4, alpha=8.0, mlp=False)
    data = groups(1, 2)
    output = await model.forward(data, CrossEntropy())
    for datum, got in zip(data, output.logprobs, strict=True):
        want = full_pass(peft, datum.tokens).detach().numpy()
        np.testing.assert_allclose(got[datum.mask], want[datum.mask[1:]], rtol=1e-4, atol=2e-5)
    with pytest.raises(SettingError, match=r"only an adapter; load it with optimizer=False"):
        await backend.create_from_state(str(tmp_path / "peft"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern={'q_proj': 2}"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern={'q_proj': 2}"),
        ({"layers_to_transform": [1]}, r"layers_to_transform=\[1\]"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"something_new": 3}, "something_new=3"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
    ],
)
async def test_variants_of_peft_are_refused_by_name(
    backend: LocalBackend, tiny_llama: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    folder = tmp_path / "peft"
    _peft_folder(tiny_llama, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UnsupportedError, match=f"peft': {named} is not supported"):
        await backend.create_from_state(str(folder), optimizer=False)


async def test_an_adapter_of_some_layers_is_refused_by_name(
    backend: LocalBackend, tiny_llama: Path, tmp_path: Path
) -> None:
    _peft_folder(tiny_llama, tmp_path / "peft", target_modules=["q_proj", "v_proj"])
    with pytest.raises(SettingError, match=r"it holds nothing as 'base_model.*k_proj.lora_A.weight', not \[4, 32\]"):
        await backend.create_from_state(str(tmp_path / "peft"), optimizer=False)


async def test_an_adapter_of_another_base_is_refused_and_the_model_stays_usable(
    backend: LocalBackend, model: TorchModel, tiny_qwen3: Path, tmp_path: Path
) -> None:
    other = await backend.create_model(str(tiny_qwen3), lora=LORA)
    path, before = await other.save_state("other"), await model.digest()
    with pytest.raises(SettingError, match=r"belongs to another base model \('.*tiny-qwen3'"):
        await model.load_state(path)
    with pytest.raises(SettingError, match="belongs to another base model"):
        await backend.create_from_state(path, model=model.info.model)
    assert await model.digest() == before
    await _step(model)


@pytest.mark.parametrize("damage", ["manifest.json", "adapter_model.safetensors", "optimizer.safetensors"])
async def test_a_truncated_state_is_refused_and_the_model_stays_usable(model: TorchModel, damage: str) -> None:
    spread(model)
    path, before = await model.save_state("s"), await model.digest()
    whole = (Path(path) / damage).read_bytes()
    (Path(path) / damage).write_bytes(whole[:-20])
    with pytest.raises(SettingError, match=f"{damage} is damaged .*; take an earlier state"):
        await model.load_state(path)
    assert await model.digest() == before
    await _step(model)


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails as on a full disk: part of the file is there, the rest is refused by the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_takes_no_more_keeps_the_older_state_and_the_model(model: TorchModel) -> None:
    path, before = await model.save_state("s"), await model.digest()
    await _step(model)
    after = await model.digest()
    with _files_of_at_most(3000), pytest.raises(BackendError, match=r"states/s' cannot be written .*: make room"):
        await model.save_state("s")
    assert [entry.name for entry in Path(path).parent.iterdir()] == ["s"]
    assert await model.digest() == after
    await model.load_state("s")
    assert await model.digest() == before
    await _step(model)
    await model.save_state("s")


async def test_a_place_that_is_a_file_is_named(model: TorchModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="file/below' cannot be written"):
        await model.save_state(str(tmp_path / "file" / "below"))
    with pytest.raises(SettingError, match=r"no manifest\.json there"):
        await model.load_state(str(tmp_path / "file"))
    await _step(model)


async def test_a_scripted_state_of_another_model_or_damaged_is_refused(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    path = await (await backend.create_model("a")).save_state(str(tmp_path / "s"))
    with pytest.raises(SettingError, match="is of model 'a', not 'b'"):
        await backend.create_from_state(path, model="b")
    (tmp_path / "s" / "weights.json").write_text("{")
    with pytest.raises(SettingError, match="is damaged"):
        await backend.create_from_state(path)
