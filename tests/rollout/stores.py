"""Stores that misbehave on demand, and events that are numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from sparring.errors import JournalError
from sparring.rollout import SegmentStore
from sparring.rollout.events import Noted, decode_segment
from sparring.rollout.journal import Snapshot


def numbered(number: int) -> Noted:
    return Noted(kind="number", text=str(number))


def numbers(store: SegmentStore) -> list[int]:
    """The numbers of the events on the disk."""
    return numbers_in(store.read())


def numbers_in(blobs: Iterable[bytes]) -> list[int]:
    events = [event for blob in blobs for event in decode_segment(blob)]
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

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        if not self.free:
            assert self.go.acquire(timeout=20)
        try:
            if self.mode.endswith("before"):
                self._break()
            self.inner.append(blob, snapshot)
            if self.mode.endswith("after"):
                self._break()
        finally:
            self.done.release()

    def _break(self) -> None:
        raise JournalError("no space left") if self.mode.startswith("fails") else Died

    def read(self, after: int = 0) -> Iterator[bytes]:
        return self.inner.read(after)

    def snapshots(self) -> list[tuple[int, bytes]]:
        return self.inner.snapshots()

    def close(self) -> None:
        """The inner one is read after the journal is closed."""


class Fixed:
    """Segments as given."""

    def __init__(self, blobs: list[bytes]) -> None:
        self.blobs = blobs

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        raise AssertionError("nothing is written here")

    def read(self, after: int = 0) -> Iterator[bytes]:
        return iter(self.blobs[after:])

    def snapshots(self) -> list[tuple[int, bytes]]:
        return []

    def close(self) -> None:
        """Nothing is held."""
