"""A model's state as a folder: the adapter in PEFT's format, the optimizer, and a manifest that vouches for both.

    adapter_config.json, adapter_model.safetensors    what PEFT, vLLM and others load; fp32
    optimizer.safetensors                             `mean` and `square`, f32[P] in the adapter's layout
    manifest.json                                     schema, base fingerprint, rank, alpha, steps, sha256 of each file

A folder is written under another name, flushed to disk and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load, save
from torch import Tensor

from sparring.backend.local.lora import Adapter
from sparring.backend.training import Lora
from sparring.errors import SettingError

SCHEMA = 1
_MANIFEST = "manifest.json"
_ADAPTER, _ADAPTER_CONFIG, _OPTIMIZER = "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that training continues from: masters and AdamW's moments, f32[P] each, and the steps taken."""

    master: Tensor
    mean: Tensor
    square: Tensor
    steps: int


def adapter_files(adapter: Adapter, base_name: str) -> dict[str, bytes]:
    """The two files of a PEFT adapter folder: name and contents."""
    return {
        _ADAPTER_CONFIG: _adapter_config(adapter, base_name),
        _ADAPTER: save(_named(adapter), metadata={"format": "pt"}),
    }


def write_state(folder: Path, adapter: Adapter, state: State, *, base_name: str, fingerprint: str) -> None:
    """Write a state folder, replacing one of the same name."""
    files = adapter_files(adapter, base_name)
    files[_OPTIMIZER] = save({"mean": state.mean.cpu(), "square": state.square.cpu()})
    manifest = {
        "schema": SCHEMA,
        "base": {"name": base_name, "fingerprint": fingerprint},
        "lora": asdict(replace(adapter.lora, seed=None)),
        "steps": state.steps,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[_MANIFEST] = json.dumps(manifest, indent=2).encode()
    write_folder(folder, files)


def read_state(folder: Path, adapter: Adapter, *, fingerprint: str) -> State:
    """Read a state folder for a model with this adapter and base; everything is checked before anything is returned.

    Raises `SettingError` for a folder that is missing, damaged, of another base, or of an adapter of another shape.
    """
    manifest = _read_manifest(folder)
    _check_fits(folder, manifest, adapter, fingerprint)
    contents = {name: _read_checked(folder, name, manifest) for name in (_ADAPTER, _OPTIMIZER)}
    optimizer = load(contents[_OPTIMIZER])
    master = torch.empty_like(adapter.master, device="cpu")
    named, saved = _named(adapter), load(contents[_ADAPTER])
    if {name: t.shape for name, t in named.items()} != {name: t.shape for name, t in saved.items()}:
        raise SettingError(f"state {str(folder)!r}: its adapter has other layers or shapes than this model's")
    torch.cat([saved[name].reshape(-1) for name in named], out=master)
    return State(master=master, mean=optimizer["mean"], square=optimizer["square"], steps=int(manifest["steps"]))


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder under a temporary name, flush them, and rename it into place over an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    token = uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{kind}-{token}") for kind in ("new", "old"))
    fresh.mkdir()
    try:
        for name, content in files.items():
            with (fresh / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _flush_folder(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _flush_folder(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _named(adapter: Adapter) -> dict[str, Tensor]:
    """The masters under PEFT's names, in the order of the flat layout."""
    named: dict[str, Tensor] = {}
    for target, a, b in zip(adapter.targets, adapter.master_a, adapter.master_b, strict=True):
        named[f"base_model.model.{target.name}.lora_A.weight"] = a.cpu().contiguous().clone()
        named[f"base_model.model.{target.name}.lora_B.weight"] = b.cpu().contiguous().clone()
    return named


def _adapter_config(adapter: Adapter, base_name: str) -> bytes:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.lora.rank,
        "lora_alpha": adapter.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted({target.name.rpartition(".")[2] for target in adapter.targets}),
    }
    return json.dumps(config, indent=2).encode()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SettingError(
            f"state {str(folder)!r}: no {_MANIFEST} there; give a folder that save_state wrote"
        ) from None
    except ValueError as error:
        raise SettingError(f"state {str(folder)!r}: {_MANIFEST} is damaged ({error}); take an earlier state") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise SettingError(f"state {str(folder)!r}: its manifest is not of schema {SCHEMA}, the one this version reads")
    return manifest


def _check_fits(folder: Path, manifest: Mapping[str, Any], adapter: Adapter, fingerprint: str) -> None:
    base = manifest["base"]
    if base["fingerprint"] != fingerprint:
        raise SettingError(
            f"state {str(folder)!r} belongs to another base model ({base['name']!r}, fingerprint "
            f"{base['fingerprint'][:12]}, not {fingerprint[:12]}): create the model from that base"
        )
    lora = Lora(**manifest["lora"])
    if lora != replace(adapter.lora, seed=None):
        raise SettingError(
            f"state {str(folder)!r} was saved with {lora!r}, this model has {adapter.lora!r}: create it with those"
        )


def _read_checked(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        raise SettingError(f"state {str(folder)!r}: {name} is missing; take an earlier state") from None
    if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
        raise SettingError(
            f"state {str(folder)!r}: {name} is damaged (its sha256 is not the manifest's); take an earlier state"
        )
    return content


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
