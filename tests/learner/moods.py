"""An environment that goes wrong as it is told to, and small runs of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from sparring import Episodes, Policy, Run, ScriptedModels, Seat, effect, environment, grpo
from sparring.environments import FunctionEnvironment, Score
from sparring.learner import train_async
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import (
    AnyEvent,
)
from tests.learner.worlds import events_of


async def leave() -> None:
    os._exit(9)


@environment
async def moody(task: int, only: Seat, *, ill: str = "", well: str = "h", how: str = "raises") -> float | Score:
    """What happens after the reply depends on its first letter: from `ill` up to `well` something goes wrong, as `how` says."""
    text = (await only.ask(f"task {task}")).text
    if not ill <= text[0] <= well:
        return float(len(text))
    match how:
        case "raises":
            raise KeyError(text)
        case "exits":
            os._exit(9)
        case "exits in an effect":
            await effect(leave)
        case "hangs":
            await anyio.sleep_forever()
        case "unjudged":
            return Score(error="nobody knows")
        case "nan":
            return float("nan")
    return 0.0


def always(how: str) -> FunctionEnvironment[Any]:
    return moody(ill="a", well="h", how=how)


def sometimes(how: str) -> FunctionEnvironment[Any]:
    return moody(ill="a", well="c", how=how)


def seldom(how: str) -> FunctionEnvironment[Any]:
    return moody(ill="a", well="a", how=how)


WELL = moody(ill="z", well="z")


def run_of(folder: Path, game: Any, **settings: Any) -> Run:
    """One policy, three steps of two groups of two."""
    plain = Run(
        name="run",
        train=Episodes(game, range(20)),
        policies=Policy("model", grpo()),
        steps=3,
        groups_per_step=2,
        group_size=2,
        evaluate_every=2,
        max_faults=1.0,
        backend=ScriptedModels(),
        folder=folder,
    )
    return replace(plain, **settings)


async def trained(run: Run, store: MemorySegments | None = None) -> list[AnyEvent]:
    kept = store or MemorySegments()
    with anyio.fail_after(20):
        assert await train_async(run, store=kept)
    events = events_of(kept)
    assert compare(events).agrees, compare(events).lines
    return events
