"""In what precision a base model computes."""

from __future__ import annotations

import time
from typing import Literal

import torch

from sparring.errors import SettingError

Dtype = Literal["auto", "bfloat16", "float32"]


def choose_dtype(wanted: Dtype, *, device: torch.device, deterministic: bool) -> torch.dtype:
    """`auto`: float32 under `deterministic`; elsewhere bfloat16 on CUDA and where this CPU multiplies it faster."""
    if wanted not in ("auto", "bfloat16", "float32"):
        raise SettingError(f"dtype={wanted!r}: must be 'auto', 'bfloat16' or 'float32'")
    if deterministic and wanted == "bfloat16":
        raise SettingError("dtype='bfloat16' with deterministic=True: a deterministic run computes in 'float32'")
    if deterministic or wanted == "float32":
        return torch.float32
    if wanted == "bfloat16" or device.type == "cuda":
        return torch.bfloat16
    faster = _product_seconds(torch.bfloat16) < 0.8 * _product_seconds(torch.float32)
    return torch.bfloat16 if faster else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """The fastest of five products of the size that a small model makes."""
    x, w = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    return min(times)
