"""A run on a disk that is full: the error names the file and what to do; nothing is lost, and the run goes on once there is
room."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sparring import Run
from sparring.errors import BackendError, JournalError
from sparring.learner import train_async
from sparring.learner.continuity import exactly_once, unchanged
from sparring.learner.history import read_events
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Checkpointed, Stepped
from tests.disks import grow, small_disk
from tests.learner.slow_run import slow_run
from tests.learner.worlds import digests_of, duel_run

ROOT = Path(__file__).parents[2]


async def journal(run: Run) -> Sequence[AnyEvent]:
    return await anyio.to_thread.run_sync(lambda: list(read_events(run.path)))


async def undisturbed(folder: Path, steps: int) -> dict[tuple[str, int], str]:
    store = MemorySegments()
    assert await train_async(duel_run(folder, steps=steps), store=store)
    return digests_of(store)


async def goes_on(run: Run, before: Sequence[AnyEvent], expected: dict[tuple[str, int], str]) -> None:
    """Now that there is room, to the weights that it would have had anyway."""
    with anyio.fail_after(60):
        assert await train_async(run)
    events = await journal(run)
    assert unchanged(before, events).holds
    assert {(e.policy, e.step): e.digest for e in events if isinstance(e, Stepped)} == expected
    assert all(verdict.holds for verdict in exactly_once(events, run))


async def test_wherever_the_disk_is_full_the_run_says_so_and_goes_on(tmp_path: Path) -> None:
    expected = await undisturbed(tmp_path / "undisturbed", 6)
    failed: Counter[str] = Counter()
    for kib in range(24, 400, 24):
        run = duel_run(tmp_path / f"{kib}", steps=6)
        with small_disk(run.path, kib):
            before: Sequence[AnyEvent] = ()
            try:
                assert await train_async(run)
            except (JournalError, BackendError) as error:
                said = str(error)
                assert str(run.path) in said and ("free some disk space" in said or "make room" in said), said
                failed[said.partition(str(run.path))[2].partition("'")[0]] += 1
                grow(run.path, 20_000)
                before = await journal(run) if (run.path / "journal.db").stat().st_size else ()
            await goes_on(run, before, expected)
    assert failed["/journal.db"] >= 4, failed


async def test_where_no_checkpoint_fits_the_run_says_so_and_goes_on(tmp_path: Path) -> None:
    run, expected = duel_run(tmp_path, steps=6), await undisturbed(tmp_path / "undisturbed", 6)
    with small_disk(run.path / "checkpoints", 4):
        with pytest.raises(
            (JournalError, BackendError), match=rf"'{run.path}/checkpoints/.* cannot be written.* room|space"
        ):
            await train_async(run)
        before = await journal(run)
        assert len([event for event in before if isinstance(event, Checkpointed)]) <= 1
        grow(run.path / "checkpoints", 1000)
        await goes_on(run, before, expected)


SECOND = """
import sys
from pathlib import Path
from sparring.errors import RunLocked
from sparring.learner import train
from tests.learner.slow_run import slow_run
from tests.learner.worlds import duel_run
try:
    train(duel_run(Path(sys.argv[1])))
except RunLocked as error:
    sys.exit(str(error))
"""


async def test_a_second_process_is_kept_out_and_the_first_does_not_notice(tmp_path: Path) -> None:
    program = "from tests.learner.slow_run import main; main()"
    first = [sys.executable, "-c", program, str(tmp_path), "asyncio", "step=0.1"]
    process = await anyio.open_process(first, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    async with process:
        try:
            assert process.stdout is not None
            with anyio.fail_after(60):
                assert (await process.stdout.receive()).startswith(b"opened")
                process.send_signal(signal.SIGSTOP)  # so that it has not ended before the second begins
                second = await anyio.run_process([sys.executable, "-c", SECOND, str(tmp_path)], check=False, cwd=ROOT)
                process.send_signal(signal.SIGCONT)
                said = b"".join([chunk async for chunk in process.stdout])
        finally:
            with suppress(ProcessLookupError):  # it may have ended
                process.kill()
    assert second.returncode == 1 and b"is in use by another process: wait for it, or use another name" in second.stderr
    assert said.endswith(b"complete\n")
    assert await train_async(slow_run(tmp_path, step=0.1)), "the lock is gone with its process"
