"""Reading an adapter folder that PEFT, or somebody else, wrote; whatever is more than a plain LoRA is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparring.backend.local.supported import PARTS
from sparring.backend.training import Lora
from sparring.errors import SettingError, UnsupportedError

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_READ = {"r", "lora_alpha", "lora_dropout", "base_model_name_or_path"}
_ABOUT = {
    "auto_mapping",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
}
"""What says nothing about the numbers; which layers have an adapter, the weights' names say."""

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
}
"""What a setting may be; any that is not named here must be empty, 0 or false."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftAdapter:
    """`weights` under PEFT's names; `base` is the model that the folder names, perhaps ''."""

    lora: Lora
    base: str
    weights: Mapping[str, Tensor]


def is_peft(folder: Path) -> bool:
    """Whether this is an adapter folder without a manifest of ours."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "manifest.json").exists()


def read_peft(folder: Path) -> PeftAdapter:
    """Raises `UnsupportedError` naming the setting of an adapter that is more than `Lora`, `SettingError` for a damaged one."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        weights = load_file(folder / ADAPTER)
    except FileNotFoundError as error:
        raise SettingError(f"adapter {str(folder)!r}: {error.filename!r} is missing; PEFT writes both files") from None
    except (ValueError, SafetensorError) as error:
        raise SettingError(f"adapter {str(folder)!r} is damaged ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise SettingError(f"adapter {str(folder)!r}: {ADAPTER_CONFIG} holds {config!r}, not settings; fetch it again")
    _refuse_variants(folder, config)
    return PeftAdapter(
        lora=_lora(folder, config, weights), base=str(config.get("base_model_name_or_path") or ""), weights=weights
    )


def _refuse_variants(folder: Path, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if name in _READ or name in _ABOUT:
            continue
        plain = value in _PLAIN[name] if name in _PLAIN else not value
        if not plain:
            raise UnsupportedError(
                f"adapter {str(folder)!r}: {name}={value!r} is not supported; plain LoRA on linear layers is"
            )


def _lora(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Lora:
    """Which parts have adapters is read from the names of the weights."""
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in weights}
    parts = {PARTS.get(layer, "unembedding") for layer in layers}
    try:
        return Lora(
            rank=config["r"],
            alpha=float(config["lora_alpha"]),
            attention="attention" in parts,
            mlp="mlp" in parts,
            unembedding="unembedding" in parts,
            dropout=float(config.get("lora_dropout", 0.0)),
        )
    except (KeyError, TypeError) as error:
        raise SettingError(f"adapter {str(folder)!r}: r or lora_alpha is missing or no number ({error})") from error
