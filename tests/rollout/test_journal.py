"""The journal: what is on the disk is a prefix of what was appended, and nobody is told of it early."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
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
from sparring.rollout.events import Noted, Opened, decode_segment, encode, segment


def numbered(number: int) -> Noted:
    return Noted(kind="number", text=str(number))


def numbers(store: SegmentStore) -> list[int]:
    """The numbers of the events on the disk."""
    events = [event for blob in store.read() for event in decode_segment(blob)]
    assert all(isinstance(event, Noted) for event in events)
    return [int(event.text) for event in events if isinstance(event, Noted)]


class Died(Exception):
    """The disk went away in the middle, and took the process with it."""


MODES = ("well", "dies before", "dies after", "fails before", "fails after")


class Held:
    """A store whose writes wait for a word: how the next one goes."""

    def __init__(self, inner: SegmentStore) -> None:
        self.inner = inner
        self.mode = "well"
        self.go = threading.Semaphore(0)
        self.done = threading.Semaphore(0)
        self.free = False

    def append(self, blob: bytes) -> None:
        if not self.free:
            assert self.go.acquire(timeout=20)
        try:
            if self.mode.endswith("before"):
                self._break()
            self.inner.append(blob)
            if self.mode.endswith("after"):
                self._break()
        finally:
            self.done.release()

    def _break(self) -> None:
        raise JournalError("no space left") if self.mode.startswith("fails") else Died

    def read(self) -> Iterator[bytes]:
        return self.inner.read()

    def close(self) -> None:
        """The inner one is read after the journal is closed."""


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

    @rule(count=st.integers(1, 4))
    def append(self, count: int) -> None:
        for _ in range(count):
            number = self.portal.call(self.journal.append, numbered(self.next))
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


@pytest.mark.parametrize("defect", [told_before, kept_back, turned_round])
def test_the_machine_finds_planted_defects(defect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "_write", defect)
    with pytest.raises(AssertionError):
        few = settings(max_examples=40, stateful_step_count=15, phases=[Phase.generate], report_multiple_bugs=False)
        run_state_machine_as_test(JournalMachine, settings=few)


TestMemory.settings = settings(max_examples=60, stateful_step_count=25)
TestSqlite.settings = settings(max_examples=30, stateful_step_count=20)


async def test_what_is_queued_together_is_one_segment() -> None:
    store = MemorySegments()
    held = Held(store)
    async with Journal.open(held) as journal:
        journal.append(numbered(0))
        await anyio.wait_all_tasks_blocked()
        for number in range(1, 20):
            last = journal.append(numbered(number))
        assert journal.statistics().queued_bytes == 20 * len(encode(numbered(0))) + 10
        held.go.release(2)
        await journal.durable(last)
        assert [len(decode_segment(blob)) for blob in store.blobs] == [1, 19]
        counted = journal.statistics()
        assert (counted.appended, counted.durable, counted.segments, counted.queued_bytes) == (20, 20, 2, 0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65535, 65536])
def test_a_segment_of_any_length(count: int) -> None:
    assert numbers(Fixed([segment([encode(numbered(number)) for number in range(count)])])) == list(range(count))


class Fixed:
    """Segments as given."""

    def __init__(self, blobs: list[bytes]) -> None:
        self.blobs = blobs

    def append(self, blob: bytes) -> None:
        raise AssertionError("nothing is written here")

    def read(self) -> Iterator[bytes]:
        return iter(self.blobs)

    def close(self) -> None:
        """Nothing is held."""


async def test_leaving_it_writes_what_is_queued() -> None:
    store = MemorySegments()
    async with Journal.open(store) as journal:
        journal.append(numbered(0))
    assert numbers(store) == [0]
    with pytest.raises(AssertionError, match="closed"):
        journal.append(numbered(1))


async def test_a_failure_in_it_ends_it() -> None:
    store, closed = MemorySegments(), []

    class Closing(MemorySegments):
        def close(self) -> None:
            closed.append(threading.current_thread() is threading.main_thread())

    store = Closing()
    with pytest.RaisesGroup(ValueError):
        async with Journal.open(store) as journal:
            await journal.commit(numbered(0))
            raise ValueError
    assert numbers(store) == [0]
    assert closed == [False], "closing waits for the disk: not on the event loop, and once"


async def test_room_waits_while_the_queue_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.rollout.journal._LARGEST_QUEUE", 50)
    held = Held(MemorySegments())
    async with Journal.open(held) as journal, anyio.create_task_group() as group:
        await journal.room()
        journal.append(numbered(0))
        await journal.room()
        for number in range(1, 9):
            journal.append(numbered(number))
        passed = anyio.Event()

        async def one() -> None:
            await journal.room()
            passed.set()

        group.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        assert not passed.is_set(), "the queue is over its bound"
        held.go.release(2)
        with anyio.fail_after(5):
            await passed.wait()


async def test_a_failing_store_raises_out_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.rollout.journal._LARGEST_QUEUE", 0)
    held = Held(MemorySegments())
    held.mode = "fails before"
    held.go.release()
    with pytest.RaisesGroup(JournalError, JournalError):
        async with Journal.open(held) as journal:
            journal.append(numbered(0))
            await journal.room()


async def test_threads_that_are_busy_do_not_hold_up_the_journal() -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    wake = threading.Event()
    async with anyio.create_task_group() as group:
        for _ in range(int(limiter.total_tokens)):
            group.start_soon(anyio.to_thread.run_sync, wake.wait, 20)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            async with Journal.open(MemorySegments()) as journal:
                await journal.commit(numbered(0))
        wake.set()


@pytest.mark.parametrize(
    ("blobs", "said"),
    [
        ([segment([encode(numbered(0))]), b"\x91\x01"], "segment 2"),
        ([segment([encode(numbered(0))])[:-3]], "segment 1"),
        ([b""], "segment 1"),
        ([segment([encode(Opened(run={}, schema=99))])], "schema 99"),
        ([b"\x91\x81\xa5event\xa6unseen"], "newer"),
    ],
)
def test_damaged_segments_are_named(blobs: list[bytes], said: str) -> None:
    with pytest.raises(JournalError, match=said):
        list(Journal(Fixed(blobs)).read())


def test_the_schema_is_written() -> None:
    assert b"schema" in encode(Opened(run={})), "a reader of a later schema must see what this one was"


def test_sqlite_keeps_segments(tmp_path: Path) -> None:
    store = SqliteSegments(tmp_path / "journal.db")
    blobs = [segment([encode(numbered(number))]) for number in range(5)]
    for blob in blobs:
        store.append(blob)
    other = SqliteSegments(tmp_path / "journal.db")
    assert list(other.read()) == blobs, "a second reader sees what is committed"
    other.close()
    store.close()
    with pytest.raises(JournalError, match="cannot be written"):
        store.append(b"")


def test_a_lost_row_is_found(tmp_path: Path) -> None:
    store = SqliteSegments(tmp_path / "journal.db")
    for number in range(5):
        store.append(segment([encode(numbered(number))]))
    store._database.execute("DELETE FROM segments WHERE number = 3")
    with pytest.raises(JournalError, match="segment 3 is missing"):
        numbers(store)
    store.close()


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 1000)
    for name in ("text", "missing/journal.db", ""):
        with pytest.raises(JournalError, match="cannot be opened"):
            SqliteSegments(tmp_path / name)


SMALL_DISK = """
import resource, sys
from pathlib import Path
from sparring.errors import JournalError
from sparring.rollout import SqliteSegments
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
store, written = SqliteSegments(Path(sys.argv[1])), 0
try:
    while True:
        store.append(bytes(200))
        written += 1
