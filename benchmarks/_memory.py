"""How much memory a training step takes, on top of libraries and weights: each way in a process of its own, because freed
memory stays with the process that had it. On a CPU, Linux only: it reads and resets the high-water mark of the kernel. On CUDA
torch keeps account itself.

    python -m benchmarks._memory plain|shared MODEL DTYPE THREADS DEVICE PROMPTS SHAPE     prints MiB
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import torch

from benchmarks._child import given
from benchmarks._rows import Row, Settings, at_most
from benchmarks._training import Shape, shape_of, steps


def memory_rows(settings: Settings, shape: Shape) -> list[Row]:
    """Against the plain loop, and with four times as many groups."""
    plain, ours, many = (
        _measured(settings, shape, way, prompts)
        for way, prompts in (("plain", shape.prompts), ("shared", shape.prompts), ("shared", 4 * shape.prompts))
    )
    return [
        Row(name=f"{shape.name} memory of a step, plain, MiB", figure=f"{plain:.0f}"),
        Row(name=f"{shape.name} memory of a step, shared, MiB", figure=f"{ours:.0f}"),
        at_most(f"{shape.name} memory, shared / plain", ours / plain, 0.5),
        at_most(f"{shape.name} memory, 32 groups / 8", many / ours, 1.1),
    ]


def _measured(settings: Settings, shape: Shape, way: str, prompts: int) -> float:
    """MiB of one way: the median of three child processes, which differ by a tenth."""
    return statistics.median(_once(settings, shape, way, prompts) for _ in range(3))


def _once(settings: Settings, shape: Shape, way: str, prompts: int) -> float:
    given = [way, settings.model, settings.dtype, str(settings.threads), settings.device, str(prompts), shape.name]
    command = [sys.executable, "-m", "benchmarks._memory", *given]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _status(field: str) -> float:
    """MiB, from the kernel's account of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, field
    return int(found[1]) / 1024


async def _step(way: str, settings: Settings, shape: Shape) -> float:
    """The peak of a step over what was there before it."""
    async with steps(way, settings, shape.token_budget(settings.device)) as step:
        if settings.device != "cpu":
            return (await step(shape)).mib
        before = _reset()
        await step(shape)
        return _status("VmHWM") - before


def _reset() -> float:
    """Let the high-water mark begin anew; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _main() -> None:
    way, settings, (prompts, shape) = given()
    torch.set_num_threads(settings.threads)
    print(anyio.run(_step, way, settings, replace(shape_of(shape), prompts=int(prompts))))


if __name__ == "__main__":
    _main()
