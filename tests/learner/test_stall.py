"""Who waits for what: the innermost wait of each, since when, and nothing of what is over."""

from __future__ import annotations

import pytest

from sparring.learner.run_statistics import RunStatistics, WatcherStatistics
from sparring.learner.stall import Waits
from sparring.learner.versions import VersionStatistics
from sparring.rollout.books import BudgetStatistics
from sparring.rollout.buffer import BufferStatistics
from sparring.rollout.journal import JournalStatistics
from sparring.rollout.loop_watch import Held, LoopStatistics
from sparring.rollout.slots import SlotStatistics
from sparring.rollout.stack import Place


def test_the_innermost_wait_is_told_and_the_outer_one_again_after_it() -> None:
    waits = Waits()
    with waits.on("learner", "the samplers"):
        with waits.on("learner", "the disk"), waits.on("pump", "a watcher"):
            assert waits.lines == ["learner: waits for the disk, for 0 s", "pump: waits for a watcher, for 0 s"]
        assert waits.lines == ["learner: waits for the samplers, for 0 s"]
    assert waits.lines == []


def test_a_wait_that_fails_is_over() -> None:
    waits = Waits()
    with pytest.raises(KeyError), waits.on("learner", "the disk"):
        raise KeyError
    assert waits.lines == []


def standing() -> RunStatistics:
    held = Held(place=Place(function="search", file="game.py", line=3), times=2, seconds=4.0, longest=3.0)
    budget = BudgetStatistics(
        version=1, installed=1, outstanding=3, in_flight=2, ready=1, planned=0, admitted=5, trained=2, dropped=0, room=1
    )
    return RunStatistics(
        loop=LoopStatistics(beats=20, lag_p50=0.001, lag_p99=0.5, lag_max=3.0, held=(held,)),
        slots=SlotStatistics(slots=8, used=2, waiting=1),
        buffer=BufferStatistics(units=1, tokens=90, kept=0),
        journal=JournalStatistics(appended=9, durable=8, queued_bytes=100, segments=4),
        watchers=WatcherStatistics(untold=1, most=1024),
        budget={"alice": budget, "bob": budget},
        versions=dict.fromkeys(("alice", "bob"), VersionStatistics(newest=1, open=2, held=1, holds=4)),
        backend={"engine/waiting": 2.0},
    )


def test_every_number_has_a_name_of_its_own() -> None:
    figures = standing().figures("bob")
    assert figures["run/budget/in_flight"] == 2 and figures["run/versions/holds"] == 4
    assert figures["run/loop/lag_p99"] == 0.5 and figures["run/loop/held"] == 1
    assert figures["run/journal/queued_bytes"] == 100 and figures["run/slots/waiting"] == 1
    assert all(name.startswith("run/") and isinstance(value, float) for name, value in figures.items())
    assert len(figures) == 5 + 3 + 3 + 4 + 2 + 10 + 4 + 1
    assert figures["run/backend/engine/waiting"] == 2


def test_a_person_reads_a_line_for_each_part_and_for_who_held_the_loop() -> None:
    lines = standing().lines
    assert lines[0] == "loop: beats 20, lag_p50 0.001, lag_p99 0.500, lag_max 3.000, held 1"
    assert lines[1] == "slots: slots 8, used 2, waiting 1"
    assert [line.partition(":")[0] for line in lines[6:10]] == [
        "budget of alice",
        "versions of alice",
        "budget of bob",
        "versions of bob",
    ]
    assert lines[-1] == "search (game.py:3) held the event loop 2 times, 4.0 s in all, at most 3.0 s"