except JournalError as error:
    print(written, error)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one, as SQLite meets it: the file may not grow."""
    path = tmp_path / "journal.db"
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, path], capture_output=True, text=True, check=True, timeout=60
    )
    written, _, said = done.stdout.partition(" ")
    assert "cannot be written" in said and "free some disk space" in said
    store = SqliteSegments(path)
    assert int(written) <= len(list(store.read())) <= int(written) + 1
    store.append(b"after space was made")
    store.close()


KILLED = """
import sys
from pathlib import Path
import anyio
from sparring.rollout import Journal, SqliteSegments
from sparring.rollout.events import Noted

async def main():
    store = SqliteSegments(Path(sys.argv[1]))
    async with Journal.open(store) as journal:
        number = int(sys.argv[2])
        while True:
            for _ in range(7):
                last = journal.append(Noted(kind="number", text=str(number)))
                number += 1
            await journal.durable(last)
            print(number, flush=True)

anyio.run(main)
"""


def test_kill_9(tmp_path: Path) -> None:
    """Whatever a process was told is durable is there after it was killed, and the next one goes on from it."""
    path, begin = tmp_path / "journal.db", 0
    for lines in (1, 20):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path, str(begin)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(lines)][-1]
        process.send_signal(signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split("\n")[:-1])])
        process.wait()
        process.stdout.close()
        store = SqliteSegments(path)
        found = numbers(store)
        store.close()
        assert found == list(range(len(found))) and len(found) >= told
        begin = len(found)
