"""Examples, loaded as `sparring train FILE` loads them, and made short: a few steps on the scripted backend."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import anyio

from sparring import Run, ScriptedModels
from sparring.backend.scripted import ScriptedReply
from sparring.cli.load import loaded
from sparring.learner import train_async
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Evaluated, Stepped, decode_segment

FOLDER = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """The module in `examples/NAME.py`."""
    return loaded(FOLDER / f"{name}.py")


def legal(prompt: str, rng: Random) -> str:
    """One of the options that the last question lists, as `Seat.pick` does."""
    return rng.choice(prompt.rpartition("Reply with exactly one of: ")[2].removesuffix(".").split(", "))


def shortened(run: Run, reply: ScriptedReply, folder: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {
        "backend": ScriptedModels(reply=reply),
        "steps": 2,
        "evaluate_every": 1,
        "folder": folder,
    }
    return replace(run, **settings | changes)


async def trained(run: Run) -> list[AnyEvent]:
    """Its journal, after it was trained to the end and every decision of it was made again."""
    store = MemorySegments()
    with anyio.fail_after(120):
        assert await train_async(run, store=store)
    events = [event for blob in store.blobs for event in decode_segment(blob)]
    comparison = compare(events, run)
    assert comparison.agrees, comparison.lines
    return events


def steps_of(events: list[AnyEvent]) -> list[Stepped]:
    return [event for event in events if isinstance(event, Stepped)]


def evaluations_of(events: list[AnyEvent]) -> dict[tuple[str, int], Evaluated]:
    return {(event.name, event.version): event for event in events if isinstance(event, Evaluated)}
