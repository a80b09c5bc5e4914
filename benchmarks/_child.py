"""One of the ways that a benchmark compares, in a process of its own that waits while another one's turn is.

Each has its own memory and its own threads: in one process, a way's threads wait differently once another way has threads too
(GNU OpenMP spins much less for a wake-up where there are more threads than cores, and each calling thread has a team).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping

import anyio.to_thread

from benchmarks._rows import Settings


class Child:
    """`python -m MODULE WAY MODEL DTYPE THREADS DEVICE ...`, which answers each line with the seconds that it took."""

    def __init__(self, module: str, way: str, settings: Settings, *more: str) -> None:
        given = [way, settings.model, settings.dtype, str(settings.threads), settings.device, *more]
        command = [sys.executable, "-m", module, *given]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    async def step(self, what: str = "step") -> float:
        """The seconds that it took."""
        return float(await anyio.to_thread.run_sync(self._asked, what))

    def _asked(self, what: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


async def answer(step: Callable[[str], Awaitable[float]]) -> None:
    """In the child: take the step that each line asks for, until there are no more."""
    for line in iter(sys.stdin.readline, ""):
        print(await step(line.strip()), flush=True)


def given() -> tuple[str, Settings, list[str]]:
    """In the child: the way, the settings, and what else was given."""
    way, model, dtype, threads, device, *more = sys.argv[1:]
    assert dtype in ("bfloat16", "float32"), dtype
    return way, Settings(model=model, rounds=1, dtype=dtype, threads=int(threads), device=device), more


async def in_turn(ways: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, float]:
    """Median of the seconds that each way says it took; a round before them warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, step in ways.items():
            seconds = await step()
            print(f"round {number} of {rounds}, {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
            found[name].append(seconds)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
