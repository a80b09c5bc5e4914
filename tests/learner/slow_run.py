"""A program that trains a slow run: `main()` with the arguments FOLDER LOOP [field=value ...].

It prints a line for each event that is on the disk, and at the end whether the run is complete.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from sparring import Episodes, Run, Seat, effect, environment
from sparring.backend import Datum, ForwardOutput, Lora, Loss, ScriptedBackend
from sparring.backend.scripted import ScriptedModel, babble
from sparring.backend.training import Pending
from sparring.learner import train_async
from sparring.rollout.events import AnyEvent, Evaluated, Planned, Stepped
from tests.learner.worlds import duel_run


async def nap(seconds: float) -> None:
    await anyio.sleep(seconds)


@environment
async def slow_duel(task: int, first: Seat, second: Seat, *, seconds: float = 0.01) -> dict[Seat, float]:
    """Takes its time between the replies."""
    heard = 0
    for turn in range(3):
        heard += len((await first.ask(f"{task}.{turn}")).text)
        await effect(nap, seconds, timeout=1000)
        heard += len((await second.ask(f"{heard}")).text)
    return {first: float(heard), second: -float(heard)}


class SlowModel(ScriptedModel):
    """A model whose steps take a while."""

    def __init__(self, model: str, seed: int, seconds: float) -> None:
        super().__init__(model, seed, babble)
        self._seconds = seconds

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> Pending[ForwardOutput]:  # type: ignore[override]
        return _Late(super().forward_backward(data, loss), self._seconds)


class _Late:
    def __init__(self, pending: Pending[ForwardOutput], seconds: float) -> None:
        self._pending, self._seconds = pending, seconds

    async def _wait(self) -> ForwardOutput:
        await anyio.sleep(self._seconds)
        return await self._pending

    def __await__(self) -> Any:
        return self._wait().__await__()


class SlowBackend(ScriptedBackend):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        return SlowModel(model, seed, self._seconds)


@dataclass(frozen=True)
class SlowModels:
    """`seconds` that a step takes."""

    seconds: float = 0.0

    def open(self, *, deterministic: bool) -> SlowBackend:
        return SlowBackend(self.seconds)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Printer:
    """A watcher: prints what a test may wait for."""

    def opened(self, run: Mapping[str, Any]) -> None:
        say("opened")

    def event(self, event: AnyEvent) -> None:
        if isinstance(event, Planned | Stepped):
            say(f"{type(event).__name__} {event.policy} {event.step}")
        elif isinstance(event, Evaluated):
            say(f"Evaluated {event.version}")

    def closed(self) -> None:
        say("closed")


def slow_run(
    folder: Path, *, play: float = 0.01, step: float = 0.0, held_out: float = 0.0, steps: int = 6, k: int = 1
) -> Run:
    """Two policies; the seconds that a turn in training, a step, and a turn in held-out play take."""
    plain = duel_run(folder, k=k, steps=steps)
    assert isinstance(plain.train, Episodes) and isinstance(plain.held_out, Episodes)
    return replace(
        plain,
        train=replace(plain.train, environment=slow_duel(seconds=play)),
        held_out=replace(plain.held_out, environment=slow_duel(seconds=held_out)),
        backend=SlowModels(step),
    )


def main() -> None:
    folder, loop, *fields = sys.argv[1:]
    settings: dict[str, Any] = {name: float(value) for name, _, value in (field.partition("=") for field in fields)}
    if "steps" in settings:
        settings["steps"] = int(settings["steps"])
    run = slow_run(Path(folder), **settings)

    async def trained() -> bool:
        return await train_async(run, watchers=[Printer()])

    say("complete" if anyio.run(trained, backend=loop) else "stopped")
