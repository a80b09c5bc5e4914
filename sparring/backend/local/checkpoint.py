"""A model's state as a folder: the adapter in PEFT's format (or all weights), the optimizer, a manifest that vouches for both.

    adapter_config.json, adapter_model.safetensors    what PEFT, vLLM and others load; fp32. Of a model without an adapter
                                                      instead model.safetensors, all weights under the base's names; fp32
    value_head.safetensors                            of a critic alone: `weight` f32[D] and `bias` f32[1]
    optimizer.safetensors                             `mean` and `square`, f32[P] in the layout of what is trained
    manifest.json                                     schema, base fingerprint, rank, alpha, steps, sha256 of each file

A folder is written under another name, flushed to disk and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sparring.backend.local.lora import Adapter, Trained
from sparring.backend.local.peft_folder import ADAPTER, ADAPTER_CONFIG, is_peft, read_peft
from sparring.backend.training import Lora
from sparring.errors import BackendError, SettingError

SCHEMA = 1
_MANIFEST = "manifest.json"
_OPTIMIZER, _FULL, _VALUE_HEAD = "optimizer.safetensors", "model.safetensors", "value_head.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that training continues from: masters and AdamW's moments, f32[P] each, and the steps taken."""

    master: Tensor
    mean: Tensor
    square: Tensor
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a folder says of itself: the base's name and fingerprint ('' where it has none), the adapter, the steps taken."""

    base: str
    fingerprint: str
    lora: Lora | None
    steps: int
    sha256: Mapping[str, str]

    @property
    def critic(self) -> bool:
        """Whether it has a value head."""
        return _VALUE_HEAD in self.sha256


def state_folder(name: str, states: Path) -> Path:
    """An absolute path as it is, or a name below `states`."""
    given = Path(name)
    if not name or ".." in given.parts:
        raise SettingError(f"state name {name!r}: give an absolute path, or a name without '..'")
    return given if given.is_absolute() else states / given


def adapter_files(adapter: Adapter, base_name: str) -> dict[str, bytes]:
    """The two files of a PEFT adapter folder: name and contents."""
    return {
        ADAPTER_CONFIG: _adapter_config(adapter, base_name),
        ADAPTER: save(adapter.named(), metadata={"format": "pt"}),
    }


