"""Pace and drop: what a run does with episodes that take long."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from sparring import Drop, Episodes, League, Lineup, Pace, Policy, Run, Seat, environment, rae
from sparring.errors import RunChanged, SettingError
from sparring.learner import train_async
from sparring.learner.checked import schedule_of
from sparring.learner.replay import compare
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import (
    LATE,
    Acted,
    Admitted,
    AnyEvent,
    Ended,
    Installed,
    Opened,
    Stepped,
    Timed,
    encode,
    segment,
)
from tests.learner.moods import WELL, run_of, sometimes, trained
from tests.learner.worlds import Crash, CrashingSegments, events_of
from tests.rollout.told import Story, schedule


@environment
async def stuck(task: int, only: Seat, *, often: int = 1000) -> float:
    """Task 1, and every so many after it, says something and then never ends by itself."""
    text = (await only.ask(f"task {task}")).text
    if task % often == 1:
        await anyio.sleep_forever()
    return float(len(text))


@environment
async def slow(task: int, only: Seat, *, often: int = 3) -> float:
    """Every so many tasks, one takes as long as some steps."""
    text = (await only.ask(f"task {task}")).text
    if task % often == 0:
        await anyio.sleep(0.05)
    return float(len(text))


class Counting:
    """An endless source, in which task n is n."""

    def __getitem__(self, index: int) -> int:
        return index


def dropping(folder: Path, **settings: Any) -> Run:
    """Group 1 is the one that never ends."""
    train = Episodes(stuck, Counting())
    plain = run_of(folder, stuck, steps=6, max_staleness=2, pacing=Drop(versions=1), max_refill=100, max_faults=0.0)
    return replace(plain, **{"train": train} | settings)


def folded(events: list[AnyEvent], run: Run) -> Coordinator:
    state = Coordinator(schedule_of(run))
    for event in events:
        state.apply(event)
    return state


def check_dropped(events: list[AnyEvent], run: Run) -> None:
    """No reply after an episode's end, every episode ended once, the books balance."""
    ended: set[tuple[int, int]] = set()
    for event in events:
        if isinstance(event, Acted):
            assert (event.group, event.member) not in ended
        if isinstance(event, Ended):
            assert (event.group, event.member) not in ended
            ended.add((event.group, event.member))
    state = folded(events, run)
    assert state.finished and not state.groups
    state.ledger.assert_balanced(state.budget.statistics())


async def test_what_takes_long_is_dropped_and_the_steps_go_on(tmp_path: Path) -> None:
    run = dropping(tmp_path)
    events = await trained(run)
    check_dropped(events, run)
    late = [event for event in events if isinstance(event, Ended) and event.fault]
    assert late and all(event.fault == LATE for event in late)
    assert all("under way while 2 versions were made; pacing drops after 1" in event.detail for event in late)
    state = folded(events, run)
    assert not state.faults.kinds
    assert set(state.bias.table()["policy", "only", "late"].tasks) == {(0, -1)}
    assert sum(row.dropped["late"].units for row in state.ledger.table()) > 0
    assert any("dropped (late)" in line for line in compare(events).lines)


async def test_what_waits_for_a_slot_is_dropped_too(tmp_path: Path) -> None:
    """Two slots, held by episodes that never end until the clock drops them, with the others behind them."""
    often = Episodes(stuck(often=4), Counting())
    run = dropping(tmp_path, max_concurrent=2, train=often, pacing=Drop(versions=1, seconds=0.2))
    events = await trained(run)
    check_dropped(events, run)
    assert {event.fault for event in events if isinstance(event, Ended)} == {"", LATE}


