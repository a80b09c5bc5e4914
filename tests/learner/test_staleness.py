"""A staleness bound that changes over a run: what is trained, what a crash and a replay see of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparring import Drop, Policy, Reuse, Run
from sparring.errors import RunChanged, SettingError
from sparring.learner import train_async
from sparring.learner.checked import schedule_of, versions_at_once
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import Admitted, Opened, Planned
from tests.learner.moods import WELL, run_of, trained
from tests.learner.worlds import crash_at_every_commit


def changing(folder: Path, *, most: int = 3, final: int | None = 0, deterministic: bool = True, steps: int = 4) -> Run:
    return run_of(folder, WELL, max_staleness=most, final_staleness=final, deterministic=deterministic, steps=steps)


@pytest.mark.parametrize(
    "most, final, versions",
    [
        (3, 0, [0, 0, 1, 3]),  # k = 3, 2, 1, 0
        (0, 3, [0, 0, 0, 0]),  # k = 0, 1, 2, 3
        (0, 1, [0, 1, 1, 2]),  # k = 0, 0, 1, 1
        (2, None, [0, 0, 0, 1]),
    ],
)
async def test_a_pinned_run_plays_with_the_versions_of_the_schedule(
    tmp_path: Path, most: int, final: int | None, versions: list[int]
) -> None:
    """Four steps of two groups: the version that the groups of each step are played with."""
    events = await trained(changing(tmp_path, most=most, final=final))
    pinned = [event.pinned["policy"] for event in events if isinstance(event, Admitted)]
    assert pinned == [version for version in versions for _ in range(2)]


@pytest.mark.parametrize("most, final", [(3, 0), (0, 3), (1, 4)])
async def test_no_token_is_older_than_the_bound_of_its_step(tmp_path: Path, most: int, final: int) -> None:
    run = changing(tmp_path, most=most, final=final, deterministic=False, steps=8)
    state, ages = Coordinator(schedule_of(run)), dict[int, int]()
    for event in await trained(run):
        state.apply(event)
        if isinstance(event, Planned):
            contexts = [c for unit in state.batches["policy"].units for t in unit.trajectories for c in t.contexts]
            ages[event.step] = event.step - min(
                int(context.versions[context.action_mask].min()) for context in contexts
            )
    assert len(ages) == 8
    assert all(age <= run.bound.staleness(step) for step, age in ages.items()), ages


@pytest.mark.parametrize("most, final", [(2, 0), (0, 2)])
async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path, most: int, final: int) -> None:
    def run_in(folder: Path) -> Run:
        return changing(folder, most=most, final=final)

    assert await crash_at_every_commit(run_in, tmp_path, after=True, every=2) > 6


async def test_the_journal_says_it_and_a_run_keeps_it(tmp_path: Path) -> None:
    store = MemorySegments()
    events = await trained(changing(tmp_path), store)
    opened = events[0]
    assert isinstance(opened, Opened)
    assert opened.run["schedule"]["bounds"]["policy"]["final_staleness"] == 0
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["settings"]["final_staleness"] == 0
    with pytest.raises(RunChanged, match="final_staleness = 0, now 2"):
        await train_async(changing(tmp_path, final=2), store=store)


def test_what_depends_on_the_largest_bound(tmp_path: Path) -> None:
    assert versions_at_once(changing(tmp_path, most=1, final=5)) == 5 + 2
    assert versions_at_once(changing(tmp_path, most=5, final=1)) == 5 + 2
    with pytest.raises(SettingError, match="nothing gets older than max_staleness=4"):
        run_of(tmp_path, WELL, max_staleness=1, final_staleness=4, pacing=Drop(versions=4))
    with pytest.raises(SettingError, match="with max_staleness=4 a unit may be older than max_age"):
        run_of(tmp_path, WELL, max_staleness=1, final_staleness=4, reuse=Reuse(units=1, max_age=3))


def test_a_run_of_one_step_has_no_way_to_go(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="final_staleness=2: a run of one step has no way to go"):
        run_of(tmp_path, WELL, steps=1, final_staleness=2)
    with pytest.raises(SettingError, match=r"policy 'policy': final_temperature=0\.5: a run of one step"):
        run_of(tmp_path, WELL, steps=1, policies=Policy("m", final_temperature=0.5))


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "none"])
def test_a_bound_that_is_none(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(SettingError, match=r"final_staleness=.*must be None or a whole number, at least 0"):
        run_of(tmp_path, WELL, final_staleness=wrong)
