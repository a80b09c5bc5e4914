"""The journal under chance: what is on the disk is a prefix of what was appended, and nobody is told of it early."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from sparring.errors import JournalError
from sparring.rollout import Journal, MemorySegments, SegmentStore, SqliteSegments
from sparring.rollout.events import segment
from sparring.rollout.journal import Snapshot
from tests.rollout.stores import MODES, Died, Held, numbered, numbers, numbers_in


class JournalMachine(RuleBasedStateMachine):
    """Appends, waits and writes in any order, with a disk that works, fails, or goes away before or after a write."""

    backend = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal: BlockingPortal = self.stack.enter_context(start_blocking_portal(self.backend))
        self.disk = self.store()
        self.next = 0
        self.appended: list[int] = []
        self.last_shot = ""
        self.open()

    def store(self) -> SegmentStore:
        return MemorySegments()

    def open(self) -> None:
        self.held = Held(self.disk)
        self.waiters: list[tuple[int, Future[None]]] = []
        self.before = len(self.appended)
        self.written = self.before
        self.closing = self.portal.call(anyio.Event)
        self.life, self.journal = self.portal.start_task(self.live)

    async def live(self, *, task_status: TaskStatus[Journal]) -> None:
        async with Journal.open(self.held) as journal:
            task_status.started(journal)
            await self.closing.wait()

    def settle(self) -> None:
        self.portal.call(anyio.wait_all_tasks_blocked)

    @property
    def pending(self) -> bool:
        return self.written < len(self.appended)

    @rule(count=st.integers(1, 4), shot=st.sampled_from([-1, -1, 0, 1, 2]))
    def append(self, count: int, shot: int) -> None:
        """`shot`: which of them has a snapshot, beside which the last one stays."""
        for at in range(count):
            snapshot = None
            if at == shot:
                name = f"{self.next}"
                snapshot = Snapshot(name=name, blob=name.encode(), beside=frozenset([self.last_shot]))
                self.last_shot = name
            number = self.portal.call(self.journal.append, numbered(self.next), snapshot)
            self.appended.append(self.next)
            self.next += 1
            assert number == len(self.appended) - self.before

    @rule()
    def commit(self) -> None:
        future: Future[None] = self.portal.start_task_soon(self.journal.commit, numbered(self.next))
        self.settle()
        self.appended.append(self.next)
        self.next += 1
        self.waiters.append((len(self.appended), future))

    @rule(back=st.integers(0, 3))
    def wait(self, back: int) -> None:
        number = max(0, len(self.appended) - self.before - back)
        self.waiters.append((self.before + number, self.portal.start_task_soon(self.journal.durable, number)))
        self.settle()

    @precondition(lambda self: self.pending)
    @rule(mode=st.sampled_from([*MODES, "well", "well", "well", "well"]))
    def write(self, mode: str) -> None:
        """One segment goes to the disk, or does not."""
        self.settle()
        self.held.mode = mode
        segments = self.portal.call(self.journal.statistics).segments
        self.held.go.release()
        assert self.held.done.acquire(timeout=20)
        self.written = len(numbers(self.disk))
        if mode == "well":
            self.portal.call(self.heard_of, segments + 1)
        else:
            self.end(mode)

    async def heard_of(self, segments: int) -> None:
        """Until the event loop knows what the writer's thread did."""
        with anyio.fail_after(5):
            while self.journal.statistics().segments < segments:
                await self.journal._written.wait()
        await anyio.wait_all_tasks_blocked()

    @rule()
    def close(self) -> None:
        """Leaving the journal writes all that is queued."""
        self.held.free = True
        self.held.go.release(100)
        self.portal.call(self.closing.set)
        self.life.result(timeout=20)
        assert numbers(self.disk) == self.appended
        assert all(future.result(timeout=20) is None for _, future in self.waiters)
        self.open()

    def end(self, mode: str) -> None:
        """The journal's life ends with the failure; whoever waited for more than is on the disk is told."""
        caught = self.life.exception(timeout=20)
        assert isinstance(caught, ExceptionGroup)
        assert caught.subgroup(JournalError if mode.startswith("fails") else Died) is not None
        self.settle()
        assert all(future.done() for _, future in self.waiters), "a waiter was not told of the failure"
        for number, future in self.waiters:
            failure = future.exception()
            assert isinstance(failure, JournalError) if number > self.acknowledged else failure is None, mode
        with pytest.raises(JournalError, match=r"no space left|Died"):
            self.portal.call(self.journal.append, numbered(self.next))
        self.appended = numbers(self.disk)
        self.open()

    @property
    def acknowledged(self) -> int:
        durable: int = self.portal.call(self.journal.statistics).durable
        return self.before + durable

    @invariant()
    def a_prefix_is_on_the_disk(self) -> None:
        found = numbers(self.disk)
        assert found == self.appended[: len(found)]

    @invariant()
    def snapshots_are_of_the_end_of_their_segments(self) -> None:
        blobs, found = list(self.disk.read()), self.disk.snapshots()
        assert len(found) <= 2
        for segments, blob in found:
            assert numbers_in(blobs[:segments])[-1] == int(blob)

    @invariant()
    def nobody_was_told_early(self) -> None:
        self.settle()
        on_disk = len(numbers(self.disk))
        assert self.acknowledged <= on_disk
        for number, future in self.waiters:
            assert future.done() == (number <= on_disk), (number, on_disk)

    def teardown(self) -> None:
        self.held.free = True
        self.held.go.release(100)
        self.portal.call(self.closing.set)
        self.life.exception(timeout=20)
        for _, future in self.waiters:
            future.cancel()
        self.disk.close()
        self.stack.close()


