"""A run whose code or data changed while it was cut off: refused, or gone on with for good, and nobody's words mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from sparring import Episodes, Policy, Run, ScriptedModels, Seat, effect, environment
from sparring.errors import RunChanged
from sparring.learner import train_async
from sparring.learner.history import history
from sparring.learner.replay import compare
from sparring.learner.rescore import rescore_events
from sparring.rollout import MemorySegments
from sparring.rollout.events import (
    CHANGED,
    Accepted,
    Acted,
    Admitted,
    AnyEvent,
    Ended,
    Noted,
    Restarted,
    Stepped,
    decode_segment,
)
from sparring.rollout.journal import Snapshot
from tests.learner.worlds import Crash, CrashingSegments, events_of

HERE = __name__


@dataclass
class Door:
    """While it is shut, two of three episodes do not get past their second question, but for the first dozen."""

    shut: bool = False
    came: int = 0

    async def wait(self) -> None:
        self.came += 1
        if self.shut and self.came > 12 and self.came % 3:
            await anyio.sleep_forever()


DOOR = Door()


async def pass_the_door() -> None:
    await DOOR.wait()


def quiz(question: str) -> Any:
    """An environment that is called the same whatever it asks: other code, as a run sees it."""

    @environment
    async def asking(task: int, solver: Seat) -> float:
        worth = 0.0
        for number in range(4):
            worth += len((await solver.ask(f"{question} {task}.{number}")).text)
            if number == 1:
                await effect(pass_the_door)
        return worth

    return asking


def quiz_run(folder: Path, question: str = "Say", *, first: int = 0, steps: int = 4) -> Run:
    return Run(
        name="quiz",
        train=Episodes(quiz(question), range(first, first + 30)),
        policies=Policy("none"),
        steps=steps,
        groups_per_step=2,
        group_size=3,
        max_staleness=1,
        evaluate_every=2,
        backend=ScriptedModels(),
        folder=folder,
    )


class EndingSegments(MemorySegments):
    """A crash once there is enough in the journal."""

    def __init__(self, enough: Callable[[list[AnyEvent]], bool]) -> None:
        super().__init__()
        self._enough = enough

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        super().append(blob, snapshot)
        if self._enough(events_of(self)):
            raise Crash


async def cut_off(run: Run, enough: Callable[[list[AnyEvent]], bool]) -> MemorySegments:
    """The run, ended by a crash at the first commit after which its journal is `enough`."""
    ending, kept = EndingSegments(enough), MemorySegments()
    DOOR.came, DOOR.shut = 0, True
    try:
        with pytest.raises(Crash):
            await train_async(run, store=ending)
    finally:
        DOOR.shut = False
    kept.blobs = ending.blobs
    return kept


def in_flight(events: list[AnyEvent]) -> set[tuple[int, int]]:
    """Episodes that have begun and not ended."""
    begun = {(event.group, event.member) for event in events if isinstance(event, Acted)}
    return begun - {(event.group, event.member) for event in events if isinstance(event, Ended)}


def talking(events: list[AnyEvent]) -> bool:
    return len(in_flight(events)) >= 2 and any(isinstance(event, Stepped) for event in events)


def of(events: list[AnyEvent], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def questions(events: list[AnyEvent]) -> dict[tuple[int, int], set[str]]:
    """What each episode was asked since it last began, by the first word; prompts are bytes of the tiny tokenizer."""
    asked: dict[tuple[int, int], set[str]] = {}
    for event in events:
        if isinstance(event, Restarted):
            asked.pop((event.group, event.member), None)
        elif isinstance(event, Acted) and event.sample is not None:
            prompt = bytes(token for token in event.sample.unpacked().prompt.tolist() if token < 256).decode()
            found = {word for word in ("Say", "Write") if word in prompt}
            asked.setdefault((event.group, event.member), set()).update(found)
    return asked


CLOSED = rf"what {HERE}:quiz\.<locals>\.asking closes over"


async def test_a_changed_environment_is_refused_by_name(tmp_path: Path) -> None:
    kept = await cut_off(quiz_run(tmp_path), talking)
    before = list(kept.blobs)
    with pytest.raises(RunChanged, match=rf"last accepted: environment of train/0 \({CLOSED}\); restore it, or go on"):
        await train_async(quiz_run(tmp_path, "Write"), store=kept)
    assert kept.blobs == before, "nothing was journaled"
    assert await train_async(quiz_run(tmp_path), store=kept)
    assert of(events_of(kept), Accepted) == of(events_of(kept), Restarted) == []


async def test_an_accepted_change_is_gone_on_with(tmp_path: Path) -> None:
    kept = await cut_off(quiz_run(tmp_path), talking)
    playing = in_flight(events_of(kept))
    run = quiz_run(tmp_path, "Write")
    assert await train_async(run, store=kept, accept_changed_code=True)
    events = events_of(kept)
    (accepted,) = of(events, Accepted)
    assert [change.partition(" (")[0] for change in accepted.changes] == ["environment of train/0"]
    assert {(event.group, event.member) for event in of(events, Restarted)} == playing
    assert all(len(found) == 1 for found in questions(events).values()), "no episode was asked by both"
    assert set().union(*questions(events).values()) == {"Say", "Write"}
    assert len(of(events, Stepped)) == 4


async def test_an_accepted_change_is_accepted_once_and_for_all(tmp_path: Path) -> None:
    kept = await cut_off(quiz_run(tmp_path), talking)
    with pytest.raises(Crash):
        store = CrashingSegments(kept, 3, after=True)
        await train_async(quiz_run(tmp_path, "Write"), store=store, accept_changed_code=True)
    with pytest.raises(RunChanged, match="since a change was last accepted: environment of train/0"):
        await train_async(quiz_run(tmp_path), store=kept)
    assert await train_async(quiz_run(tmp_path, "Write"), store=kept)
    assert len(of(events_of(kept), Accepted)) == 1
    assert await train_async(quiz_run(tmp_path), store=kept, accept_changed_code=True)
    assert await train_async(quiz_run(tmp_path), store=kept)
    assert len(of(events_of(kept), Accepted)) == 2


async def test_wherever_it_is_cut_off_again_nobody_is_asked_by_both(tmp_path: Path) -> None:
    """The acceptance is on the disk with all that follows from it, or not at all."""
    begun = await cut_off(quiz_run(tmp_path), talking)
    crashed, commit = True, 0
    while crashed:
        kept = MemorySegments()
        kept.blobs = list(begun.blobs)
        run = quiz_run(tmp_path, "Write")
        try:
            await train_async(run, store=CrashingSegments(kept, commit, after=True), accept_changed_code=True)
            crashed = False
        except Crash:
            known = bool(of(events_of(kept), Accepted))
            if not known:
                with pytest.raises(RunChanged):
                    await train_async(run, store=kept)
            assert await train_async(run, store=kept, accept_changed_code=not known)
        events = events_of(kept)
        assert len(of(events, Accepted)) == 1
        assert all(len(found) == 1 for found in questions(events).values()), f"crash at commit {commit}"
        assert compare(events).agrees
        commit += 1
    assert commit > 8


async def test_the_acceptance_is_one_segment(tmp_path: Path) -> None:
    kept = await cut_off(quiz_run(tmp_path), talking)
    assert await train_async(quiz_run(tmp_path, "Write"), store=kept, accept_changed_code=True)
    segments = [decode_segment(blob) for blob in kept.blobs]
    (one,) = [events for events in segments if of(events, Accepted)]
    assert of(one, Restarted) == of(events_of(kept), Restarted) != []


async def test_episodes_whose_task_became_another_end(tmp_path: Path) -> None:
    """What their group has played is compared and trained; they are nobody's failure."""

    def half_done(events: list[AnyEvent]) -> bool:
        ended = {event.group for event in of(events, Ended)}
        return talking(events) and bool(ended & {group for group, _ in in_flight(events)})

    kept = await cut_off(quiz_run(tmp_path), half_done)
    before = events_of(kept)
    open_groups = {event.group for event in of(before, Admitted)}
    open_groups &= {group for group in open_groups if sum(one.group == group for one in of(before, Ended)) < 3}
    run = quiz_run(tmp_path, first=1)
    with pytest.raises(RunChanged, match="last accepted: tasks of train/0; restore it"):
        await train_async(run, store=kept)
    assert await train_async(run, store=kept, accept_changed_code=True)
    events = events_of(kept)
    ended = [event for event in of(events, Ended) if event.fault]
    assert {event.fault for event in ended} == {CHANGED}
    assert {event.group for event in ended} == open_groups
    assert "is not the one any more that the group was admitted with" in ended[0].detail
    assert of(events, Restarted) == []
    told = history(events)
    assert (told.faults, len(told.steps)) == ((), 4)
    assert sum(step.metrics["faults"] for step in told.steps) == 0
    assert compare(events).agrees


