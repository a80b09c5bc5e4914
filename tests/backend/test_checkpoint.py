"""State folders: whole or not there at all, readable by PEFT, and refused when damaged or of something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sparring.backend.local.base import BaseModel, load_base
from sparring.backend.local.checkpoint import State, adapter_files, read_state, write_folder, write_state
from sparring.backend.local.lora import Adapter
from sparring.backend.training import Lora
from sparring.errors import BackendError, SettingError
from tests.disks import grow, small_disk

CPU = torch.device("cpu")
FILES = ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.safetensors"]


@pytest.fixture
def base(tiny_llama: Path) -> BaseModel:
    return load_base(tiny_llama, dtype=torch.float32, device=CPU)


@pytest.fixture
def adapter(base: BaseModel) -> Adapter:
    return _adapter(base)


def _adapter(base: BaseModel, lora: Lora | None = None, seed: int = 0) -> Adapter:
    adapter = Adapter(base.targets, lora or Lora(rank=4, alpha=8.0), seed=seed, dtype=torch.float32, device=CPU)
    adapter.master.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    adapter.refresh()
    return adapter


def _state(adapter: Adapter) -> State:
    mean, square = torch.randn_like(adapter.master), torch.rand_like(adapter.master)
    return State(master=adapter.master, mean=mean, square=square, steps=7)


def _write(folder: Path, base: BaseModel, adapter: Adapter) -> State:
    state = _state(adapter)
    write_state(folder, adapter, state, base_name="tiny", fingerprint=base.fingerprint)
    return state


def test_what_is_written_is_read_back_bit_for_bit(base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    state = _write(tmp_path / "state", base, adapter)
    got = read_state(tmp_path / "state", _adapter(base, seed=1), fingerprint=base.fingerprint)
    for name in ("master", "mean", "square"):
        assert torch.equal(getattr(got, name), getattr(state, name))
    assert got.steps == 7
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == FILES


def test_peft_computes_the_same_from_the_folder(
    base: BaseModel, adapter: Adapter, tiny_llama: Path, tmp_path: Path
) -> None:
    _write(tmp_path / "state", base, adapter)
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_llama), dtype=torch.float32)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / "state"))
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad(), base.call.rows([(adapter.snapshot(), 2)]):
        ours = base.body(input_ids=ids, use_cache=False).last_hidden_state @ base.head.T
        torch.testing.assert_close(ours, peft(input_ids=ids).logits)


def test_writing_again_replaces_and_leaves_nothing_else(base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    _write(folder, base, adapter)
    (folder / "stray").touch()
    adapter.master.zero_()
    _write(folder, base, adapter)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["state"]
    assert read_state(folder, adapter, fingerprint=base.fingerprint).master.count_nonzero() == 0


def test_a_write_that_fails_half_way_keeps_the_older_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "state", {"a": b"old", "b": b"old"})
    with pytest.raises(BackendError, match="cannot be written"):
        write_folder(tmp_path / "state", {"a": b"new", "missing/b": b"new"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()} == {"a": b"old", "b": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_disk_that_is_full_keeps_the_older_folder_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64) as disk:
        write_folder(disk / "state", {"a": b"old" * 10_000})
        with pytest.raises(BackendError, match=rf"'{disk}/state' cannot be written \(.*No space left.*make room"):
            write_folder(disk / "state", {"a": b"new" * 15_000})
        assert [path.name for path in disk.iterdir()] == ["state"]
        assert (disk / "state" / "a").read_bytes() == b"old" * 10_000
        grow(disk, 1000)
        write_folder(disk / "state", {"a": b"new" * 15_000})
        assert (disk / "state" / "a").read_bytes() == b"new" * 15_000


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damage_is_refused(name: str, damage: str, base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    _write(folder, base, adapter)
    content = bytearray((folder / name).read_bytes())
    if damage == "gone":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2 if name != "manifest.json" else 0] ^= 255
        (folder / name).write_bytes(content)
    with pytest.raises(SettingError, match=r"damaged|missing|no manifest"):
        read_state(folder, adapter, fingerprint=base.fingerprint)


def test_another_base_is_refused_and_named(base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    _write(tmp_path / "state", base, adapter)
    with pytest.raises(
        SettingError, match=r"belongs to another base model \('tiny', .*create the model from that base"
    ):
        read_state(tmp_path / "state", adapter, fingerprint="0" * 64)


@pytest.mark.parametrize("lora", [Lora(rank=8, alpha=8.0), Lora(rank=4, alpha=4.0)])
def test_another_adapter_is_refused_and_named(lora: Lora, base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    _write(tmp_path / "state", base, adapter)
    with pytest.raises(
        SettingError, match=r"was saved with lora=Lora\(rank=4, alpha=8.0, .*, this model has lora=Lora"
    ):
        read_state(tmp_path / "state", _adapter(base, lora), fingerprint=base.fingerprint)


def test_a_newer_schema_is_refused(base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    _write(tmp_path / "state", base, adapter)
    path = tmp_path / "state" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(SettingError, match="of schema 2; this version reads 1"):
        read_state(tmp_path / "state", adapter, fingerprint=base.fingerprint)


def test_a_plain_peft_folder_is_refused(base: BaseModel, adapter: Adapter, tmp_path: Path) -> None:
    write_folder(tmp_path / "peft", adapter_files(adapter, "tiny"))
    with pytest.raises(SettingError, match=r"no manifest.json there, only an adapter; load it with optimizer=False"):
        read_state(tmp_path / "peft", adapter, fingerprint=base.fingerprint)