def write_state(folder: Path, adapter: Trained, state: State, *, base_name: str, fingerprint: str) -> None:
    """Write a state folder, replacing one of the same name. Raises `BackendError` where the disk does not take it."""
    files = _weight_files(adapter, base_name)
    if adapter.tail:
        head = state.master[-adapter.tail :].cpu()
        files[_VALUE_HEAD] = save({"weight": head[:-1].clone(), "bias": head[-1:].clone()})
    files[_OPTIMIZER] = save({"mean": state.mean.cpu(), "square": state.square.cpu()})
    manifest = {
        "schema": SCHEMA,
        "base": {"name": base_name, "fingerprint": fingerprint},
        "lora": None if adapter.lora is None else asdict(replace(adapter.lora, seed=None)),
        "steps": state.steps,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[_MANIFEST] = json.dumps(manifest, indent=2).encode()
    write_folder(folder, files)


def describe(folder: Path) -> Saved:
    """What a state folder, or an adapter folder of PEFT, says of itself; its weights are not checked yet."""
    if is_peft(folder):
        peft = read_peft(folder)
        return Saved(base=peft.base, fingerprint="", lora=peft.lora, steps=0, sha256={})
    return _read_manifest(folder)


def read_state(folder: Path, adapter: Trained, *, fingerprint: str, optimizer: bool = True) -> State:
    """Read a folder for a model with this adapter and base; everything is checked before anything is returned.

    Without `optimizer`, moments and steps are those of a fresh one, and an adapter folder of PEFT will do. Raises
    `SettingError` for a folder that is missing, damaged, of another base, or of an adapter of another shape; and for a
    critic's where a policy's is wanted, or the other way round.
    """
    if is_peft(folder):
        if optimizer:
            raise SettingError(
                f"state {str(folder)!r}: no {_MANIFEST} there, only an adapter; load it with optimizer=False"
            )
        peft = read_peft(folder)
        _check_critic(folder, critic=False, adapter=adapter)
        _check_lora(folder, peft.lora, adapter)
        return _fresh(_master(folder, peft.weights, adapter))
    saved = _read_manifest(folder)
    if saved.fingerprint != fingerprint:
        raise SettingError(
            f"state {str(folder)!r} belongs to another base model ({saved.base!r}, fingerprint "
            f"{saved.fingerprint[:12]}, not {fingerprint[:12]}): create the model from that base"
        )
    _check_critic(folder, critic=saved.critic, adapter=adapter)
    _check_lora(folder, saved.lora, adapter)
    master = _master(folder, load(_read_checked(folder, _FULL if saved.lora is None else ADAPTER, saved)), adapter)
    if saved.critic:
        head = load(_read_checked(folder, _VALUE_HEAD, saved))
        master = torch.cat([master, head["weight"], head["bias"]])
    if not optimizer:
        return _fresh(master)
    moments = load(_read_checked(folder, _OPTIMIZER, saved))
    return State(master=master, mean=moments["mean"], square=moments["square"], steps=saved.steps)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, whole or not at all; see `write_whole`."""

    def fill(fresh: Path) -> None:
        for name, content in files.items():
            (fresh / name).write_bytes(content)

    write_whole(folder, fill)


def write_whole(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a new folder, flush them, and rename it into place over an older one.

    Raises `BackendError` where that cannot be done; then an older folder is as it was.
    """
    token = uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{kind}-{token}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        fill(fresh)
        for path in [*fresh.iterdir(), fresh]:
            _flush(path)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        raise BackendError(
            f"{str(folder)!r} cannot be written ({error}): make room, or give another folder; the model is as it was"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _weight_files(adapter: Trained, base_name: str) -> dict[str, bytes]:
    if isinstance(adapter, Adapter):
        return adapter_files(adapter, base_name)
    return {_FULL: save(adapter.named(), metadata={"format": "pt"})}


def _adapter_config(adapter: Adapter, base_name: str) -> bytes:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.lora.rank,
        "lora_alpha": adapter.lora.alpha,
        "lora_dropout": adapter.lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted({target.name.rpartition(".")[2] for target in adapter.targets}),
    }
    return json.dumps(config, indent=2).encode()


def _read_manifest(folder: Path) -> Saved:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["schema"] != SCHEMA:
            raise SettingError(
                f"state {str(folder)!r}: its manifest is of schema {manifest['schema']!r}; this version reads {SCHEMA}"
            )
        return Saved(
            base=manifest["base"]["name"],
            fingerprint=manifest["base"]["fingerprint"],
            lora=None if manifest["lora"] is None else Lora(**manifest["lora"]),
            steps=int(manifest["steps"]),
            sha256=dict(manifest["sha256"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise SettingError(
            f"state {str(folder)!r}: no {_MANIFEST} there; give a folder that save_state wrote"
        ) from None
    except SettingError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"state {str(folder)!r}: {_MANIFEST} is damaged ({error!r}); take an earlier state"
        ) from error


def _check_lora(folder: Path, saved: Lora | None, adapter: Trained) -> None:
    """None stands for all weights."""
    own = adapter.lora
    if saved != (None if own is None else replace(own, seed=None)):
        raise SettingError(
            f"state {str(folder)!r} was saved with lora={saved!r}, this model has lora={own!r}: create it with those"
        )


def _check_critic(folder: Path, *, critic: bool, adapter: Trained) -> None:
    if critic and not adapter.tail:
        raise SettingError(f"state {str(folder)!r} is a critic's: load it into a client that create_critic gives")
    if adapter.tail and not critic:
        raise SettingError(
            f"state {str(folder)!r} has no value head, it is a policy's: load it into a client that create_model gives"
        )


def _master(folder: Path, weights: Mapping[str, Tensor], adapter: Trained) -> Tensor:
    """The saved weights in the layout of the adapter, f32[P]."""
    named = adapter.named()
    for name in sorted(named.keys() | weights.keys()):
        wanted, found = (list(side[name].shape) if name in side else "nothing" for side in (named, weights))
        if wanted != found:
            raise SettingError(
                f"state {str(folder)!r} is not of this model: it holds {found} as {name!r}, not {wanted}"
            )
    return torch.cat([weights[name].reshape(-1).to(torch.float32) for name in named])


def _fresh(master: Tensor) -> State:
    return State(master=master, mean=torch.zeros_like(master), square=torch.zeros_like(master), steps=0)


def _read_checked(folder: Path, name: str, saved: Saved) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        raise SettingError(f"state {str(folder)!r}: {name} is missing; take an earlier state") from None
    if hashlib.sha256(content).hexdigest() != saved.sha256.get(name):
        raise SettingError(
            f"state {str(folder)!r}: {name} is damaged (its sha256 is not the manifest's); take an earlier state"
        )
    return content


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
