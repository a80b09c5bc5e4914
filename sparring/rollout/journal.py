"""The journal: one ordered queue, one writer, one segment for each commit.

`append` puts an event into the queue and returns at once; the writer takes everything that is queued, writes it as one
segment and waits for the disk. `commit` appends and waits until its event is on the disk; `room` waits while the queue
is full. Both are unblocked by the writer, or raised out of by its failure. What is on the disk is always a prefix of
what was appended.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from sparring.errors import JournalError
from sparring.rollout.events import SCHEMA, AnyEvent, Opened, decode_segment, encode, segment
from sparring.rollout.signal import Signal

_LARGEST_QUEUE = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the events up to here come to, for whoever does not want to read them: derived from them, and never more true.

    `beside` names the older ones that stay; all others are deleted when this one is written.
    """

    name: str
    blob: bytes
    beside: frozenset[str] = frozenset()


class SegmentStore(Protocol):
    """Where segments lie. `append` returns when the segment is on the disk, whole and with the snapshot of its end, if there is
    one; it may block and is called from a thread. `read` leaves out the first `after` segments."""

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None: ...
    def read(self, after: int = 0) -> Iterator[bytes]: ...
    def snapshots(self) -> list[tuple[int, bytes]]:
        """(segments up to it, blob) of each snapshot, oldest first."""
        ...

    def close(self) -> None: ...


class SqliteSegments:
    """Segments in one SQLite database: write-ahead log, synchronous=FULL, a row for each segment with the time it was
    written, and one for each snapshot."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS segments (number INTEGER PRIMARY KEY, written REAL, blob BLOB NOT NULL)"
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS snapshots (name TEXT PRIMARY KEY, segment INTEGER, blob BLOB NOT NULL)"
            )
        except sqlite3.Error as error:
            raise JournalError(
                f"journal {str(path)!r} cannot be opened: {error}; free some disk space, or use another folder"
            ) from error

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        try:
            if snapshot is None:
                self._insert(blob)
            else:
                with self._database:
                    self._database.execute("BEGIN")
                    self._replace(snapshot, self._insert(blob))
        except sqlite3.Error as error:
            raise JournalError(
                f"journal {str(self._path)!r} cannot be written: {error}; free some disk space and resume"
            ) from error

    def _insert(self, blob: bytes) -> int:
        """Returns the segment's number."""
        written = self._database.execute(
            "INSERT INTO segments (written, blob) VALUES (unixepoch('subsec'), ?)", (blob,)
        )
        assert written.lastrowid is not None
        return written.lastrowid

    def _replace(self, snapshot: Snapshot, segment: int) -> None:
        there = {name for (name,) in self._database.execute("SELECT name FROM snapshots")}
        gone = [(name,) for name in there - snapshot.beside]
        self._database.executemany("DELETE FROM snapshots WHERE name = ?", gone)
        self._database.execute("INSERT INTO snapshots VALUES (?, ?, ?)", (snapshot.name, segment, snapshot.blob))

    def read(self, after: int = 0) -> Iterator[bytes]:
        try:
            rows = self._database.execute(
                "SELECT number, blob FROM segments WHERE number > ? ORDER BY number", (after,)
            )
            for expected, (number, blob) in enumerate(rows, after + 1):
                if number != expected:
                    raise JournalError(
                        f"journal {str(self._path)!r}: segment {expected} is missing; the file is damaged"
                    )
                yield blob
        except sqlite3.Error as error:
            raise JournalError(f"journal {str(self._path)!r} cannot be read: {error}") from error

    def snapshots(self) -> list[tuple[int, bytes]]:
        try:  # one whose segment is not there belongs to no part of this history
            rows = self._database.execute(
                "SELECT segment, snapshots.blob FROM snapshots JOIN segments ON number = segment ORDER BY segment"
            )
            return rows.fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"journal {str(self._path)!r} cannot be read: {error}") from error

    def close(self) -> None:
        self._database.close()


