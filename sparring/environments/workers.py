"""Workers: processes that answer one question at a time, and are killed where they take too long.

Idle ones belong to this process, not to an event loop; one more than are used stands ready, so that nobody waits for the next
after a kill. They end where this process ends, also where it is killed: their line ends then.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from sparring.environments.sandboxing.line import receive, send

_START = 60.0
_LONGEST = 1 << 20
_TRIES = 3
_limiters: RunVar[dict[tuple[Path, int], anyio.CapacityLimiter]] = RunVar("sparring_workers")


class Lost(Exception):
    """A worker died while it answered, and did so again."""


class Worker:
    """One process: a session of its own, no environment variables, nothing open but its line."""

    def __init__(self, program: Path) -> None:
        self.line, theirs = socket.socketpair()
        self.line.setblocking(False)
        command = [sys.executable, "-P", "-s", "-X", "utf8", str(program)]
        quiet = subprocess.DEVNULL
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=quiet, stderr=quiet, env={}, cwd="/", start_new_session=True
            )
        self.ready = False
        self._end = weakref.finalize(self, _ended, self.process, self.line)

    def close(self) -> None:
        """Kill it. Blocks for as long as the kernel takes."""
        self._end()


def _ended(process: subprocess.Popen[bytes], line: socket.socket) -> None:
    line.close()
    process.kill()
    process.wait()


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers that run one program, `most` of them busy at once on an event loop."""

    program: Path
    most: int
    _idle: deque[Worker] = field(default_factory=deque[Worker], repr=False)

    async def ask(self, question: dict[str, Any], deadline: float) -> dict[str, Any]:
        """The answer of one of them. Raises `TimeoutError` after `deadline` seconds of its work, and `Lost`.

        A worker that somebody else killed costs nothing but time: another is asked.
        """
        async with self._limiter():
            for _ in range(_TRIES):
                with suppress(EOFError, ConnectionError):
                    return await self._asked(question | {"deadline": deadline}, deadline)
        raise Lost(f"{_TRIES} workers died, one after the other")

    async def _asked(self, question: dict[str, Any], deadline: float) -> dict[str, Any]:
        worker = self._standing()
        if worker is None:
            worker = await anyio.to_thread.run_sync(self._started)
        well = False
        try:
            if not worker.ready:
                with anyio.fail_after(_START):
                    await receive(worker.line, _LONGEST)
                worker.ready = True
            with anyio.fail_after(deadline):
                await send(worker.line, question)
                answer = await receive(worker.line, _LONGEST)
            well = True
            return answer
        finally:
            if well:
                self._idle.append(worker)
            else:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._replaced, worker)

    def _standing(self) -> Worker | None:
        with suppress(IndexError):
            while True:
                worker = self._idle.pop()  # the last that worked: its caches are warm
                if worker.process.poll() is None:
                    return worker
        return None

    def _started(self) -> Worker:
        if not self._idle:
            self._idle.appendleft(Worker(self.program))  # one to spare
        return Worker(self.program)

    def _replaced(self, worker: Worker) -> None:
        worker.close()
        self._idle.appendleft(Worker(self.program))

    def _limiter(self) -> anyio.CapacityLimiter:
        limiters = _limiters.get(None)
        if limiters is None:
            limiters = {}
            _limiters.set(limiters)
        return limiters.setdefault((self.program, self.most), anyio.CapacityLimiter(self.most))
