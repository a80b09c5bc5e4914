"""One run, from the host's side: the files that it talks and prints to, and deadlines. What comes out is checked, never
believed."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any

import anyio

from sparring.environments.sandboxing.line import receive, send, until_sent
from sparring.environments.sandboxing.result import Ending, Limits, Stopped
from sparring.environments.sandboxing.server import Server

Answer = Callable[[Any], Awaitable[dict[str, Any]]]
"""Answers what a run asks of the host: `[args, kwargs]`, packed, to `{"answer": packed}` or `{"failed": text}`."""

_START = 30.0
_REPORT = 4096


class Box:
    """A run that was begun. `request` asks it for something; `finished` ends it and tells how it ended. `most` is how often it
    may `go_on`."""

    def __init__(self, server: Server, limits: Limits, most: int = 0) -> None:
        self._server, self._limits = server, limits
        self._cpu = limits.seconds * (most + 1)
        self._read = [0, 0]
        self._deadline = anyio.current_time() + _START
        self._talk, talk = socket.socketpair()
        self._report, report = socket.socketpair()
        self._printed = [os.memfd_create(name) for name in ("output", "errors")]
        self._theirs = [talk, report]
        self._end: dict[str, Any] | None = None
        for ours in (self._talk, self._report):
            ours.setblocking(False)
        for file in self._printed:
            os.set_blocking(file, False)

    async def begin(self, stdin: str) -> None:
        """Have it shut in. Raises `Stopped`, REFUSED where a step of that failed: then no code has run."""
        files = [*(line.fileno() for line in self._theirs), *self._printed]
        try:
            await until_sent(self._server.control, lambda: socket.send_fds(self._server.control, [b"run"], files))
        except ConnectionError:
            self._server.gone = True
            raise Stopped(Ending.LOST, "the server is gone") from None
        for line in self._theirs:
            line.close()
        limits = self._limits
        numbers = {name: getattr(limits, name) for name in ("memory", "disk", "output", "threads")}
        message = {"stdin": stdin, "limits": numbers | {"seconds": ceil(self._cpu) + 1}}
        answer = await self._exchange(message, None)
        if "refused" in answer:
            raise Stopped(Ending.REFUSED, f"the sandbox could not be closed: {answer['refused']}")
        if answer != {"ready": True}:
            raise Stopped(Ending.PROTOCOL, "it did not begin as it should")
        self.go_on()

    def go_on(self) -> None:
        """From here on it has all of its time again."""
        self._deadline = anyio.current_time() + self._limits.seconds

    async def request(self, message: dict[str, Any], answer: Answer | None = None) -> dict[str, Any]:
        """What it replied: `value` (packed), `error` ([type, text]) or `exit` (code). Raises `Stopped`."""
        reply = await self._exchange(message, answer)
        error = reply.get("error")
        if "value" in reply or isinstance(reply.get("exit"), int):
            return reply
        if isinstance(error, list) and len(error) == 2 and all(isinstance(part, str) for part in error):
            return reply
        raise Stopped(Ending.PROTOCOL, "it sent something that is no reply")

    async def finished(self) -> dict[str, Any]:
        """End it, where it has not ended, and tell how: `code`, `cpu` (seconds), `memory` (bytes)."""
        with anyio.move_on_after(_START):
            if self._end is None:
                self._report.shutdown(socket.SHUT_WR)
            return await self._reported()
        raise Stopped(Ending.LOST, "its supervisor does not answer")

    def printed(self) -> tuple[str, str]:
        """What it has printed since this was asked last, as output and as errors. Raises `Stopped` where one of them is more
        than it may."""
        most = self._limits.output
        output, errors = (os.pread(file, most + 1, at) for file, at in zip(self._printed, self._read, strict=True))
        self._read = [at + len(new) for at, new in zip(self._read, (output, errors), strict=True)]
        if max(len(output), len(errors)) > most:
            raise Stopped(Ending.OUTPUT, f"it printed more than {most} bytes")
        return output.decode(errors="replace"), errors.decode(errors="replace")

    def close(self) -> None:
        """Hang up: what still runs is killed."""
        for line in (self._talk, self._report, *self._theirs):
            line.close()
        for file in self._printed:
            os.close(file)

    async def _exchange(self, message: dict[str, Any], answer: Answer | None) -> dict[str, Any]:
        with anyio.move_on_at(self._deadline):
            reply = await self._round(message)
            while "ask" in reply:
                if answer is None:
                    raise Stopped(Ending.PROTOCOL, "it asked for something that it was not offered")
                reply = await self._round(await answer(reply["ask"]))
            return reply
        raise Stopped(Ending.TIME, f"it took longer than {self._limits.seconds:g} s")

    async def _round(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            await send(self._talk, message)
            return await receive(self._talk, self._limits.value)
        except (EOFError, ConnectionError):
            raise await self._death() from None
        except (ValueError, RecursionError) as error:
            raise Stopped(Ending.PROTOCOL, f"it sent what cannot be read: {error}") from error

    async def _death(self) -> Stopped:
        """Why it is gone."""
        report = await self._reported()
        code = report["code"]
        if code >= 0:
            return Stopped(Ending.PROTOCOL, f"it left with code {code} before it answered")
        if report["cpu"] >= self._cpu:
            return Stopped(Ending.TIME, f"it took longer than {self._cpu:g} s")
        return Stopped(Ending.KILLED, f"it was killed by signal {-code}")

    async def _reported(self) -> dict[str, Any]:
        try:
            self._end = self._end or await receive(self._report, _REPORT)
        except (EOFError, ConnectionError):
            raise Stopped(Ending.LOST, "its supervisor is gone") from None
        if "refused" in self._end:
            raise Stopped(Ending.REFUSED, f"the sandbox could not be closed: {self._end['refused']}")
        return self._end