class MemorySegments:
    """Segments in memory, for tests and short-lived runs."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self.kept: dict[str, tuple[int, bytes]] = {}

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        self.blobs.append(blob)
        if snapshot is not None:
            for name in self.kept.keys() - snapshot.beside:
                del self.kept[name]
            self.kept[snapshot.name] = (len(self.blobs), snapshot.blob)

    def read(self, after: int = 0) -> Iterator[bytes]:
        return iter(self.blobs[after:])

    def snapshots(self) -> list[tuple[int, bytes]]:
        return list(self.kept.values())

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatistics:
    """Events and bytes appended and durable, and what waits in the queue."""

    appended: int
    durable: int
    queued_bytes: int
    segments: int


class Journal:
    """The run's history on its way to the disk. Made by `Journal.open`, which also runs the writer."""

    def __init__(self, store: SegmentStore) -> None:
        self._store = store
        self._queue: list[bytes] = []
        self._snapshots: deque[tuple[int, Snapshot]] = deque()
        self._queued_bytes = 0
        self._appended = 0
        self._durable = 0
        self._segments = 0
        self._queued = Signal()
        self._written = Signal()
        self._failure: BaseException | None = None
        self._closing = self._cancelled = False

    @staticmethod
    @asynccontextmanager
    async def open(store: SegmentStore) -> AsyncIterator[Journal]:
        """A journal over `store` with its writer; leaving it writes what is queued (unless an error ends it) and closes
        the store."""
        journal = Journal(store)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(journal._write)
                yield journal
                journal._closing = True
                journal._queued.notify()
        finally:
            with anyio.CancelScope(shield=True):  # closing waits for the disk, which is no matter of the event loop's
                await anyio.to_thread.run_sync(store.close, limiter=anyio.CapacityLimiter(1))

    def snapshots(self) -> list[tuple[int, bytes]]:
        """(segments up to it, blob) of each snapshot on the disk, oldest first."""
        return self._store.snapshots()

    def read(self, after: int = 0) -> Iterator[AnyEvent]:
        """Every event on the disk, in order, without those of the first `after` segments. Raises `JournalError` for what cannot
        be read: damaged, or of a newer schema."""
        for number, blob in enumerate(self._store.read(after), after + 1):
            try:
                events = decode_segment(blob)
            except msgspec.MsgspecError as error:
                raise JournalError(
                    f"journal segment {number}: {error}; it is damaged, or of a newer sparring"
                ) from error
            for event in events:
                if isinstance(event, Opened) and event.schema > SCHEMA:
                    raise JournalError(
                        f"the journal has schema {event.schema}, this sparring reads up to {SCHEMA}: use the newer one"
                    )
                yield event

    def append(self, event: AnyEvent, snapshot: Snapshot | None = None) -> int:
        """Queue an event; returns its number. Nothing that depends on it may be queued before it. Never waits. Where the writer
        was cancelled, nothing is written any more: `durable` says so. A `snapshot` is of what there is with this event."""
        if self._failure is not None and not self._cancelled:
            raise self._failure
        assert not self._closing, f"the journal was closed before {event!r}"
        blob = encode(event)
        self._queue.append(blob)
        self._queued_bytes += len(blob)
        self._appended += 1
        if snapshot is not None:
            self._snapshots.append((self._appended, snapshot))
        self._queued.notify()
        return self._appended

    async def commit(self, event: AnyEvent, snapshot: Snapshot | None = None) -> None:
        """Queue an event and wait until it, and so everything before it, is on the disk."""
        await self.durable(self.append(event, snapshot))

    async def durable(self, number: int) -> None:
        """Wait until the event of that number is on the disk."""
        assert number <= self._appended, f"event {number} was never appended"
        while self._durable < number:
            if self._failure is not None:
                if self._cancelled:  # whoever is cancelled with the writer is cancelled, and did not fail
                    await checkpoint_if_cancelled()
                raise self._failure
            await self._written.wait()

    async def room(self) -> None:
        """Wait while the queue holds more than its bound: whoever produces many events calls this before each."""
        while self._queued_bytes > _LARGEST_QUEUE:
            if self._failure is not None:
                if self._cancelled:  # whoever is cancelled with the writer is cancelled, and did not fail
                    await checkpoint_if_cancelled()
                raise self._failure
            await self._written.wait()

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(
            appended=self._appended, durable=self._durable, queued_bytes=self._queued_bytes, segments=self._segments
        )

    def _taken(self) -> tuple[list[bytes], Snapshot | None]:
        """Everything that is queued, up to the first snapshot: that is of the end of its segment."""
        if not self._snapshots:
            batch, self._queue = self._queue, []
            return batch, None
        number, snapshot = self._snapshots.popleft()
        count = number - self._durable
        batch, self._queue = self._queue[:count], self._queue[count:]
        return batch, snapshot

    async def _write(self) -> None:
        """Waits for events (or the end), unblocked by `append` and by leaving `open`."""
        own = anyio.CapacityLimiter(1)  # threads that environments keep busy must not hold up the journal
        while True:
            if not self._queue:
                if self._closing:
                    return
                await self._queued.wait()
                continue
            batch, snapshot = self._taken()
            size = sum(map(len, batch))
            try:
                await anyio.to_thread.run_sync(self._store.append, segment(batch), snapshot, limiter=own)
            except BaseException as error:  # also of a store that breaks its word, and when the writer is cancelled
                self._cancelled = isinstance(error, anyio.get_cancelled_exc_class())
                own_words = isinstance(error, JournalError) or not isinstance(
                    error, (Exception, anyio.get_cancelled_exc_class())
                )  # what ends the process is said as it is
                self._failure = error if own_words else JournalError(f"the journal's writer ended: {error!r}")
                self._written.notify()
                raise
            self._queued_bytes -= size
            self._durable += len(batch)
            self._segments += 1
            self._written.notify()
