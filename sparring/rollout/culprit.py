"""Whose code runs at this moment, written where it outlives the process: what names the episode that ends it.

The event loop runs one task at a time. Before each step of an environment's own code (of `play`, of its branches and effects)
the episode is written on a page, after it the page is wiped. The page is a small file mapped into memory: a write costs no
system call, and it outlives the process, however that ends (not the machine). Who resumes the run reads it: a crash in a C
library, `os._exit`, memory that ran out, a loop without an await that somebody had to kill. A kill from outside while the
process waits, samples or trains names nobody. Threads that an environment starts by itself are not seen.
"""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Awaitable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread

from sparring.errors import JournalError
from sparring.rollout.events import Died, decode_segment, encode, segment

T = TypeVar("T")

_SIZE = mmap.PAGESIZE
_HEAD = 4
"""Bytes that hold how long the name is: 0 where nobody's code runs. They are written last."""


class Page:
    """Names whose code runs. `life` tells this process from those that went before it; without a file the page is forgotten."""

    def __init__(self, memory: mmap.mmap | bytearray | None = None) -> None:
        self.life = uuid4().hex[:12]
        self._memory = bytearray(_SIZE) if memory is None else memory

    @staticmethod
    @asynccontextmanager
    async def kept(path: Path) -> AsyncIterator[Page]:
        """A page in a file, which is gone when this is left: only a process that died leaves one. Raises `JournalError`."""
        memory = await anyio.to_thread.run_sync(_mapped, path)
        try:
            yield Page(memory)
        finally:
            with anyio.CancelScope(shield=True):
                memory.close()
                await anyio.to_thread.run_sync(path.unlink, True)

    def write(self, name: bytes) -> None:
        """`name` runs. One that is too long is left out."""
        length = len(name) if len(name) <= _SIZE - _HEAD else 0
        self._memory[_HEAD : _HEAD + length] = name[:length]
        self._memory[:_HEAD] = length.to_bytes(_HEAD, "little")

    def wipe(self) -> None:
        """Nobody runs."""
        self._memory[:_HEAD] = bytes(_HEAD)

    def named(self, group: int, member: int, held_out: str = "", version: int = 0) -> bytes:
        """What an episode is called on this page."""
        return segment([encode(Died(life=self.life, group=group, member=member, held_out=held_out, version=version))])


def found(path: Path) -> Died | None:
    """Whose code ran when the process ended that kept a page there; None where nobody's did, or none was kept."""
    content = path.read_bytes() if path.is_file() else b""
    length = int.from_bytes(content[:_HEAD], "little")
    if not length:
        return None
    (died,) = decode_segment(content[_HEAD : _HEAD + length])
    assert isinstance(died, Died), died
    return died


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("wb+") as file:
            file.write(bytes(_SIZE))  # a hole would need its place on the disk at the first write into memory
            file.flush()
            return mmap.mmap(file.fileno(), _SIZE)
    except OSError as error:
        raise JournalError(f"{str(path)!r} cannot be written: {error.strerror}; free some disk space") from error


class Own(Generic[T]):
    """An awaitable of the user's, each step of which is written on the page, but for those in which sparring works for it."""

    def __init__(self, code: Awaitable[T], page: Page, name: bytes) -> None:
        self._code, self._page, self._name = code, page, name
        self._asking = 0

    def __enter__(self) -> None:
        """What happens from here on is sparring's, until this is left as often as it was entered."""
        self._asking += 1
        self._page.wipe()

    def __exit__(self, *error: object) -> None:
        self._asking -= 1
        if not self._asking:
            self._page.write(self._name)

    def __await__(self) -> Generator[Any, Any, T]:
        """Steps the code as the event loop steps this."""
        steps = _awaited(self._code).__await__()
        before = _OWN.get()
        _OWN.set(self)
        sent: Any = None
        thrown: BaseException | None = None
        try:
            while True:
                if not self._asking:
                    self._page.write(self._name)
                try:
                    waits = steps.send(sent) if thrown is None else steps.throw(thrown)
                except StopIteration as stop:
                    finished: T = stop.value
                    return finished
                finally:
                    self._page.wipe()
                sent, thrown = None, None
                try:
                    sent = yield waits
                except BaseException as error:  # noqa: BLE001 - it is thrown into the code, at once
                    thrown = error
        finally:
            _OWN.set(before)


async def _awaited(code: Awaitable[T]) -> T:
    return await code


_OWN: ContextVar[Own[Any] | None] = ContextVar("sparring_own", default=None)


def asking() -> AbstractContextManager[None]:
    """Where the code that runs asks sparring for something: until it is answered, it is not what runs."""
    own = _OWN.get()
    return nullcontext() if own is None else own
