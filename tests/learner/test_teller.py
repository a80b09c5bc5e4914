"""Watchers are told what has gathered by one thread, one event after the other, and no longer than the run lasts."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sparring.learner.stall import Waits
from sparring.learner.teller import Teller
from sparring.learner.tracker import Watcher
from sparring.rollout import Journal, MemorySegments
from sparring.rollout.events import AnyEvent, Noted


class Ear:
    """Writes into a common list what it hears; waits inside of the event it is told to hold."""

    def __init__(self, name: str, heard: list[tuple[str, str]], *, holds: str = "") -> None:
        self.name, self.heard, self.holds = name, heard, holds
        self.holding, self.go = threading.Event(), threading.Event()
        self.threads: set[int] = set()

    def opened(self, run: Mapping[str, Any]) -> None: ...

    def closed(self) -> None: ...

    def event(self, event: AnyEvent) -> None:
        assert isinstance(event, Noted)
        self.heard.append((self.name, event.text))
        self.threads.add(threading.get_ident())
        if event.text == self.holds:
            self.holding.set()
            assert self.go.wait(20)


class Told:
    """A teller over a journal in memory, its waits, and how often it said that all was told."""

    def __init__(self, journal: Journal, *watchers: Watcher) -> None:
        self.journal, self.waits, self.caught_up = journal, Waits(), 0
        self.teller = Teller(watchers, journal, self.waits, self._on_told, patience=20.0)

    def _on_told(self) -> None:
        self.caught_up += 1

    def note(self, text: str) -> None:
        event = Noted(kind="test", text=text)
        self.teller.add(self.journal.append(event), event)


@asynccontextmanager
async def telling(*watchers: Watcher) -> AsyncIterator[Told]:
    with anyio.fail_after(20):
        async with Journal.open(MemorySegments()) as journal:
            yield Told(journal, *watchers)


async def test_what_has_gathered_is_told_at_once_in_order_to_one_after_the_other() -> None:
    heard: list[tuple[str, str]] = []
    first, second = Ear("first", heard), Ear("second", heard)
    async with telling(first, second) as told:
        for number in range(200):
            told.note(str(number))
        assert told.teller.statistics().untold == 200
        told.teller.close()
        await told.teller.run()
        assert told.caught_up == 1 and told.teller.statistics().untold == 0
    assert heard == [(name, str(number)) for number in range(200) for name in ("first", "second")]
    assert first.threads == second.threads and len(first.threads) == 1
    assert threading.get_ident() not in first.threads


async def test_a_watcher_that_keeps_an_event_is_named() -> None:
    ear = Ear("slow", [], holds="1")
    async with telling(ear) as told, anyio.create_task_group() as group:
        for number in range(3):
            told.note(str(number))
        group.start_soon(told.teller.run)
        await anyio.to_thread.run_sync(ear.holding.wait)
        assert told.waits.lines == ["watchers: waits for Ear to take Noted, for 0 s"]
        assert told.teller.statistics().untold == 2, "the one that it keeps counts"
        told.teller.close()
        ear.go.set()
    assert [text for _, text in ear.heard] == ["0", "1", "2"]
    assert not told.waits.lines


async def test_a_run_that_ends_does_not_wait_for_all_that_is_untold() -> None:
    ear = Ear("slow", [], holds="1")
    async with telling(ear) as told, anyio.create_task_group() as group:
        for number in range(1000):
            told.note(str(number))
        group.start_soon(told.teller.run)
        await anyio.to_thread.run_sync(ear.holding.wait)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        ear.go.set()
    assert len(ear.heard) < 10, "a thread cannot be stopped within an event, but it is between two"


async def test_what_a_watcher_raises_is_raised() -> None:
    class Deaf(Ear):
        def event(self, event: AnyEvent) -> None:
            raise ZeroDivisionError

    async with telling(Deaf("deaf", [])) as told:
        told.note("0")
        with pytest.raises(ZeroDivisionError):
            await told.teller.run()


async def test_many_events_make_it_behind_until_they_are_told() -> None:
    ear = Ear("ear", [])
    async with telling(ear) as told:
        for number in range(1024):
            told.note(str(number))
        assert not told.teller.behind
        told.note("one more")
        assert told.teller.behind
        told.teller.close()
        await told.teller.run()
        assert not told.teller.behind and len(ear.heard) == 1025
