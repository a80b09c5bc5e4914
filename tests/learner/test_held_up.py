"""What a run does so that the event loop comes round: large steps begin in parts, and the collector leaves the heap alone."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel

from sparring import Seat, environment
from sparring.learner import train_async
from sparring.rollout import MemorySegments
from tests.learner.moods import WELL, run_of


async def test_the_loop_comes_round_while_a_large_step_begins(tmp_path: Path) -> None:
    begun: list[int] = []

    @environment
    async def noted(task: int, only: Seat) -> float:
        begun.append(task)
        return float((await only.ask(f"task {task}")).text < "d")

    jumps: list[int] = []

    async def look() -> None:
        while True:
            before = len(begun)
            await anyio.lowlevel.checkpoint()
            jumps.append(len(begun) - before)

    run = replace(run_of(tmp_path, noted), groups_per_step=64, group_size=4, steps=1, max_staleness=0)
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        await train_async(run, store=MemorySegments())
        group.cancel_scope.cancel()
    assert len(begun) == 256
    assert max(jumps) <= 32, "of 256 episodes that could begin"


async def test_the_collector_has_the_heap_back_after_the_run(tmp_path: Path) -> None:
    frozen: list[int] = []

    @environment
    async def counting(task: int, only: Seat) -> float:
        frozen.append(gc.get_freeze_count())
        return float((await only.ask(f"task {task}")).text < "d")

    before = gc.get_freeze_count()
    await train_async(run_of(tmp_path, counting), store=MemorySegments())
    assert min(frozen) > 10_000, "what is imported and read is set aside"
    assert gc.get_freeze_count() == before
    await train_async(run_of(tmp_path / "again", WELL), store=MemorySegments())
    assert gc.get_freeze_count() == before
