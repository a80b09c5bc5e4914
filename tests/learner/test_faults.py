"""What goes wrong in a run: it is counted, or it ends the run with the reason; and the run can go on from there."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sparring import Episodes, Frozen, Human, League, Lineup, Seat, effect, environment
from sparring.errors import (
    JournalError,
    RewardError,
    RunChanged,
    RunLocked,
    SettingError,
    SparringError,
    Stalled,
    TooManyFaults,
)
from sparring.learner import train_async
from sparring.learner.history import read_events
from sparring.rollout import MemorySegments
from sparring.rollout.events import (
    Ended,
    Evaluated,
    Noted,
    Stepped,
    canonical,
    encode,
)
from sparring.rollout.journal import Snapshot
from tests.learner.moods import WELL, always, run_of, sometimes, trained
from tests.learner.slow_run import SlowModels
from tests.learner.worlds import digests_of, duel_run, events_of

# ------------------------------------------------------------------------------------------------------------ episodes


async def test_episodes_that_raise_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, sometimes("raises")))
    faults = [event for event in events if isinstance(event, Ended) and event.fault]
    assert faults and all(event.fault == "KeyError" and "Traceback" in event.detail for event in faults)
    assert not any(event.results for event in faults), "nothing of it is trained"
    assert len([event for event in events if isinstance(event, Stepped)]) == 3


async def test_episodes_that_hang_are_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, sometimes("hangs"), episode_deadline=0.05, max_concurrent=2))
    faults = Counter(event.fault for event in events if isinstance(event, Ended))
    assert set(faults) == {"", "deadline"}


async def test_too_many_faults_end_the_run(tmp_path: Path) -> None:
    store, run = MemorySegments(), run_of(tmp_path, always("raises"), max_faults=0.5)
    with pytest.raises(
        TooManyFaults, match=r"8 of 8 episodes failed, more than max_faults=0.5; 8 of them with KeyError, "
    ):
        await train_async(run, store=store)
    with pytest.raises(TooManyFaults, match=r"of \d+ episodes"):
        await train_async(run, store=store)
    assert len([event for event in events_of(store) if isinstance(event, Noted)]) == 1


@pytest.mark.parametrize(
    ("how", "said"), [("raises", "KeyError"), ("unjudged", "seat 'only' was not judged: nobody knows")]
)
async def test_a_run_that_can_train_on_nothing_ends(tmp_path: Path, how: str, said: str) -> None:
    """Every group is dropped and replaced: without a bound the run would go on for ever."""
    with anyio.fail_after(20), pytest.raises(TooManyFaults, match=f"the last 32 groups left 'policy' nothing .*{said}"):
        await train_async(run_of(tmp_path, always(how)), store=MemorySegments())


async def test_a_wrong_reward_ends_the_run_and_a_mended_one_goes_on(tmp_path: Path) -> None:
    store = MemorySegments()
    with pytest.raises(RewardError, match="nan"):
        await train_async(run_of(tmp_path, sometimes("nan")), store=store)
    before = [encode(event) for event in events_of(store)]
    assert not [event for event in events_of(store) if isinstance(event, Ended) and event.fault]
    with pytest.raises(RunChanged, match="environment"):
        await train_async(run_of(tmp_path, sometimes("unjudged")), store=store)
    assert [encode(event) for event in events_of(store)] == before, "a run that is refused leaves the journal as it is"


async def test_held_out_episodes_that_fail_say_why(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL, held_out=Episodes(always("raises"), range(30, 32)))
    events = await trained(run)
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    assert [event.values for event in evaluated] == [[None, None]] * 3
    assert all(lines[-1][0] == "fault" and "KeyError" in lines[-1][1] for lines in evaluated[0].transcripts)
    unsure = run_of(tmp_path / "other", WELL, held_out=Episodes(always("unjudged"), range(30, 32)))
    (first, *_) = [event for event in await trained(unsure) if isinstance(event, Evaluated)]
    assert first.transcripts[0][-1] == ("unjudged", "only: nobody knows")


# ------------------------------------------------------------------------------------------------------------- stalls


async def test_a_stall_says_what_waits(tmp_path: Path) -> None:
    run = run_of(tmp_path, sometimes("hangs"), stall_deadline=0.3, deterministic=True, max_staleness=0)
    with anyio.fail_after(10), pytest.raises(Stalled) as caught:
        await train_async(run, store=MemorySegments())
    said = str(caught.value)
    assert "nothing happened for 0.3 s" in said and "admission: policy: waits for step" in said
    assert "learner of policy" in said and "waits for the environment itself" in said
    assert re.search(r"\nslots: slots 256, used [1-4], waiting 0\n", said), "how everything stands"
    assert re.search(r"\nbudget of policy: version [01], installed [01], outstanding ", said)


async def test_a_stall_of_held_out_play_is_named(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL, held_out=Episodes(always("hangs"), range(30, 32)), stall_deadline=0.3)
    with anyio.fail_after(10), pytest.raises(Stalled) as caught:
        await train_async(run, store=MemorySegments())
    said = str(caught.value)
    assert "evaluation of version 0 on 'held-out': waits for held-out episodes, for " in said
    for index in range(2):
        assert f"held-out 'held-out', task {index}, waits for the environment itself" in said


async def test_a_stall_names_the_model_that_does_not_answer(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL, stall_deadline=0.3, backend=SlowModels(1000.0))
    with anyio.fail_after(10), pytest.raises(Stalled, match="learner of policy: waits for the model: step 0, for "):
        await train_async(run, store=MemorySegments())


async def nap() -> None:
    await anyio.sleep(0.15)


@environment
async def leisurely(task: int, only: Seat) -> float:
    for _ in range(5):
        await only.ask("and then?")
        await effect(nap)
    return 1.0


async def test_a_long_evaluation_is_no_stall(tmp_path: Path) -> None:
    """At the end of a run nothing else happens; held-out replies are journaled only with their result."""
    held_out = Episodes(leisurely, range(30, 32))
    await trained(run_of(tmp_path, WELL, steps=1, held_out=held_out, max_concurrent=1, stall_deadline=1.0))


# ------------------------------------------------------------------------------------------------- the disk and the folder


class FullSegments(MemorySegments):
    """A disk that is full after some segments."""

    def __init__(self, kept: MemorySegments, room: int) -> None:
        super().__init__()
        self.blobs, self.kept = kept.blobs, kept.kept
        self.room = room

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        if self.room == 0:
            raise JournalError("no space left; free some disk space and resume")
        self.room -= 1
        super().append(blob, snapshot)


async def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(tmp_path: Path) -> None:
    undisturbed = MemorySegments()
    await train_async(duel_run(tmp_path / "undisturbed"), store=undisturbed)
    expected = [encode(event) for event in canonical(events_of(undisturbed))]
    for room in range(0, 30, 4):
        kept, run = MemorySegments(), duel_run(tmp_path / f"{room}")
        with anyio.fail_after(20):
            try:
                await train_async(run, store=FullSegments(kept, room))
            except JournalError as error:
                assert "free some disk space" in str(error)  # noqa: PT017 - the run with the most room ends well
                assert await train_async(run, store=kept)
        assert [encode(event) for event in canonical(events_of(kept))] == expected


FULL = """
import resource, sys
from pathlib import Path
from sparring.errors import JournalError
from sparring.learner import train
from tests.learner.slow_run import SlowModels
from tests.learner.worlds import duel_run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    train(duel_run(Path(sys.argv[1]), steps=8))
except JournalError as error:
    sys.exit(str(error))