async def test_readers_of_the_run_are_told(tmp_path: Path) -> None:
    kept = await cut_off(quiz_run(tmp_path), talking)
    run = quiz_run(tmp_path, "Write")
    seen: list[AnyEvent] = []

    class Ear:
        def opened(self, run: object) -> None: ...
        def event(self, event: AnyEvent) -> None:
            seen.append(event)

        def closed(self) -> None: ...

    assert await train_async(run, store=kept, accept_changed_code=True, watchers=[Ear()])
    events = events_of(kept)
    assert of(seen, Accepted) == of(events, Accepted)
    assert of(seen, Restarted) == of(events, Restarted)
    notes = [(note.kind, note.text) for note in history(events).notes]
    assert notes[0] == ("resumed", "the run goes on")
    assert notes[1][0] == "accepted"
    assert notes[1][1].startswith("goes on although these changed: environment of train/0 (")
    admitted = len(of(events[: events.index(of(events, Accepted)[0])], Admitted))
    line = f"after {admitted} admissions: {notes[1][1]}"
    comparison = compare(events)
    assert comparison.agrees and comparison.accepted == (line,) and line in comparison.lines
    found = await rescore_events(events, run)
    assert found.accepted == (line,) and line in found.lines
    assert {row.outcome for row in found.rows} == {"equal", "asks"}, "what was played before was asked otherwise"


async def test_what_did_not_change_needs_no_acceptance(tmp_path: Path) -> None:
    kept = await cut_off(quiz_run(tmp_path), talking)
    assert await train_async(quiz_run(tmp_path), store=kept, accept_changed_code=True)
    events = events_of(kept)
    assert of(events, Accepted) == [] and [note.kind for note in of(events, Noted)] == ["resumed"]
