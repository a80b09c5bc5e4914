"""The live display: three lines of settings, then aligned rows, one for each step."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sparring.learner.display import COLUMNS, LEGEND, Display, settings_lines, shown, span
from sparring.rollout.events import AnyEvent, Ended, Evaluated, Installed, Noted, Opened, Stepped, Timed
from tests.learner.story import story

HEAD = 4
"""Lines before the table: three of settings, one that explains the columns."""


def displayed(events: Sequence[AnyEvent]) -> list[str]:
    """What a display writes when it is told these events."""
    stream = io.StringIO()
    display = Display(stream)
    for event in events:
        if isinstance(event, Opened):
            display.opened(event.run)
        else:
            display.event(event)
    display.closed()
    return stream.getvalue().splitlines()


def rows(lines: Sequence[str]) -> list[str]:
    """The rows of the table."""
    return [line for line in lines[HEAD:] if line.split()[0].partition("/")[0].isdecimal()]


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (name, plain value) in nested settings."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield from leaves(item)
        elif not isinstance(item, list):
            yield name, item


def test_the_first_three_lines_hold_every_setting() -> None:
    events = story(12)
    assert isinstance(events[0], Opened)
    run = events[0].run
    first, second, third = displayed(events)[:3]
    del run["settings"]["policies"]["policy"]["adam"]["learning_rate"]  # the policy's own replaces it
    for name, value in leaves(run["settings"]):
        if name in ("is", "model", "backend"):
            assert value == "Policy" or str(value) in first + second
        else:
            assert f"{name}={value}" in first + second, name
    assert "dtype=bfloat16" in first
    assert "adam=Adam(beta1=0.9" in first
    assert "held_out/held-out: tests.learner.story:sums rounds=1 tasks=20" in third
    assert "greedy=True" in third
    assert "train/0: tests.learner.story:sums rounds=1 tasks=100" in third


def test_one_learning_rate_is_shown_and_it_is_the_one_that_counts() -> None:
    first = displayed(story(2))[0]
    assert first.count("learning_rate=") == 1
    assert "learning_rate=0.0003" in first


def test_settings_are_written_as_calls_without_empty_parts() -> None:
    assert shown({"is": "PPO", "clip": 0.2, "compare": {}}) == "PPO(clip=0.2)"
    assert shown({"backend": "local", "threads": None}) == "local(threads=None)"
    assert shown([{"solver": "policy"}, 1e-8]) == "[(solver=policy), 1e-08]"


@pytest.mark.parametrize("policies", [("policy",), ("alice", "bob")])
def test_columns_are_aligned(policies: tuple[str, ...]) -> None:
    lines = displayed(story(25, policies=policies))
    header = next(line for line in lines[HEAD:] if line.split()[0] == "step")
    for line in rows(lines):
        assert len(line) == len(header)
        end = len(line)
        for column in reversed(COLUMNS):
            cell, title = line[end - column.width : end], header[end - column.width : end]
            assert line[end - column.width - 1] == " "
            assert cell == cell.strip().rjust(column.width)
            assert title.strip() == column.title
            end -= column.width + 1


def test_there_is_one_row_for_each_step_and_one_for_the_start() -> None:
    lines = rows(displayed(story(12)))
    assert [line.split()[0] for line in lines] == [f"{version}/12" for version in range(13)]


def test_held_out_figures_stand_in_the_row_of_their_version() -> None:
    events = story(12)
    shown_in = {line.split()[0]: "[" in line for line in rows(displayed(events))}
    assert [row for row, fresh in shown_in.items() if fresh] == ["0/12", "10/12", "12/12"]


def test_an_evaluation_that_comes_late_gets_a_row_of_its_own() -> None:
    events = story(3, late=True)
    lines = rows(displayed(events))
    assert [line.split()[0] for line in lines] == ["1/3", "0/3", "2/3", "3/3"]
    assert lines[1].split()[-len(COLUMNS) :] == ["-"] * len(COLUMNS)


def test_a_row_waits_for_its_evaluation_but_not_beyond_the_next_step() -> None:
    events = [event for event in story(12) if not isinstance(event, Evaluated) or event.version != 10]
    lines = rows(displayed(events))
    assert [line.split()[0] for line in lines] == [f"{version}/12" for version in range(13)]


def test_a_row_is_written_as_soon_as_it_is_complete() -> None:
    stream = io.StringIO()
    display = Display(stream)
    counts = []
    for event in story(3):
        if isinstance(event, Opened):
            display.opened(event.run)
        else:
            display.event(event)
        if isinstance(event, Timed | Evaluated):
            counts.append(len(rows(stream.getvalue().splitlines())))
    assert counts == [1, 2, 3, 3, 4]  # version 0; steps 1 and 2; step 3 waits for its evaluation; then it comes


def test_other_held_out_sets_get_a_line_each() -> None:
    lines = displayed(story(2, held_out=("now", "one shot")))
    assert [line.partition(":")[0] for line in lines if "one shot" in line][1:] == [
        "warning",
        "held-out 'one shot', version 0",
        "held-out 'one shot', version 2",
    ]


def test_the_header_comes_again_every_20_rows() -> None:
    lines = displayed(story(45))
    table = [line for line in lines[HEAD:] if not line.startswith("warning")]
    headers = [number for number, line in enumerate(table) if line.split()[0] == "step"]
    assert headers == [0, 21, 42]


def test_several_policies_have_a_column_that_names_them() -> None:
    lines = rows(displayed(story(3, policies=("alice", "bob"))))
    assert [line.split()[1] for line in lines] == ["-", "alice", "bob", "alice", "bob", "alice", "bob"]


def test_figures_that_are_missing_are_dashes() -> None:
    bare = Stepped(policy="policy", step=0, digest="", advantages="", metrics={"reward": 0.5}, engine={}, durable={})
    opened, *_ = story(3, held_out=())
    (row,) = rows(displayed([opened, bare]))
    assert row.split() == ["1/3", "-", "0.50", *["-"] * (len(COLUMNS) - 1)]


def test_a_resumed_run_goes_on_with_its_numbers() -> None:
    events = story(12)
    middle = next(n for n, event in enumerate(events) if isinstance(event, Stepped) and event.step == 7)
    note = Noted(kind="resumed", text="at step 7")
    lines = displayed([events[0], note, *events[middle:]])
    assert lines[HEAD] == "resumed: at step 7"
    assert [line.split()[0] for line in rows(lines)] == ["8/12", "9/12", "10/12", "11/12", "12/12"]


def test_what_fails_is_said_once_for_each_kind() -> None:
    faults = [
        Ended(group=3, member=n, fault=kind, detail="Traceback ...\nKeyError: 'x'")
        for n, kind in enumerate(["KeyError", "deadline", "KeyError", "late", "late"])
    ]
    said = [line for line in displayed([story(2)[0], *faults]) if line.startswith("warning")]
    assert said == [
        "warning: episode 0 of group 3 failed (KeyError): KeyError: 'x'",
        "warning: episode 1 of group 3 failed (deadline): KeyError: 'x'",
        "warning: episode 3 of group 3 was dropped (late): KeyError: 'x'",
    ]


def test_tasks_without_a_value_are_said() -> None:
    assert "warning: held-out 'held-out', version 0: 1 of 20 tasks have no value" in displayed(story(2))


def test_a_closed_pipe_silences_the_display_and_nothing_else() -> None:
    class Closed(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    display = Display(Closed())
    opened, *events = story(2)
    assert isinstance(opened, Opened)
    display.opened(opened.run)
    for event in events:
        display.event(event)
    display.closed()


def test_events_that_are_no_news_write_nothing() -> None:
    opened = story(2)[0]
    assert displayed([opened, Installed(policy="policy", version=1)]) == displayed([opened])


def test_the_legend_explains_every_column_whose_title_is_short() -> None:
    for title in ("cut", "mixed", "KL", "ESS", "stale", "idle", "held-out", "step"):
        assert f"{title}:" in LEGEND or f"{title}(" in LEGEND


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (3599.9, "1h00m"), (7500, "2h05m"), (-1, "0s")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_two_policies_are_both_on_the_first_line() -> None:
    opened = story(2, policies=("alice", "bob"))[0]
    assert isinstance(opened, Opened)
    first, _, _ = settings_lines(opened.run)
    assert "alice: model=" in first
    assert "| bob: model=" in first
