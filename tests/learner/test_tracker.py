"""`metrics.jsonl`: every step and evaluation once, whatever interrupted the run."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from sparring.errors import JournalError
from sparring.learner.lines import Lines, LinesState, evaluation_line
from sparring.learner.snapshots import RunState
from sparring.learner.tracker import MetricsFile
from sparring.rollout.events import AnyEvent, Evaluated, Opened, Stepped, Timed, encode, segment
from sparring.rollout.journal import Snapshot, SqliteSegments
from sparring.rollout.snapshot import packed
from tests.learner.story import story


def lived(folder: Path, events: Sequence[AnyEvent], start: int, *, close: bool) -> MetricsFile:
    """One start of a run: the journal gets the events from `start` on, and so does the file."""
    watcher = MetricsFile(folder)
    store = SqliteSegments(folder / "journal.db")
    watcher.opened({})
    store.append(segment([encode(event) for event in events[start:]]))
    store.close()
    for event in events[start:]:
        watcher.event(event)
    if close:
        watcher.closed()
    elif watcher._file is not None:
        watcher._file.close()  # what the end of the process does
    return watcher


def read(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_for_each_step_and_each_evaluation(tmp_path: Path) -> None:
    events = story(12)
    lived(tmp_path, events, 0, close=True)
    lines = read(tmp_path)
    assert [(line["kind"], line["version"]) for line in lines if line["kind"] == "step"] == [
        ("step", n) for n in range(1, 13)
    ]
    assert [line["version"] for line in lines if line["kind"] == "evaluation"] == [0, 10, 12]


def test_a_steps_figures_stand_apart_by_what_they_depend_on(tmp_path: Path) -> None:
    events = story(2)
    lived(tmp_path, events, 0, close=True)
    stepped = next(event for event in events if isinstance(event, Stepped))
    timed = next(event for event in events if isinstance(event, Timed))
    line = next(line for line in read(tmp_path) if line["kind"] == "step")
    assert line["deterministic"] == stepped.metrics
    assert line["engine"] == stepped.engine
    assert line["timing"] == timed.timing
    assert line["policy"] == "policy"


def test_an_evaluation_is_told_with_its_interval() -> None:
    judged = Evaluated(
        name="debate", version=3, headline="right", values=[1.0, None, 0.0], rewards=[2.0, 4.0, None], transcripts=[]
    )
    line = evaluation_line(judged)
    assert (line.kind, line.name, line.version) == ("evaluation", "debate", 3)
    assert line.deterministic == {
        "tasks": 3.0,
        "right": 0.5,
        "right/low": pytest.approx(0.0945, abs=1e-4),
        "right/high": pytest.approx(0.9055, abs=1e-4),
        "right/missing": 1.0,
        "reward": 3.0,
        "reward/low": pytest.approx(1.04, abs=1e-3),
        "reward/high": pytest.approx(4.96, abs=1e-3),
        "reward/missing": 1.0,
    }


@pytest.mark.parametrize("late", [False, True])
def test_killed_anywhere_and_resumed_no_line_is_lost_or_doubled(tmp_path: Path, late: bool) -> None:
    events = story(3, policies=("alice", "bob"), late=late)
    whole = tmp_path / "whole"
    whole.mkdir()
    lived(whole, events, 0, close=True)
    expected = (whole / "metrics.jsonl").read_text()
    kinds = [number for number, event in enumerate(events) if isinstance(event, Stepped | Timed | Evaluated)]
    for cut in sorted({*kinds, *(number + 1 for number in kinds)}):
        folder = tmp_path / str(cut)
        folder.mkdir()
        lived(folder, events[:cut], 0, close=False)
        lived(folder, events, cut, close=True)
        assert (folder / "metrics.jsonl").read_text() == expected, cut


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    events = story(2)
    lived(tmp_path, events, 0, close=True)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.partial").symlink_to("/dev/full")
    with pytest.raises(JournalError, match=r"metrics\.jsonl' cannot be written: .*; free some disk space and resume"):
        MetricsFile(tmp_path).opened({})
    assert (tmp_path / "metrics.jsonl").read_text() == before
    (tmp_path / "metrics.partial").unlink()
    (tmp_path / "journal.db").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    watcher = MetricsFile(tmp_path)
    watcher.opened({})
    assert watcher._file is not None
    watcher._file.close()
    with (
        pytest.raises(OSError, match="No space left"),
        Path("/dev/full").open("ab") as full,
    ):  # it cannot be closed either
        watcher._file = full
        with pytest.raises(JournalError, match="free some disk space"):
            for event in events:
                watcher.event(event)


def test_a_torn_or_foreign_file_is_written_again(tmp_path: Path) -> None:
    events = story(3)
    lived(tmp_path, events[:-1], 0, close=False)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "st')
    lived(tmp_path, events, len(events) - 1, close=True)
    other = tmp_path / "other"
    other.mkdir()
    lived(other, events, 0, close=True)
    assert (tmp_path / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def test_an_event_that_is_told_although_it_was_there_makes_no_second_line(tmp_path: Path) -> None:
    events = story(2)
    lived(tmp_path, events, 0, close=True)
    before = (tmp_path / "metrics.jsonl").read_text()
    watcher = MetricsFile(tmp_path)
    watcher.opened({})
    for event in events:
        watcher.event(event)
    watcher.closed()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_step_whose_clock_figures_never_came_is_written_at_the_end(tmp_path: Path) -> None:
    events = [event for event in story(2) if not isinstance(event, Timed) or event.step == 0]
    lived(tmp_path, events, 0, close=True)
    steps = [line for line in read(tmp_path) if line["kind"] == "step"]
    assert [(line["version"], bool(line["timing"])) for line in steps] == [(1, True), (2, False)]


def test_a_step_does_not_wait_beyond_the_next_one() -> None:
    lines = Lines()
    steps = [event for event in story(2) if isinstance(event, Stepped)]
    assert lines.of(steps[0]) == []
    assert [line.version for line in lines.of(steps[1])] == [1]
    assert [line.version for line in lines.rest()] == [2]
    assert lines.rest() == []


def test_clock_figures_of_another_step_complete_nothing() -> None:
    lines = Lines()
    events = story(2)
    (first, second) = [event for event in events if isinstance(event, Timed)]
    lines.of(next(event for event in events if isinstance(event, Stepped)))
    assert lines.of(second) == []
    assert [line.timing for line in lines.of(first)] == [first.timing]


def test_other_events_make_no_lines() -> None:
    lines = Lines()
    quiet = [event for event in story(3) if not isinstance(event, Stepped | Timed | Evaluated)]
    assert [line for event in quiet for line in lines.of(event)] == []
    assert any(isinstance(event, Opened) for event in quiet)


def journaled(folder: Path, events: Sequence[AnyEvent], *snapshots: int) -> None:
    """A segment for each event, and a snapshot of the state after so many of them."""
    folder.mkdir()
    store, lines = SqliteSegments(folder / "journal.db"), Lines()
    for count, event in enumerate(events, 1):
        lines.of(event)
        state = RunState(
            policy="alice", step=count, versions={}, lines=lines.state(), coordinator=msgspec.Raw(packed(None))
        )
        shot = Snapshot(name=state.name, blob=packed(state), beside=frozenset(f"alice/{n}" for n in snapshots))
        store.append(segment([encode(event)]), shot if count in snapshots else None)
    store.close()


def gone_on_with(folder: Path, events: Sequence[AnyEvent]) -> str:
    """The file after one more start of the run, which adds these events."""
    watcher = MetricsFile(folder)
    watcher.opened({})
    for event in events:
        watcher.event(event)
    watcher.closed()
    return (folder / "metrics.jsonl").read_text()


def test_wherever_the_file_ends_it_is_gone_on_with_from_a_snapshot(tmp_path: Path) -> None:
    """A file that is behind the journal, beyond the snapshot, torn, foreign or not there: it ends as the same lines."""
    events = story(4, policies=("alice", "bob"))
    whole = tmp_path / "whole"
    journaled(whole, events)
    expected = gone_on_with(whole, ())
    cut = len(events) - 5
    between = expected.index("\n", len(expected) // 2) + 1
    files = [expected[:end] for end in range(0, len(expected), 97)]
    files += [expected[:between], expected, "x" * len(expected), expected.replace('"version":1', '"version":7')]
    for number, file in enumerate([None, *files]):
        folder = tmp_path / f"{number}"
        journaled(folder, events[:cut], 5, cut // 2, cut - 1)
        if file is not None:
            (folder / "metrics.jsonl").write_text(file)
        told = gone_on_with(folder, events[cut:])
        if number < len(files):
            assert told == expected, file
        else:
            assert told.replace('"version":7', '"version":1') == expected, "what is before a snapshot is not looked at"


def test_what_a_snapshot_stands_for_is_not_read_again(tmp_path: Path) -> None:
    events = story(4)
    whole = tmp_path / "whole"
    journaled(whole, events)
    expected = gone_on_with(whole, ())
    folder = tmp_path / "other"
    journaled(folder, events, 9, 12)
    with closing(sqlite3.connect(folder / "journal.db")) as database, database:
        database.execute("UPDATE segments SET blob = x'00' WHERE number <= 9")
    (folder / "metrics.jsonl").write_text(expected[: size_after(events, 9)])
    assert gone_on_with(folder, ()) == expected, "the second snapshot is beyond the file, the first one is not"
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(JournalError, match="segment 1"):
        MetricsFile(folder).opened({})


def size_after(events: Sequence[AnyEvent], count: int) -> int:
    lines = Lines()
    for event in events[:count]:
        lines.of(event)
    return lines.state().size


@pytest.mark.parametrize("policies", [("policy",), ("alice", "bob")])
def test_lines_go_on_from_any_state(policies: tuple[str, ...]) -> None:
    events = story(5, policies=policies)
    whole = Lines()
    expected = [line for event in events for line in whole.of(event)]
    assert expected and whole.state().count == len(expected)
    running, made = Lines(), 0
    for at, event in enumerate(events):
        made += len(running.of(event))
        state = msgspec.msgpack.decode(packed(running.state()), type=LinesState)
        assert state == running.state() and state.count == made
        again = Lines(state)
        assert [line for later in events[at + 1 :] for line in again.of(later)] == expected[made:]
        assert again.state() == whole.state()
        told_twice = Lines(state)
        assert not [line for earlier in events[: at + 1] for line in told_twice.of(earlier)]