class TestMemory(JournalMachine.TestCase):  # type: ignore[misc,valid-type]
    """On asyncio, in memory."""


class SqliteMachine(JournalMachine):
    """The same on trio, over a real database, closed and opened again with every journal."""

    backend = "trio"

    def store(self) -> SegmentStore:
        folder = self.stack.enter_context(TemporaryDirectory())
        self.path = Path(folder) / "journal.db"
        return SqliteSegments(self.path)

    def open(self) -> None:
        self.disk.close()
        self.disk = SqliteSegments(self.path)
        super().open()


class TestSqlite(SqliteMachine.TestCase):  # type: ignore[misc,valid-type]
    """On trio, on the disk."""


async def told_before(self: Journal) -> None:
    """A planted defect: events count as durable before they are written."""
    while not self._closing or self._queue:
        if not self._queue:
            await self._queued.wait()
            continue
        batch, self._queue, self._queued_bytes = self._queue, [], 0
        self._durable += len(batch)
        self._written.notify()
        await anyio.to_thread.run_sync(self._store.append, segment(batch))
        self._segments += 1


async def kept_back(self: Journal) -> None:
    """Another: the failure is told to nobody."""
    while not self._closing or self._queue:
        if not self._queue:
            await self._queued.wait()
            continue
        batch, self._queue, self._queued_bytes = self._queue, [], 0
        await anyio.to_thread.run_sync(self._store.append, segment(batch))
        self._durable += len(batch)
        self._segments += 1
        self._written.notify()


async def run_together(self: Journal) -> None:
    """Another: a snapshot goes with everything that is queued, also what came after it."""
    while not self._closing or self._queue:
        if not self._queue:
            await self._queued.wait()
            continue
        batch, self._queue, self._queued_bytes = self._queue, [], 0
        snapshot = self._snapshots.popleft()[1] if self._snapshots else None
        await anyio.to_thread.run_sync(self._store.append, segment(batch), snapshot)
        self._durable += len(batch)
        self._segments += 1
        self._written.notify()


async def turned_round(self: Journal) -> None:
    """Another: what is queued together is written in the wrong order."""
    while not self._closing or self._queue:
        if not self._queue:
            await self._queued.wait()
            continue
        batch, self._queue, self._queued_bytes = self._queue, [], 0
        await anyio.to_thread.run_sync(self._store.append, segment(batch[::-1]))
        self._durable += len(batch)
        self._segments += 1
        self._written.notify()


@pytest.mark.parametrize("defect", [told_before, kept_back, turned_round, run_together])
def test_the_machine_finds_planted_defects(defect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "_write", defect)
    with pytest.raises(AssertionError):
        few = settings(max_examples=40, stateful_step_count=15, phases=[Phase.generate], report_multiple_bugs=False)
        run_state_machine_as_test(JournalMachine, settings=few)


TestMemory.settings = settings(max_examples=60, stateful_step_count=25)
TestSqlite.settings = settings(max_examples=30, stateful_step_count=20)
