"""Measuring on a CPU or a CUDA device: time, memory, and the rate of large products."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

CPU_PRODUCT, CUDA_PRODUCT = (1024, 1536, 1024), (8192, 8192, 8192)
"""Rows, inner and columns of a large product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What something took; `mib` on top of what was allocated before it, 0 on a CPU, where `_memory` tells."""

    seconds: float
    mib: float


class Watch:
    """Measures from when it is made to `measured`, when the device is done."""

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device) if device.startswith("cuda") else None
        self._before = 0
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        self._start = time.perf_counter()

    def measured(self) -> Measured:
        """Waits for the device."""
        if self._cuda is None:
            return Measured(seconds=time.perf_counter() - self._start, mib=0.0)
        torch.cuda.synchronize(self._cuda)
        seconds = time.perf_counter() - self._start
        return Measured(seconds=seconds, mib=(torch.cuda.max_memory_allocated(self._cuda) - self._before) / 2**20)


def matrix_rate(dtype: torch.dtype, device: str = "cpu", size: tuple[int, int, int] | None = None) -> float:
    """FLOP/s of a large product on this machine now: the best of some, on random numbers (zeros are faster)."""
    rows, inner, columns = size or (CUDA_PRODUCT if device.startswith("cuda") else CPU_PRODUCT)
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    best = 0.0
    for _ in range(20):
        watch = Watch(device)
        a @ b
        best = max(best, 2 * rows * inner * columns / watch.measured().seconds)
    return best
