"""How much memory a training step takes, on top of libraries and weights: each way in a process of its own, because freed
memory stays with the process that had it. Linux only: it reads and resets the high-water mark of the kernel.

    python -m benchmarks._memory plain|shared MODEL DTYPE THREADS PROMPTS SHAPE     prints MiB
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anyio
import torch

from benchmarks._rows import Row, Settings, at_most
from benchmarks._training import PROMPTS, RANK, SHAPES, PlainLoop, Shape, batch, our_step
from sparring.backend import Lora
from sparring.backend.local import LocalBackend
from sparring.backend.models import resolve_model


def memory_rows(settings: Settings, shape: Shape) -> list[Row]:
    """Against the plain loop, and with four times as many groups."""
    plain, ours, many = (
        _measured(settings, shape, way, prompts)
        for way, prompts in (("plain", PROMPTS), ("shared", PROMPTS), ("shared", 4 * PROMPTS))
    )
    return [
        Row(name=f"{shape.name} memory of a step, plain, MiB", figure=f"{plain:.0f}"),
        Row(name=f"{shape.name} memory of a step, shared, MiB", figure=f"{ours:.0f}"),
        at_most(f"{shape.name} memory, shared / plain", ours / plain, 0.5),
        at_most(f"{shape.name} memory, 32 groups / 8", many / ours, 1.1),
    ]


def _measured(settings: Settings, shape: Shape, way: str, prompts: int) -> float:
    """MiB of one way, in a child process."""
    given = [way, settings.model, settings.dtype, str(settings.threads), str(prompts), shape.name]
    command = [sys.executable, "-m", "benchmarks._memory", *given]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _status(field: str) -> float:
    """MiB, from the kernel's account of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, field
    return int(found[1]) / 1024


async def _step(way: str, settings: Settings, prompts: int, shape: Shape) -> float:
    """The peak of a step over what was resident before it."""
    if way == "plain":
        plain = PlainLoop(resolve_model(settings.model), settings.dtype)
        data = batch(1000, shape, shared=True, prompts=prompts)
        before = _reset()
        plain.step(data, shape.sequences)
        return _status("VmHWM") - before
    async with LocalBackend(dtype=settings.dtype, threads=settings.threads, token_budget=shape.token_budget) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        data = batch(1000, shape, shared=True, prompts=prompts)
        before = _reset()
        await our_step(model, data)
        return _status("VmHWM") - before


def _reset() -> float:
    """Let the high-water mark begin anew; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _main() -> None:
    way, model, dtype, threads, prompts, shape = sys.argv[1:]
    assert dtype in ("bfloat16", "float32"), dtype
    torch.set_num_threads(int(threads))
    settings = Settings(model=model, rounds=1, dtype=dtype, threads=int(threads))
    print(anyio.run(_step, way, settings, int(prompts), SHAPES[shape]))


if __name__ == "__main__":
    _main()
