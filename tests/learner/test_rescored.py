"""What rows come to, and how it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparring.learner.rescored import Outcome, Rescoring, Row, StepChange, TaskChange, rows_of, spans
from sparring.rollout.events import Admitted, Ended, SeatResult

ADMITTED = Admitted(group=3, source=1, index=7, task="t", lineup=0, trained=["policy"])


def ended(*results: SeatResult, **more: Any) -> Ended:
    return Ended(group=3, member=2, results=list(results), **more)


def result(value: float | None, seat: str = "one", **more: Any) -> SeatResult:
    return SeatResult(seat=seat, value=value, **more)


def row(before: float | None, after: float | None, outcome: Outcome, **more: Any) -> Row:
    given: dict[str, Any] = {"group": 0, "member": 0, "source": 0, "index": 0, "seat": "one", "fork": "", "label": ""}
    return Row(before=before, after=after, outcome=outcome, **given | more)


EMPTY = Rescoring(rows=(), steps=(), episodes=0, unfinished=0, unasked=0, new_tasks=0)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (1.0, 1.0, "equal"),
        (0.0, 0.5, "higher"),
        (0.5, 0.0, "lower"),
        (None, 0.0, "judged"),
        (0.0, None, "unjudged"),
        (None, None, "neither"),
    ],
)
def test_what_became_of_a_reward(before: float | None, after: float | None, outcome: str) -> None:
    (found,) = rows_of(ADMITTED, ended(result(before)), ended(result(after)), None)
    assert (found.before, found.after, found.outcome) == (before, after, outcome)
    assert (found.group, found.member, found.source, found.index) == (3, 2, 1, 7)


def test_every_seat_and_fork_of_then_and_now_has_a_row() -> None:
    then = ended(result(1.0, label="old"), result(2.0, "two"), result(3.0, fork="1"))
    now = ended(result(1.0, label="new"), result(4.0, fork="2"), result(None, "two", unjudged="no verdict"))
    found = [(one.seat, one.fork, one.outcome, one.label, one.detail) for one in rows_of(ADMITTED, then, now, None)]
    assert found == [
        ("one", "", "equal", "new", ""),
        ("one", "1", "unjudged", "", ""),
        ("one", "2", "judged", "", ""),
        ("two", "", "unjudged", "", "no verdict"),
    ]


def test_an_episode_that_has_no_result_at_all_has_a_row_too() -> None:
    (found,) = rows_of(ADMITTED, ended(fault="KeyError"), ended(fault="KeyError", detail="said"), "fault")
    assert (found.seat, found.outcome, found.before, found.after, found.detail) == ("", "fault", None, None, "said")
    assert replace(EMPTY, rows=(found,)).seats == []


def test_seats_and_tasks() -> None:
    rows = (
        row(0.0, 1.0, "higher", index=4),
        row(1.0, 1.0, "equal", index=4, member=1),
        row(1.0, 0.0, "lower", index=2, source=1),
        row(0.5, 0.5, "equal", index=9),
        row(5.0, None, "asks", index=4, member=2),
        row(None, 5.0, "judged", index=4, member=3),
        row(2.0, 2.25, "higher", seat="two"),
    )
    found = replace(EMPTY, rows=rows)
    one, two = found.seats
    assert dict(one.outcomes) == {"higher": 1, "equal": 2, "lower": 1, "asks": 1, "judged": 1}
    assert (one.seat, one.before, one.after) == ("one", 2.5 / 4, 2.5 / 4), "of those that have both"
    assert (two.seat, two.before, two.after) == ("two", 2.0, 2.25)
    assert found.tasks == [
        TaskChange(source=1, index=2, seat="one", count=1, before=1.0, after=0.0),
        TaskChange(source=0, index=4, seat="one", count=2, before=0.5, after=1.0),
        TaskChange(source=0, index=0, seat="two", count=1, before=2.0, after=2.25),
    ]


def test_how_it_reads() -> None:
    rows = (
        row(0.0, 1.0, "higher", index=4),
        row(None, None, "fault", seat="", member=1, detail="Traceback\n  x\nKeyError: 'a'\n"),
        row(1.0, None, "asks", member=2, detail="seat 'one' asks something else at turn 1"),
        row(1.0, None, "asks", member=2, seat="two", detail="seat 'one' asks something else at turn 1"),
        row(1.0, None, "asks", group=1, detail="seat 'one' asks something else at turn 0"),
        row(None, None, "cut", seat="", group=2, detail="seat 'one' asks for more than the journal holds at turn 3"),
    )
    steps = [StepChange(policy="p", step=step, advantages="other") for step in (0, 2, 3, 4)]
    steps += [StepChange(policy="p", step=1, advantages="unknown"), StepChange(policy="q", step=0, advantages="same")]
    found = Rescoring(
        rows=rows,
        steps=tuple(steps),
        episodes=5,
        unfinished=3,
        unasked=1,
        new_tasks=2,
        accepted=("after 9 admissions",),
    )
    assert found.lines == [
        "5 stored episodes scored again",
        "one: 0 equal, 1 higher, 0 lower, 2 asks; mean reward 0.000 -> 1.000",
        "two: 0 equal, 0 higher, 0 lower, 1 asks",
        "1 fail now; group 0, episode 1: KeyError: 'a'",
        "2 ask for a reply that the journal does not hold; group 0, episode 2: seat 'one' asks something else at turn 1",
        "1 had been cut off, and go on for longer than the journal does; group 2, episode 0: seat 'one' asks for more "
        "than the journal holds at turn 3",
        "1 ended without asking for all the replies that the journal holds",
        "2 played a task whose content is other now",
        "3 never ended and were not scored",
        "tasks with another mean reward: 1",
        "  train/0 task 4, one: 0.000 -> 1.000 (1 reward)",
        "steps of 'p' with other advantages: 4 of 5: 0, 2-4; not known for 1: 1",
        "steps of 'q' with other advantages: 0 of 1",
        "after 9 admissions",
    ]
    assert EMPTY.lines == ["0 stored episodes scored again"]


def test_of_many_tasks_the_largest_changes_are_shown() -> None:
    rows = tuple(row(0.0, float(index), "higher", index=index) for index in range(1, 14))
    lines = replace(EMPTY, rows=rows).lines
    assert lines[2] == "tasks with another mean reward: 13, the largest 10"
    assert [line.split()[2] for line in lines[3:]] == [f"{index}," for index in range(13, 3, -1)]


def test_spans() -> None:
    assert spans([]) == ""
    assert spans([0]) == "0"
    assert spans([0, 2, 3, 5, 6, 7]) == "0, 2-3, 5-7"
