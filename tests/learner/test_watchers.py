"""Watchers: told of what is on the disk, in order, off the event loop; told of the end whatever ends the run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sparring.errors import TooManyFaults
from sparring.learner import train_async
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, Admitted, Affected, AnyEvent, Noted, Opened, decode_segment
from sparring.rollout.journal import Snapshot
from tests.learner.moods import WELL, always, run_of
from tests.learner.worlds import events_of


class Diary:
    """Writes down what it is told, and which threads told it; fails where it is told to."""

    def __init__(self, *, fails: str = "") -> None:
        self.calls: list[str] = []
        self.events: list[AnyEvent] = []
        self.threads: set[threading.Thread] = set()
        self.fails = fails

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.current_thread())
        if self.fails == name:
            raise ZeroDivisionError(name)

    def opened(self, run: Mapping[str, Any]) -> None:
        assert run["settings"]["steps"] == 3
        self._called("opened")

    def event(self, event: AnyEvent) -> None:
        self.events.append(event)
        self._called("event")

    def closed(self) -> None:
        self._called("closed")


async def test_a_watcher_is_told_everything_but_the_replies(tmp_path: Path) -> None:
    diary, store = Diary(), MemorySegments()
    await train_async(run_of(tmp_path, WELL), watchers=[diary], store=store)
    told = [event for event in events_of(store) if not isinstance(event, Opened | Acted | Affected)]
    assert diary.events == told
    assert (diary.calls[0], diary.calls[-1]) == ("opened", "closed") and set(diary.calls[1:-1]) == {"event"}
    assert threading.main_thread() not in diary.threads


async def test_what_was_told_before_is_not_told_again(tmp_path: Path) -> None:
    diary, store = Diary(), MemorySegments()
    await train_async(run_of(tmp_path, WELL), store=store)
    await train_async(run_of(tmp_path, WELL), watchers=[diary], store=store)
    assert diary.calls == ["opened", "closed"]
    assert isinstance(events_of(store)[-1], Noted)


async def test_nothing_is_told_that_is_not_on_the_disk(tmp_path: Path) -> None:
    store = MemorySegments()

    class Checking(Diary):
        def event(self, event: AnyEvent) -> None:
            assert event in events_of(store), "told before it is on the disk"
            super().event(event)

    checking = Checking()
    await train_async(run_of(tmp_path, WELL), watchers=[checking], store=store)
    assert checking.events


async def test_a_watcher_that_fails_ends_the_run_and_all_are_told(tmp_path: Path) -> None:
    first, second = Diary(), Diary(fails="event")
    with pytest.raises(ZeroDivisionError):
        await train_async(run_of(tmp_path, WELL), watchers=[first, second], store=MemorySegments())
    assert first.calls[-1] == second.calls[-1] == "closed"


async def test_one_that_was_not_opened_is_not_closed(tmp_path: Path) -> None:
    first, second, third = Diary(), Diary(fails="opened"), Diary()
    with pytest.raises(ZeroDivisionError):
        await train_async(run_of(tmp_path, WELL), watchers=[first, second, third], store=MemorySegments())
    assert (first.calls, second.calls, third.calls) == (["opened", "closed"], ["opened"], [])


async def test_one_that_cannot_be_closed_keeps_no_other_from_it(tmp_path: Path) -> None:
    first, second = Diary(), Diary(fails="closed")
    with pytest.raises(ZeroDivisionError):
        await train_async(run_of(tmp_path, WELL), watchers=[first, second], store=MemorySegments())
    assert first.calls[-1] == second.calls[-1] == "closed"


async def test_watchers_are_told_of_a_bad_end(tmp_path: Path) -> None:
    diary = Diary()
    with pytest.raises(TooManyFaults):
        await train_async(run_of(tmp_path, always("raises"), max_faults=0.1), watchers=[diary], store=MemorySegments())
    assert (diary.calls[0], diary.calls[-1]) == ("opened", "closed")


async def test_a_watcher_that_is_far_behind_holds_up_admission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.learner.teller._MOST_UNTOLD", 10)
    go, begun = threading.Event(), threading.Event()

    class Store(MemorySegments):
        def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
            super().append(blob, snapshot)
            if any(isinstance(event, Admitted) for event in decode_segment(blob)):
                begun.set()

    class Slow(Diary):
        def event(self, event: AnyEvent) -> None:
            assert go.wait(20)
            super().event(event)

    slow, store = Slow(), Store()
    run = replace(run_of(tmp_path, WELL), max_staleness=30, steps=3, groups_per_step=20)
    async with anyio.create_task_group() as group:

        async def train() -> None:
            await train_async(run, watchers=[slow], store=store)

        group.start_soon(train)
        await anyio.to_thread.run_sync(begun.wait, 10)
        await anyio.sleep(0.05)
        await anyio.wait_all_tasks_blocked()
        admitted = len([event for event in events_of(store) if isinstance(event, Admitted)])
        go.set()
    assert admitted <= 12, "of sixty that staleness would have let in"
    assert len([event for event in slow.events if isinstance(event, Admitted)]) == 60
