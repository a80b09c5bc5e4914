"""A run that is killed before or after any commit of its journal ends as if nothing had happened."""

from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from sparring.learner import train_async
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, Admitted, Affected, Ended, Planned, Stepped, encode
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
        before = [encode(event) for event in events_of(kept)]
        with anyio.fail_after(20):
            with suppress(Crash):
                finished = await train_async(run, store=CrashingSegments(kept, 3, after=len(kept.blobs) % 2 == 0))
        assert [encode(event) for event in events_of(kept)][: len(before)] == before, "history was rewritten"
    events = events_of(kept)
    admitted = [event.group for event in events if isinstance(event, Admitted)]
    assert admitted == list(range(len(admitted))), "groups are an initial segment"
    keys = [(e.group, e.member, *e.key) for e in events if isinstance(e, Acted | Affected)]
    assert len(keys) == len(set(keys)), "a reply was produced twice"
    ended = [(e.group, e.member) for e in events if isinstance(e, Ended)]
    assert len(ended) == len(set(ended)) == 2 * len(admitted), "an episode ended twice, or never"
    for policy in ("alice", "bob"):
        planned = {e.step: e.groups for e in events if isinstance(e, Planned) and e.policy == policy}
        steps = [e.step for e in events if isinstance(e, Stepped) and e.policy == policy]
        assert steps == list(range(6)), "every step once, in order"
        trained = [group for step in steps for group in planned[step]]
        assert sorted(trained) == admitted, "every unit was trained exactly once"


async def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    store = MemorySegments()
    run = duel_run(tmp_path)
    assert await train_async(run, store=store)
    before = canonical_bytes(store)
    assert await train_async(run, store=store)
    assert canonical_bytes(store) == before
