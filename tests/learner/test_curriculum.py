"""Runs with a curriculum: killed, replayed, and refused where it makes no sense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
import pytest

from sparring import Curriculum, Episodes, EqualRewards, Policy, Run, Seat, environment, generated, grpo
from sparring.errors import SettingError
from sparring.learner import train_async
from sparring.learner.display import settings_lines
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import Admitted, Opened, canonical, encode
from tests.learner.moods import WELL, run_of, trained
from tests.learner.worlds import Crash, CrashingSegments, events_of


@environment
async def graded(task: int, only: Seat) -> float:
    """Tasks 0 to 2 are always solved, 3 to 5 never, the others every now and then."""
    text = (await only.ask(f"task {task}")).text
    return float(task < 3 or (task > 5 and text < "e"))


def learning(folder: Path, *, k: int = 0, deterministic: bool = True, steps: int = 6) -> Run:
    train = Episodes(graded, range(9), curriculum=Curriculum(window=4))
    return run_of(folder, graded, train=train, max_staleness=k, deterministic=deterministic, steps=steps)


@pytest.mark.parametrize("deterministic", [False, True])
async def test_uncertain_tasks_are_played_most(tmp_path: Path, deterministic: bool) -> None:
    """`trained` replays the run, too."""
    events = await trained(learning(tmp_path, deterministic=deterministic, steps=60))
    drawn = Counter(event.index for event in events if isinstance(event, Admitted))
    certain, uncertain = sum(drawn[index] for index in range(6)) / 6, sum(drawn[index] for index in range(6, 9)) / 3
    assert uncertain > 1.2 * certain > 0, drawn


def starts(kept: MemorySegments, after: bool) -> Iterator[CrashingSegments]:
    while True:
        yield CrashingSegments(kept, 3, after=after)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("k", [0, 1])
async def test_killed_again_and_again_it_draws_the_same(tmp_path: Path, k: int, after: bool) -> None:
    undisturbed, kept = MemorySegments(), MemorySegments()
    assert await train_async(learning(tmp_path / "undisturbed", k=k), store=undisturbed)
    kills = 0
    for store in starts(kept, after):
        with anyio.fail_after(20):
            try:
                assert await train_async(learning(tmp_path / "killed", k=k), store=store)
                break
            except Crash:
                kills += 1
    assert kills > 3
    first, second = ([encode(event) for event in canonical(events_of(one))] for one in (undisturbed, kept))
    assert first == second


async def test_another_task_is_found_out(tmp_path: Path) -> None:
    events = await trained(learning(tmp_path))
    at = max(number for number, event in enumerate(events) if isinstance(event, Admitted))
    admitted = events[at]
    assert isinstance(admitted, Admitted)
    other = msgspec.structs.replace(admitted, index=(admitted.index + 1) % 9)
    found = compare([*events[:at], other, *events[at + 1 :]]).differences
    assert any(f"group {admitted.group} was admitted as" in line for line in found), found


async def test_beside_a_filter_what_is_filtered_is_heeded(tmp_path: Path) -> None:
    """Groups that are dropped for equal rewards teach nothing but where not to look."""
    filtered = Policy("model", grpo(filters=[EqualRewards()]))
    run = replace(learning(tmp_path, deterministic=False, steps=20), policies=filtered, max_refill=500)
    events = await trained(run)
    drawn = Counter(event.index for event in events if isinstance(event, Admitted))
    assert sum(drawn[index] for index in range(6, 9)) / 3 > 1.2 * sum(drawn[index] for index in range(6)) / 6, drawn


async def test_it_stands_on_the_first_lines(tmp_path: Path) -> None:
    opened = (await trained(learning(tmp_path, steps=1)))[0]
    assert isinstance(opened, Opened)
    assert any("curriculum=Curriculum(success=1.0, window=4)" in line for line in settings_lines(opened.run))


def test_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"curriculum=.*endless source never plays a task twice; give a finite list"):
        Episodes(graded, generated(lambda rng: rng.randrange(9)), curriculum=Curriculum())
    with pytest.raises(SettingError, match=r"curriculum='hard': must be None or Curriculum\(\)"):
        Episodes(graded, range(3), curriculum="hard")  # type: ignore[arg-type]
    held_out = Episodes(graded, range(30, 32), curriculum=Curriculum())
    for given in (held_out, {"one": held_out}):
        with pytest.raises(SettingError, match=r"curriculum=.*all held-out tasks are played; leave it out here"):
            run_of(tmp_path, WELL, held_out=given)
