"""Frames on a socket that does not block, on any event loop: four bytes of length, and a JSON object."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio


async def send(line: socket.socket, message: dict[str, Any]) -> None:
    """Write a frame. Raises `ConnectionError` where nobody reads."""
    content = json.dumps(message).encode()
    rest = memoryview(struct.pack(">I", len(content)) + content)
    while rest:
        rest = rest[await until_sent(line, partial(line.send, rest)) :]


async def until_sent(line: socket.socket, send: Callable[[], int]) -> int:
    """`send()`, as soon as it does not block."""
    while True:
        try:
            return send()
        except BlockingIOError:
            await anyio.wait_writable(line)


async def receive(line: socket.socket, most: int) -> dict[str, Any]:
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