"""


async def test_a_real_full_disk(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for size in (30_000, 60_000):
        command = [sys.executable, "-c", FULL, str(tmp_path), str(size)]
        done = await anyio.run_process(command, check=False, cwd=root)
        assert done.returncode == 1, done.stderr
        assert b"disk I/O error; free some disk space" in done.stderr and b"Traceback" not in done.stderr
    assert await train_async(duel_run(tmp_path, steps=8))
    expected = MemorySegments()
    assert await train_async(duel_run(tmp_path / "other", steps=8), store=expected)
    told = await anyio.to_thread.run_sync(lambda: list(read_events(tmp_path / "duel")))
    found = [event for event in told if isinstance(event, Stepped)]
    assert {(event.policy, event.step): event.digest for event in found} == digests_of(expected)


async def test_a_folder_in_use(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(train_async, run_of(tmp_path, sometimes("hangs"), episode_deadline=60.0))
        while not (tmp_path / "run" / "journal.db").exists():  # noqa: ASYNC110 - another task's thread makes it
            await anyio.sleep(0.01)
        with pytest.raises(RunLocked, match="in use by another process"):
            await train_async(run_of(tmp_path, WELL))
        group.cancel_scope.cancel()


# -------------------------------------------------------------------------------------------------------------- at start


@pytest.mark.parametrize(
    ("where", "lineup", "error", "said"),
    [
        (
            "train",
            {"first": "alice", "second": Frozen("bob@4")},
            SettingError,
            r"Frozen\('bob@4'\), and a run of steps=3 makes none after 3",
        ),
        (
            "held_out",
            {"first": "alice", "second": Frozen("bob@4")},
            SettingError,
            r"Frozen\('bob@4'\), and a run of steps=3 makes none after 3",
        ),
        ("train", {"first": "alice", "second": Frozen("bob@2")}, SettingError, "policy 'bob' plays no training seat"),
        ("held_out", {"first": "alice", "second": League("bob")}, SettingError, r"name one, as in Frozen\('bob@0'\)"),
        ("train", {"first": "alice", "second": Human()}, SettingError, "people play in `sparring play`"),
        ("held_out", {"first": "alice", "second": Human()}, SettingError, "people play in `sparring play`"),
        ("train", {"first": Frozen("alice@0"), "second": Frozen("bob@0")}, SettingError, "nobody learns"),
        ("train", {"first": "alice", "second": "alice"}, SettingError, "policy 'bob' plays no training seat"),
    ],
)
async def test_players_that_a_run_cannot_seat(
    tmp_path: Path, where: str, lineup: Mapping[str, Any], error: type[SparringError], said: str
) -> None:
    run = duel_run(tmp_path)
    source = run.train if where == "train" else run.held_out
    assert isinstance(source, Episodes)
    other = replace(source, lineup=Lineup(lineup))
    changed = replace(run, train=other) if where == "train" else replace(run, held_out=other)
    with pytest.raises(error, match=said):
        await train_async(changed)
    assert not run.path.exists(), "nothing is made for a run that is refused"
