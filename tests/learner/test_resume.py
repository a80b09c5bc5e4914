"""A run that is killed before or after any commit of its journal ends as if nothing had happened."""

from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from sparring.learner import train_async
from sparring.learner.continuity import decided_again, exactly_once, unchanged
from sparring.rollout import MemorySegments
from sparring.rollout.events import Admitted, Planned
from tests.learner.worlds import Crash, CrashingSegments, canonical_bytes, crash_at_every_commit, duel_run, events_of


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("k", [0, 1])
async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path, k: int, after: bool) -> None:
    commits = await crash_at_every_commit(lambda folder: duel_run(folder, k=k), tmp_path, after=after)
    assert commits > 10, "the run has plan, step and evaluation commits: far more than ten"


@pytest.mark.parametrize("k", [0, 2])
async def test_a_run_that_crashes_again_and_again_loses_and_doubles_nothing(tmp_path: Path, k: int) -> None:
    """Tiers A and B, without the pinned schedule: what is committed stays, every plan is trained as planned, and once."""
    run = duel_run(tmp_path, k=k, deterministic=False, steps=6)
    kept = MemorySegments()
    finished = False
    while not finished:
        before = events_of(kept)
        with anyio.fail_after(20):
            with suppress(Crash):
                finished = await train_async(run, store=CrashingSegments(kept, 3, after=len(kept.blobs) % 2 == 0))
        assert unchanged(before, events_of(kept)).holds
    events = events_of(kept)
    verdicts = [*exactly_once(events, run), decided_again(events)]
    assert all(verdict.holds for verdict in verdicts), verdicts
    for policy in ("alice", "bob"):
        trained = {group for e in events if isinstance(e, Planned) and e.policy == policy for group in e.groups}
        assert trained == {e.group for e in events if isinstance(e, Admitted)}, "every unit was trained"


async def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    store = MemorySegments()
    run = duel_run(tmp_path)
    assert await train_async(run, store=store)
    before = canonical_bytes(store)
    assert await train_async(run, store=store)
    assert canonical_bytes(store) == before
