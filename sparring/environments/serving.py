"""A small HTTP/1.1 server for programs of this machine: one address, one function that answers.

It waits for connections and for what they send; it ends with its block, and with it what it was answering. What goes wrong in
the function ends the block too, with that very error: nothing of it becomes an answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.stapled import MultiListener

_HEAD = 64 << 10
_BODY = 64 << 20
_GONE = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What was asked; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What is answered; `kind` is the type of the body."""

    status: int
    body: bytes
    kind: str = "application/json"


class _Unreadable(Exception):
    """What came is no request; with the status to answer."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


Answerer = Callable[[HttpRequest], Awaitable[HttpAnswer]]


@asynccontextmanager
async def serving(answer: Answerer) -> AsyncIterator[int]:
    """Answer requests on a free port of 127.0.0.1, which is yielded."""

    noted = _Noted()

    async def connection(stream: SocketStream) -> None:
        async with stream:
            await _talk(stream, answer, noted)

    failure: Exception | None = None
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        try:
            async with anyio.create_task_group() as group:
                door = _Door(listener)
                group.start_soon(door.watch, group, connection)
                try:
                    yield door.port
                finally:
                    await door.close()
                group.cancel_scope.cancel()
        except ExceptionGroup as failures:
            failure = noted.failure or _first(failures)
    if failure is not None:
        raise failure


class _Door:
    """Lets connections in, until it is closed by one of our own. To cancel `accept` would not do: asyncio of Python 3.11 loses
    a connection that has come but was not taken yet, and complains in its loop."""

    def __init__(self, listeners: MultiListener[SocketStream]) -> None:
        (listener,) = listeners.listeners  # one address
        assert isinstance(listener, SocketListener)
        self._listener, self._closed = listener, False
        self._watching = anyio.CancelScope(shield=True)
        self.port = int(listener.extra(SocketAttribute.local_port))

    async def watch(self, group: TaskGroup, connection: Callable[[SocketStream], Coroutine[Any, Any, None]]) -> None:
        with self._watching:
            while True:
                stream = await self._listener.accept()
                if self._closed:
                    await stream.aclose()
                    return
                group.start_soon(connection, stream)

    async def close(self) -> None:
        """Returns when nobody is let in any more."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            try:
                await (await anyio.connect_tcp("127.0.0.1", self.port)).aclose()
            except OSError:
                self._watching.cancel()


class _Noted:
    """Keeps the first thing that goes wrong inside: who asked hears that the line is closed, and may fail of that first."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            self.failure = self.failure or error


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """Of a group of groups."""
    failure: Exception = failures
    while isinstance(failure, ExceptionGroup):
        failure = failure.exceptions[0]
    return failure


async def _talk(stream: SocketStream, answer: Answerer, noted: _Noted) -> None:
    """One request a connection: a program that forgets its client leaves no connection open."""
    try:
        request = await _request(BufferedByteReceiveStream(stream), stream)
    except _GONE:
        return
    except _Unreadable as error:
        given = HttpAnswer(status=error.status, body=str(error).encode(), kind="text/plain")
    else:
        with noted:
            given = await answer(request)
    with suppress(*_GONE):
        await stream.send(_written(given))


async def _request(source: BufferedByteReceiveStream, stream: SocketStream) -> HttpRequest:
    try:
        head = await source.receive_until(b"\r\n\r\n", _HEAD)
    except anyio.DelimiterNotFound:
        raise _Unreadable(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not all(":" in line for line in lines):
        raise _Unreadable(HTTPStatus.BAD_REQUEST)
    pairs = [line.split(":", 1) for line in lines]
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    if headers.get("expect", "").lower() == "100-continue":
        await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    path = words[1].partition("?")[0]
    return HttpRequest(method=words[0], path=path, headers=headers, body=await _body(source, headers))


async def _body(source: BufferedByteReceiveStream, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(source)
    length = _length(headers.get("content-length", "0"), 10)
    return await source.receive_exactly(length) if length else b""


async def _chunks(source: BufferedByteReceiveStream) -> bytes:
    body = bytearray()
    while True:
        size = _length((await _line(source)).partition(";")[0], 16)
        if not size:
            break
        if len(body) + size > _BODY:
            raise _Unreadable(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body += await source.receive_exactly(size)
        await _line(source)
    while await _line(source):
        """Trailers say nothing that is asked for here."""
    return bytes(body)


async def _line(source: BufferedByteReceiveStream) -> str:
    try:
        return (await source.receive_until(b"\r\n", _HEAD)).decode("latin-1")
    except anyio.DelimiterNotFound:
        raise _Unreadable(HTTPStatus.BAD_REQUEST) from None


def _length(text: str, base: int) -> int:
    try:
        length = int(text.strip(), base)
    except ValueError:
        length = -1
    if length < 0:
        raise _Unreadable(HTTPStatus.BAD_REQUEST)
    if length > _BODY:
        raise _Unreadable(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return length


def _written(answer: HttpAnswer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body
