"""The journal: what is on the disk is a prefix of what was appended, and nobody is told of it early."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sparring.errors import JournalError
from sparring.rollout import Journal, MemorySegments, SqliteSegments
from sparring.rollout.events import Noted, Opened, decode_segment, encode, segment
from sparring.rollout.journal import Snapshot
from tests.rollout.stores import Fixed, Held, numbered, numbers


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


def shot(number: int, *beside: int) -> Snapshot:
    """A snapshot that says of which event it is."""
    return Snapshot(name=f"{number}", blob=f"{number}".encode(), beside=frozenset(f"{one}" for one in beside))


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_snapshot_is_of_the_end_of_its_segment(tmp_path: Path, on_disk: bool) -> None:
    """However much was queued with it: what is read after it is what came after it."""
    store = SqliteSegments(tmp_path / "journal.db") if on_disk else MemorySegments()
    held = Held(store)
    held.free = True

    async def written() -> None:
        async with Journal.open(held) as journal:
            for number in range(9):
                journal.append(numbered(number), shot(number, 2) if number in (2, 5, 6) else None)

    anyio.run(written)
    found = store.snapshots()
    assert [blob for _, blob in found] == [b"2", b"6"], "5 was not to stay beside 6"
    for segments, blob in found:
        rest = [event for event in Journal(store).read(segments) if isinstance(event, Noted)]
        assert [event.text for event in rest] == [f"{number}" for number in range(int(blob) + 1, 9)]
    assert numbers(store) == list(range(9))
    store.close()


@pytest.mark.parametrize("mode", ["fails before", "dies after"])
async def test_a_snapshot_is_written_with_its_segment_or_not_at_all(mode: str) -> None:
    store = MemorySegments()
    held = Held(store)
    held.free, held.mode = True, mode
    with pytest.raises(ExceptionGroup):
        async with Journal.open(held) as journal:
            await journal.commit(numbered(0), shot(0))
    assert len(store.snapshots()) == len(store.blobs) == (mode == "dies after")


def test_a_snapshot_that_cannot_be_written_leaves_no_segment(tmp_path: Path) -> None:
    store = SqliteSegments(tmp_path / "journal.db")
    store.append(segment([encode(numbered(0))]), shot(0))
    store.append(segment([encode(numbered(1))]), shot(1, 0))
    with pytest.raises(JournalError, match="cannot be written"):
        store.append(segment([encode(numbered(2))]), shot(1, 0, 1))
    store.append(segment([encode(numbered(3))]))
    assert numbers(store) == [0, 1, 3] and [blob for _, blob in store.snapshots()] == [b"0", b"1"]
    store.close()


def test_a_snapshot_of_a_segment_that_is_not_there_is_none(tmp_path: Path) -> None:
    store = SqliteSegments(tmp_path / "journal.db")
    store.append(segment([encode(numbered(0))]), shot(0))
    store.append(segment([encode(numbered(1))]), shot(1, 0))
    store.close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as database, database:
        database.execute("DELETE FROM segments WHERE number = 2")
    store = SqliteSegments(tmp_path / "journal.db")
    assert store.snapshots() == [(1, b"0")]
    store.close()


def test_a_journal_of_before_there_were_snapshots_is_read_and_gone_on_with(tmp_path: Path) -> None:
    store = SqliteSegments(tmp_path / "journal.db")
    store.append(segment([encode(numbered(0))]))
    store.close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as database, database:
        database.execute("DROP TABLE snapshots")
    store = SqliteSegments(tmp_path / "journal.db")
    assert store.snapshots() == []
    store.append(segment([encode(numbered(1))]), shot(1))
    assert numbers(store) == [0, 1] and store.snapshots() == [(2, b"1")]
    store.close()
