"""The small HTTP server: what it reads, what it refuses, and that nothing that goes wrong becomes an answer."""

from __future__ import annotations

import socket
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from sparring.environments.serving import HttpAnswer, HttpRequest, serving


async def echo(request: HttpRequest) -> HttpAnswer:
    said = f"{request.method} {request.path} {request.headers.get('a', '-')} {request.body.decode()}"
    return HttpAnswer(status=200, body=said.encode(), kind="text/plain")


async def sent(port: int, *parts: bytes) -> bytes:
    """What comes back until the server hangs up."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        for part in parts:
            await stream.send(part)
        found = b""
        with anyio.fail_after(10):
            while True:
                try:
                    found += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return found


async def test_a_request_is_answered_and_the_line_closed() -> None:
    async with serving(echo) as port:
        said = await sent(port, b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nA:  b \r\n\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/plain",
        b"Content-Length: 9",
        b"Connection: close",
    ]
    assert body == b"GET /a b "


async def test_a_body_comes_by_length_or_in_chunks_in_any_pieces() -> None:
    async with serving(echo) as port:
        plain = await sent(port, b"POST / HTTP/1.1\r\nContent-", b"Length: 5\r\n\r\nhe", b"llo")
        chunks = (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
        )
        chunked = await sent(port, *(chunks[at : at + 7] for at in range(0, len(chunks), 7)))
        waiting = await sent(port, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"hello")
    assert plain.endswith(b"POST / - hello")
    assert chunked.endswith(b"POST / - hello")
    assert waiting.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and waiting.endswith(b"hello")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"hello\r\n\r\n", b"400 Bad Request"),
        (b"GET / SPDY/3\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: five\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", b"413 Request Entity Too Large"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000, b"431 Request Header Fields Too Large"),
    ],
)
async def test_what_is_no_request_is_told_so(request_: bytes, status: bytes) -> None:
    async with serving(echo) as port:
        assert (await sent(port, request_)).startswith(b"HTTP/1.1 " + status)


async def test_who_hangs_up_early_disturbs_nobody() -> None:
    async with serving(echo) as port:
        for part in (b"", b"POST / HT", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhe"):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(part or b"\r")
        assert (await sent(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")


class Broken(Exception):
    """Something of ours."""


@pytest.mark.parametrize("error", [lambda: Broken("lost"), anyio.ClosedResourceError])
async def test_what_goes_wrong_ends_the_block_with_that_very_error(error: Callable[[], Exception]) -> None:
    raised = error()

    async def broken(request: HttpRequest) -> HttpAnswer:
        raise raised

    async def ask() -> None:
        async with serving(broken) as port:
            await sent(port, b"GET / HTTP/1.1\r\n\r\n")
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        with pytest.raises(type(raised)) as caught:
            await ask()
    assert caught.value is raised


async def test_the_block_s_own_error_is_raised_as_it_is() -> None:
    with pytest.raises(Broken, match="mine"):
        async with serving(echo):
            raise Broken("mine")


async def test_the_end_of_the_block_ends_what_is_being_answered() -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def slow(request: HttpRequest) -> HttpAnswer:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    async with anyio.create_task_group() as group:
        async with serving(slow) as port:
            group.start_soon(sent, port, b"GET / HTTP/1.1\r\n\r\n")
            await begun.wait()
        assert ended.is_set()


async def test_it_may_end_while_somebody_connects() -> None:
    """The connection is there, and nobody has taken it yet; asyncio fails of an `accept` that is cancelled then."""
    async with serving(echo) as port:
        await anyio.wait_all_tasks_blocked()
        with socket.socket() as caller:
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
            await anyio.lowlevel.checkpoint()
