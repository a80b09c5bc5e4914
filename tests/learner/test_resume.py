"""A run that is killed before or after any commit of its journal ends as if nothing had happened."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec
import pytest

from sparring import Run
from sparring.learner import train_async
from sparring.learner.checked import schedule_of
from sparring.learner.continuity import decided_again, exactly_once, unchanged
from sparring.learner.folder import RunFolder
from sparring.learner.resume import bases
from sparring.learner.snapshots import read, readable
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import Admitted, Planned
from sparring.rollout.journal import Snapshot
from sparring.rollout.snapshot import packed
from tests.learner.worlds import (
    Crash,
    CrashingSegments,
    Recorded,
    canonical_bytes,
    crash_at_every_commit,
    duel_run,
    events_of,
)


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


class Reading(MemorySegments):
    """What survived a crash; it notes after how many segments it was read each time, past the first event."""

    def __init__(self, kept: MemorySegments) -> None:
        super().__init__()
        self.blobs, self.kept = kept.blobs, kept.kept
        self.inner = kept
        self.after: list[int] = []
        self.had_snapshots = bool(kept.kept)

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        self.inner.append(blob, snapshot)

    def read(self, after: int = 0) -> Iterator[bytes]:
        if after:
            self.after.append(after)
        for number, blob in enumerate(super().read(after)):
            if number == 1 and not after:
                self.after.append(after)
            yield blob


async def crashed(run: Run, commit: int) -> MemorySegments:
    kept = MemorySegments()
    with suppress(Crash):
        await train_async(run, store=CrashingSegments(kept, commit, after=True))
    return kept


def newest_that_is_old_enough(run: Run, kept: Recorded) -> int:
    """After how many segments the newest snapshot of all was taken that lies before each step that has to be redone."""
    folder, state = RunFolder(run.path), Coordinator(schedule_of(run))
    for event in events_of(kept):
        state.apply(event)
    since = bases(run, state, {policy: folder.checkpoints(policy) for policy in run.named_policies})
    enough = [at for at, one in readable(kept.all) if all(one.versions[name] <= since[name] for name in since)]
    return max(enough, default=0)


async def test_a_resume_reads_what_comes_after_the_newest_snapshot_that_is_old_enough(tmp_path: Path) -> None:
    """Of all that were ever taken: none that is needed was deleted. Where there is none, it reads everything, once."""
    run, kept = duel_run(tmp_path, k=1, deterministic=False, steps=20), Recorded()
    begun: list[int] = []
    while True:
        events, reading = events_of(kept), Reading(kept)
        expected = await anyio.to_thread.run_sync(newest_that_is_old_enough, run, kept)
        try:
            if await train_async(run, store=CrashingSegments(reading, 3 + len(begun) % 11, after=True)):
                break
        except Crash:
            pass
        assert not events or reading.after[-1] == expected
        assert len(reading.after) <= 1 or reading.had_snapshots
        begun.append(expected)
        assert unchanged(events, events_of(kept)).holds
    assert begun == sorted(begun) and len(set(begun)) > 3, "it begins later and later"
    events = events_of(kept)
    verdicts = [*exactly_once(events, run), decided_again(events, snapshots=kept.all)]
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert 1 <= len(kept.snapshots()) <= 4 < len(kept.all), "older ones are deleted"


@pytest.mark.parametrize("k", [0, 1])
async def test_without_usable_snapshots_the_whole_journal_is_read_once_and_ends_in_the_same(
    tmp_path: Path, k: int
) -> None:
    """An old journal has none; one of another schema, or damaged, is as good as none."""
    undisturbed = MemorySegments()
    assert await train_async(duel_run(tmp_path / "undisturbed", k=k, steps=7), store=undisturbed)
    for number, spoil in enumerate((None, b"damaged", packed({"schema": 99}))):
        run = duel_run(tmp_path / f"{number}", k=k, steps=7)
        kept = await crashed(run, 24)
        assert kept.snapshots(), "the crash comes after a checkpoint"
        for name, (segment, _) in list(kept.kept.items()):
            del kept.kept[name]
            if spoil is not None:
                kept.kept[name] = (segment, spoil)
        reading = Reading(kept)
        assert await train_async(run, store=reading)
        assert reading.after == [0]
        assert canonical_bytes(kept) == canonical_bytes(undisturbed)
        assert decided_again(events_of(kept), snapshots=kept.snapshots()).holds, "and there are snapshots again"


async def test_where_a_checkpoint_is_gone_an_older_one_is_started_from(tmp_path: Path) -> None:
    undisturbed = MemorySegments()
    assert await train_async(duel_run(tmp_path / "undisturbed", steps=7), store=undisturbed)
    run = duel_run(tmp_path, steps=7)
    kept = await crashed(run, 24)
    shutil.rmtree(run.path / "checkpoints")
    reading = Reading(kept)
    assert await train_async(run, store=reading)
    assert reading.after[-1] == 0, "no snapshot lies before step 0"
    assert canonical_bytes(kept) == canonical_bytes(undisturbed)


async def test_a_snapshot_whose_coordinator_is_damaged_is_passed_over(tmp_path: Path) -> None:
    undisturbed = MemorySegments()
    assert await train_async(duel_run(tmp_path / "undisturbed", steps=7), store=undisturbed)
    run = duel_run(tmp_path, steps=7)
    kept = await crashed(run, 24)
    for name, (segment, blob) in kept.kept.items():
        state = read(blob)
        assert state is not None
        kept.kept[name] = (segment, packed(msgspec.structs.replace(state, coordinator=msgspec.Raw(packed(7)))))
    assert await train_async(run, store=kept)
    assert canonical_bytes(kept) == canonical_bytes(undisturbed)