@environment
async def stuck_duel(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
    """Every third task never ends by itself."""
    said = (await one.ask(f"task {task}")).text
    await two.ask(f"task {task}")
    if task % 3 == 1:
        await anyio.sleep_forever()
    return {one: float(len(said)), two: 0.0}


async def test_versions_that_a_late_group_was_played_with_may_go(tmp_path: Path) -> None:
    """Past selves are kept while somebody plays with them, and no longer, also where the group is dropped."""
    duels = Episodes(stuck_duel, Counting(), Lineup({"one": "alice", "two": League("alice")}))
    policies, pacing = {"alice": Policy("model", rae())}, Drop(versions=1, seconds=1.0)
    run = dropping(tmp_path, train=duels, policies=policies, steps=16, pacing=pacing)
    events = await trained(run)
    late = {event.group for event in events if isinstance(event, Ended) and event.fault == LATE}
    under_way, evaluated = (run.max_staleness + 1) * run.groups_per_step, 2
    held = [event.timing["run/versions/holds"] for event in events if isinstance(event, Timed)]
    assert max(held) <= under_way + evaluated < len(late)


async def test_paced_play_is_not_touched(tmp_path: Path) -> None:
    run = dropping(tmp_path, train=Episodes(WELL, range(20)))
    assert not any(isinstance(event, Ended) and event.fault for event in await trained(run))


async def test_what_takes_too_many_seconds_is_dropped(tmp_path: Path) -> None:
    """At k = 0 too, and it is no fault."""
    run = run_of(tmp_path, sometimes("hangs"), max_staleness=0, pacing=Drop(seconds=0.05), max_faults=0.0, steps=4)
    events = await trained(run)
    faults = Counter(event.fault for event in events if isinstance(event, Ended))
    assert set(faults) == {"", LATE} and not folded(events, run).faults.kinds
    assert all("within 0.05 s" in e.detail for e in events if isinstance(e, Ended) and e.fault)


@pytest.mark.parametrize("after", [False, True])
async def test_killed_again_and_again(tmp_path: Path, after: bool) -> None:
    """Between a step and the drops that it causes, too: they are made up for before anything else."""
    run, kept, finished = dropping(tmp_path), MemorySegments(), False
    while not finished:
        with anyio.fail_after(20), suppress(Crash):
            finished = await train_async(run, store=CrashingSegments(kept, 2, after=after))
    events = events_of(kept)
    check_dropped(events, run)
    assert compare(events).agrees, compare(events).lines
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == list(range(6))


async def test_the_journal_may_end_between_a_step_and_its_drops(tmp_path: Path) -> None:
    run, store = dropping(tmp_path), MemorySegments()
    events = await trained(run, store)
    at = next(number for number, event in enumerate(events) if isinstance(event, Ended) and event.fault == LATE)
    assert isinstance(events[at - 1], Stepped)
    from_events = MemorySegments()
    from_events.blobs = [segment([encode(event) for event in events[:at]])]
    with anyio.fail_after(20):
        assert await train_async(replace(run, folder=tmp_path / "again"), store=from_events)
    again = events_of(from_events)
    check_dropped(again, run)
    assert compare(again).agrees, compare(again).lines
    assert any(isinstance(event, Ended) and event == events[at] for event in again)


def test_a_drop_that_was_left_out_is_found_out() -> None:
    """Group 0 is still under way when step 0 is made; all the same another is admitted."""
    story = Story(replace(schedule([{"one": "alice"}], steps=3, batch=2, k=1), drop_after=0))
    story.admit_all()
    story.end(1)
    story.end(2)
    story.plan("alice")
    story.step("alice")
    algorithm = {"advantages": {"is": "GroupMean"}, "compare": {}}
    settings = {"policies": {"alice": {"algorithm": algorithm}}}
    opened = Opened(run={"schedule": msgspec.to_builtins(story.state.schedule), "settings": settings})
    late = story.state.late()
    assert len(late) == 4
    admitted = story.admit()
    found = compare([opened, *story.events]).differences
    assert [line for line in found if "was not dropped: under way while 1 versions were made" in line] == [
        f"episode {one.group}/{one.member} was not dropped: {one.detail}" for one in late
    ]
    in_time = compare([opened, *story.events[:-1], *late, admitted]).differences
    assert not any("was not dropped" in line for line in in_time)


def most_outstanding(events: list[AnyEvent]) -> int:
    """The most groups that were admitted while the version made of them could not be played yet."""
    now = most = 0
    for event in events:
        match event:
            case Admitted():
                now += 1
                most = max(most, now)
            case Installed() if event.version:
                now -= GROUPS
            case _:
                """Nothing comes or goes."""
    assert now == 0
    return most


GROUPS = 2


async def test_a_run_plays_no_further_ahead_than_it_is_told(tmp_path: Path) -> None:
    """Groups end at once but for every third, so that without a limit there are as many as max_staleness allows."""
    every_third = Episodes(slow, range(60))
    run = run_of(tmp_path, WELL, train=every_third, steps=12, max_staleness=4, groups_per_step=GROUPS)
    assert most_outstanding(await trained(run)) == GROUPS * (4 + 1)
    for ahead, most in ((0, GROUPS), (0.5, GROUPS + 1), (1.9, GROUPS + 3), (3, 4 * GROUPS)):
        events = await trained(replace(run, name=f"ahead-{ahead}".replace(".", "-"), pacing=Pace(ahead=ahead)))
        assert most_outstanding(events) == most, ahead


async def test_a_run_that_plays_little_ahead_goes_on_where_it_was(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL, steps=6, max_staleness=3, groups_per_step=GROUPS, pacing=Pace(ahead=1))
    store = MemorySegments()
    with pytest.raises(Crash):
        await train_async(run, store=CrashingSegments(store, 8, after=True))
    begun = sum(isinstance(event, Stepped) for event in events_of(store))
    assert 0 < begun < 6
    assert most_outstanding(await trained(run, store)) == 2 * GROUPS
    with pytest.raises(RunChanged, match=r"pacing\.ahead = 1, now 2: use the same"):
        await train_async(replace(run, pacing=Pace(ahead=2)), store=store)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"pacing": "pace"}, r"pacing='pace': must be Pace\(\) or Drop"),
    ({"pacing": Drop(versions=1)}, "nothing gets older than max_staleness=1; raise max_staleness above versions"),
    ({"pacing": Drop(versions=0), "max_staleness": 0}, "nothing gets older than max_staleness=0"),
    ({"pacing": Drop(seconds=600.0)}, "episode_deadline=600.0 ends episodes before; make seconds less"),
    (
        {"pacing": Drop(seconds=1.0), "deterministic": True},
        "depends on the clock; leave out deterministic=True, or drop",
    ),
    ({"pacing": Drop(versions=0), "deterministic": True}, "depends on the clock"),
    ({"pacing": Pace(ahead=1)}, r"Pace\(ahead=1\): nothing is played further ahead than max_staleness=1; raise"),
    ({"pacing": Pace(ahead=1.5), "max_staleness": 3, "deterministic": True}, "as old as max_staleness says; leave out"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_contradictions_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        run_of(tmp_path, WELL, **settings)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, r"Drop\(\): drops nothing; give versions or seconds"),
        ({"versions": -1}, r"Drop\(versions=-1\): must be a whole number, at least 0"),
        ({"versions": 1.0}, r"Drop\(versions=1.0\)"),
        ({"versions": True}, r"Drop\(versions=True\)"),
        ({"seconds": 0}, r"Drop\(seconds=0\): must be a finite number of seconds above 0"),
        ({"seconds": float("nan")}, r"Drop\(seconds=nan\)"),
        ({"seconds": "1"}, r"Drop\(seconds='1'\)"),
    ],
)
def test_drops_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Drop(**fields)


@pytest.mark.parametrize("ahead", [-1, -0.5, float("inf"), float("nan"), True, "1"])
def test_paces_that_cannot_be(ahead: Any) -> None:
    with pytest.raises(SettingError, match=r"Pace\(ahead=.*\): must be None or a finite number of steps, at least 0"):
        Pace(ahead=ahead)


def test_what_is_possible(tmp_path: Path) -> None:
    assert run_of(tmp_path, WELL).pacing == Pace()
    assert schedule_of(run_of(tmp_path, WELL)).drop_after is None
    assert schedule_of(run_of(tmp_path, WELL, pacing=Drop(versions=0))).drop_after == 0
    assert schedule_of(run_of(tmp_path, WELL, pacing=Drop(seconds=3), max_staleness=0)).drop_after is None
