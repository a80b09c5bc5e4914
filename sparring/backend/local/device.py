"""Where a backend computes, and how much at once."""

from __future__ import annotations

import torch

from sparring.backend.local.base import BaseModel
from sparring.errors import SettingError, UnsupportedError

CPU_TOKENS = 1024
"""Of a micro-batch: enough for fast products, and what a step takes stays near what the weights take."""

CUDA_TOKENS = 16384
"""More than these do not make products any faster there."""

_SHARE = 0.4
"""Of the device's memory that the weights leave, for what a micro-batch keeps for its backward pass; the rest is for samplers,
log-probs and what the allocator cannot use."""

_KEPT = 2
"""Times what the adapted layers read and write, for all that a backward pass needs: activations, norms and attention too."""


def choose_device(wanted: str, *, deterministic: bool) -> torch.device:
    """`auto`: the CPU under `deterministic`, elsewhere CUDA if there is any. Raises `SettingError` for a device that is not
    there, `UnsupportedError` for a deterministic one that is no CPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not deterministic else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise SettingError(f"device={wanted!r}: torch knows no such device; 'auto', 'cpu' or 'cuda'") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device={wanted!r}: computed is on 'cpu' or 'cuda' alone")
    if device.type == "cuda" and deterministic:
        raise UnsupportedError(
            f"device={wanted!r} with deterministic=True: sums there depend on what else is computed; device='cpu'"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise SettingError(f"device={wanted!r}: torch sees {found} CUDA devices here; 'auto' or 'cpu'")
    return device


def choose_token_budget(base: BaseModel) -> int:
    """Tokens of one micro-batch, from the model and the size of the device's memory: the same wherever these are the same."""
    if base.device.type == "cpu":
        return CPU_TOKENS
    memory = torch.cuda.get_device_properties(base.device).total_memory
    return token_budget(base, memory)


def token_budget(base: BaseModel, memory: int) -> int:
    """On a device of so many bytes: in powers of 2, at most `CUDA_TOKENS`."""
    layers = base.targets[:-1]  # the last is the output layer, which works in chunks
    a_token = _KEPT * base.dtype.itemsize * sum(target.inputs + target.outputs for target in layers)
    left = memory - base.parameters * base.dtype.itemsize
    tokens = max(1, int(_SHARE * left) // a_token)
    return min(CUDA_TOKENS, 1 << (tokens.bit_length() - 1))
