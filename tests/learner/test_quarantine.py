"""An episode that ends the process is played again once; the second time it is quarantined, and the run goes on without it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from sparring import Episodes, Run
from sparring.learner import train_async
from sparring.learner.continuity import decided_again, exactly_once
from sparring.learner.history import history, read_events
from sparring.rollout import MemorySegments
from sparring.rollout.events import Admitted, AnyEvent, Died, Ended, Evaluated, Noted, encode, segment
from tests.learner.moods import WELL, run_of, seldom, trained
from tests.learner.worlds import Crash, CrashingSegments

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from sparring.learner import train
from tests.learner.test_quarantine import fatal_run
assert train(fatal_run(Path(sys.argv[1]), *sys.argv[2:]))
"""


def fatal_run(folder: Path, how: str, *more: str) -> Run:
    """A run in which some episodes end the process: of the training tasks, or of the held-out ones."""
    if "held-out" in more:
        return run_of(folder, WELL, steps=1, held_out=Episodes(seldom(how), range(30, 33)))
    return run_of(folder, seldom(how), steps=1, deterministic="deterministic" in more, max_staleness=1)


def lived(folder: Path, *words: str) -> tuple[int, list[AnyEvent]]:
    """How many processes it takes until one ends well, and the journal then."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *words]
    for deaths in range(20):
        done = subprocess.run(command, check=False, cwd=ROOT, timeout=60, capture_output=True)
        if done.returncode == 0:
            assert not (folder / "run" / ".running").exists()
            return deaths, list(read_events(folder / "run"))
        assert (done.returncode, done.stderr) == (9, b"")
    raise AssertionError("the run never ends")


@pytest.mark.parametrize("words", [("exits", "deterministic"), ("exits in an effect",)], ids=["play", "effect"])
def test_an_episode_that_ends_the_process_twice_is_quarantined(tmp_path: Path, words: tuple[str, ...]) -> None:
    deaths, events = lived(tmp_path, *words)
    died = Counter((event.group, event.member) for event in events if isinstance(event, Died))
    faults = {(e.group, e.member): e for e in events if isinstance(e, Ended) and e.fault}
    assert died and deaths == sum(died.values())
    assert set(died.values()) == {2}, "once may be somebody else's doing, and three times is too often"
    assert faults.keys() == died.keys(), "nobody else is blamed"
    assert {event.fault for event in faults.values()} == {"quarantined"}
    assert "ended 2 times while its code ran" in next(iter(faults.values())).detail
    run = fatal_run(tmp_path, *words)
    verdicts = [*exactly_once(events, run), decided_again(events)]
    assert all(verdict.holds for verdict in verdicts), verdicts
    told = history(events)
    assert [(fault.kind, fault.count) for fault in told.faults] == [("quarantined", len(died))]
    notes = [note.text for note in told.notes if note.kind == "died"]
    assert len(notes) == deaths and "while the code of episode" in notes[0]


def test_a_held_out_episode_that_ends_the_process_is_quarantined_too(tmp_path: Path) -> None:
    deaths, events = lived(tmp_path, "exits", "held-out")
    died = Counter((event.version, event.group) for event in events if isinstance(event, Died))
    assert died and set(died.values()) == {2} and deaths == sum(died.values())
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert [event.version for event in evaluated] == [0, 1]
    lost = {(e.version, task) for e in evaluated for task, value in enumerate(e.values) if value is None}
    assert lost == died.keys()
    said = [e.transcripts[task][-1] for e in evaluated for task, value in enumerate(e.values) if value is None]
    assert set(said) == {("fault", "quarantined: the process ended 2 times while its code ran")}


async def begun(run: Run, died: Sequence[Died]) -> MemorySegments:
    """A journal that holds the run's settings, and then only which episodes ended processes."""
    kept = MemorySegments()
    with suppress(Crash):
        await train_async(run, store=CrashingSegments(kept, 0, after=True))
    kept.append(segment([encode(event) for event in died]))
    return kept


def lives(group: int, members: Sequence[int], *names: str) -> list[Died]:
    return [Died(life=name, group=group, member=member) for name in names for member in members]


@pytest.mark.parametrize("deterministic", [False, True])
async def test_an_episode_that_was_never_admitted_on_the_disk_is_quarantined(
    tmp_path: Path, deterministic: bool
) -> None:
    """It ended the processes before its group's admission came to the disk; a whole group of them makes room for another."""
    run = run_of(tmp_path, WELL, deterministic=deterministic)
    died = [*lives(0, [1], "a", "b"), *lives(3, [0, 1], "c", "d"), *lives(4, [0], "e"), *lives(5, [0], "f", "f")]
    events = await trained(run, await begun(run, died))
    faults = {(e.group, e.member) for e in events if isinstance(e, Ended) and e.fault == "quarantined"}
    assert faults == {(0, 1), (3, 0), (3, 1)}, "one that ended one process, however often it is told, is played"
    assert all(verdict.holds for verdict in exactly_once(events, run))


async def test_a_quarantine_that_was_not_kept_is_found(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL)
    events = await trained(run, await begun(run, lives(0, [1], "a", "b")))
    second = [at for at, event in enumerate(events) if isinstance(event, Admitted)][1]
    early = events[: second + 1]
    assert decided_again(early).holds
    played = [event for event in early if not isinstance(event, Ended)]
    assert "episode 0/1 was not dropped" in decided_again(played).wrong[0]


async def test_a_run_that_ends_by_itself_blames_nobody(tmp_path: Path) -> None:
    """Cut off by an error, and gone on with."""
    run, kept = run_of(tmp_path, WELL), MemorySegments()
    with suppress(Crash):
        await train_async(run, store=CrashingSegments(kept, 6, after=True))
    assert not run.path.joinpath(".running").exists()
    events = await trained(run, kept)
    assert not [event for event in events if isinstance(event, Died)]
    assert [event.kind for event in events if isinstance(event, Noted)] == ["resumed"]
