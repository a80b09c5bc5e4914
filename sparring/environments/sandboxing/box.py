"""One run, from the host's side: three files to talk over, and deadlines. What comes out of it is checked, never believed."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any

import anyio

from sparring.environments.sandboxing.result import Ending, Limits, Stopped
from sparring.environments.sandboxing.server import Server

Answer = Callable[[Any], Awaitable[dict[str, Any]]]
"""Answers what a run asks of the host: `[args, kwargs]`, packed, to `{"answer": packed}` or `{"failed": text}`."""

_START = 30.0
_REPORT = 4096


class Box:
    """A run that was begun. `request` asks it for something; `finished` ends it and tells how it ended."""

    def __init__(self, server: Server, limits: Limits) -> None:
        self._server, self._limits = server, limits
        self._deadline = anyio.current_time() + _START
        self._talk, talk = socket.socketpair()
        self._report, report = socket.socketpair()
        self._output = os.memfd_create("output")
        self._theirs = [talk, report]
        for ours in (self._talk, self._report):
            ours.setblocking(False)
        os.set_blocking(self._output, False)
        os.ftruncate(self._output, limits.output)

    async def begin(self, stdin: str) -> None:
        """Have it shut in. Raises `Stopped`, REFUSED where a step of that failed: then no code has run."""
        files = [*(line.fileno() for line in self._theirs), self._output]
        await _until_sent(self._server.control, lambda: socket.send_fds(self._server.control, [b"run"], files))
        for line in self._theirs:
            line.close()
        limits = self._limits
        numbers = {name: getattr(limits, name) for name in ("memory", "disk", "output", "threads")}
        message = {"stdin": stdin, "limits": numbers | {"seconds": ceil(limits.seconds) + 1}}
        answer = await self._exchange(message, None)
        if "refused" in answer:
            raise Stopped(Ending.REFUSED, f"the sandbox could not be closed: {answer['refused']}")
        if answer != {"ready": True}:
            raise Stopped(Ending.PROTOCOL, "it did not begin as it should")
        self._deadline = anyio.current_time() + limits.seconds

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
            self._report.shutdown(socket.SHUT_WR)
            return await self._reported()
        raise Stopped(Ending.LOST, "its supervisor does not answer")

    def printed(self) -> str:
        """What it has printed so far. Raises `Stopped` where that is more than it may."""
        length = os.lseek(self._output, 0, os.SEEK_CUR)
        content = os.pread(self._output, min(length, self._limits.output), 0)
        if length >= self._limits.output:
            raise Stopped(Ending.OUTPUT, f"it printed more than {self._limits.output} bytes")
        return content.decode(errors="replace")

    def close(self) -> None:
        """Hang up: what still runs is killed."""
        for line in (self._talk, self._report, *self._theirs):
            line.close()
        os.close(self._output)

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
            await _send(self._talk, message)
            return await _receive(self._talk, self._limits.value)
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
        if report["cpu"] >= self._limits.seconds:
            return Stopped(Ending.TIME, f"it took longer than {self._limits.seconds:g} s")
        return Stopped(Ending.KILLED, f"it was killed by signal {-code}")

    async def _reported(self) -> dict[str, Any]:
        try:
            report = await _receive(self._report, _REPORT)
        except (EOFError, ConnectionError):
            raise Stopped(Ending.LOST, "its supervisor is gone") from None
        if "refused" in report:
            raise Stopped(Ending.REFUSED, f"the sandbox could not be closed: {report['refused']}")
        return report


async def _send(line: socket.socket, message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    rest = memoryview(struct.pack(">I", len(content)) + content)
    while rest:
        rest = rest[await _until_sent(line, lambda rest=rest: line.send(rest)) :]


async def _until_sent(line: socket.socket, send: Callable[[], int]) -> int:
    while True:
        try:
            return send()
        except BlockingIOError:
            await anyio.wait_writable(line)


async def _receive(line: socket.socket, most: int) -> dict[str, Any]:
    """The next frame. Raises `ValueError` for one that is too long or no JSON object, `EOFError` at the end."""
    length = struct.unpack(">I", await _exactly(line, 4))[0]
    if length > most:
        raise ValueError(f"{length} bytes at once, and {most} are allowed")
    message = json.loads(await _exactly(line, length))
    if not isinstance(message, dict):
        raise ValueError("no JSON object")
    return message


async def _exactly(line: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        try:
            part = line.recv(length - len(parts))
        except BlockingIOError:
            await anyio.wait_readable(line)
            continue
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
