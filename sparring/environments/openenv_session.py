"""A session of a server of OpenEnv: one WebSocket, JSON messages there and back, on either event loop.

A thread of its own reads the WebSocket, so that the server's pings are answered while the player thinks; while an answer is
waited for, a second one waits.
"""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from sparring.errors import EffectError, SettingError, UnsupportedError

try:
    from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
    from websockets.sync.client import ClientConnection, connect
    from websockets.uri import parse_uri
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"servers of OpenEnv need {missing.name!r}: pip install 'sparring[openenv]'") from missing

_LARGEST = 64 << 20  # bytes of one message
_OPENING = 30.0  # seconds until a connection stands
_CLOSING = 1.0  # seconds that a server has to answer a goodbye
_WAITS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next try where all places are taken
_ASKED = 1024  # requests of one event loop that wait for an answer at once, each in a thread

_limiters: RunVar[anyio.CapacityLimiter] = RunVar("sparring_openenv_limiter")


class Refused(Exception):
    """What the server says instead of an observation. `code` is its own: VALIDATION_ERROR, CAPACITY_REACHED, ..."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def checked_url(url: str) -> str:
    """Without the slash at its end. Raises `SettingError` for what is no address."""
    try:
        parse_uri(_address(url))
    except (InvalidURI, ValueError) as error:
        raise SettingError(f"url={url!r}: {error}; give the server's address, as in 'http://localhost:8000'") from error
    return url.rstrip("/")


def _address(url: str) -> str:
    scheme, _, rest = url.rstrip("/").partition("://")
    return f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest}/ws"


def _limiter() -> anyio.CapacityLimiter:
    """That of the running event loop: servers that are slow must not hold up what else it does in threads."""
    try:
        return _limiters.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_ASKED)
        _limiters.set(limiter)
        return limiter


class Session:
    """Connects when it is first asked something; whoever makes it closes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._wire: _Wire | None = None

    async def request(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The data of the answer. The first request waits until the server has a place. Raises `Refused`, and `EffectError`
        where the connection cannot be had or ends. After one that was cancelled there is only `aclose`."""
        tries = 0
        while True:
            try:
                return await self._exchanged({"type": kind, "data": data})
            except Refused as refused:
                if refused.code != "CAPACITY_REACHED":
                    raise
            except (OSError, WebSocketException) as error:
                ended = f"{self.url}: the connection ended, or cannot be had: {error or type(error).__name__}"
                raise EffectError(ended) from error
            await self.aclose()
            await anyio.sleep(_WAITS[min(tries, len(_WAITS) - 1)])
            tries += 1

    async def aclose(self) -> None:
        """Say goodbye, where there is somebody, and close: at most a second. A request that was cancelled ends with it in its
        thread too, at the latest when its connection has been tried for long enough."""
        if self._wire is None:
            return
        wire, self._wire = self._wire, None
        try:
            with anyio.move_on_after(_CLOSING):
                limiter = anyio.CapacityLimiter(1)  # it must not wait for requests
                await anyio.to_thread.run_sync(wire.close, abandon_on_cancel=True, limiter=limiter)
        finally:
            wire.cut()

    async def _exchanged(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._wire is None:
            self._wire = _Wire(_address(self.url))
        answer: dict[str, Any] = await anyio.to_thread.run_sync(
            self._wire.exchange, message, abandon_on_cancel=True, limiter=_limiter()
        )
        data: dict[str, Any] = answer.get("data", {})
        if answer.get("type") == "error":
            problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in data.get("errors", ()))
            raise Refused(str(data.get("code")), problems or str(data.get("message")))
        return data


class _Wire:
    """The connection as threads use it: while one asks, others may end it.

    No lock is needed for that: who connects says so before it looks whether all is over, who ends it the other way round.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._opened = ExitStack()
        self._connection: ClientConnection | None = None
        self._over = False

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message. Blocks; raises what `websockets` does, also where the connection is ended meanwhile."""
        connection = self._connection or self._connected()
        with suppress(ConnectionClosed):  # what the server said before it closed is still to be read
            connection.send(json.dumps(message))
        answer: dict[str, Any] = json.loads(connection.recv(decode=True))
        return answer

    def close(self) -> None:
        """Say goodbye. Blocks until the server does too, at most a second, or for as long as something is being sent."""
        self._over = True
        if self._connection is not None:
            with suppress(ConnectionClosed):
                self._connection.send('{"type": "close"}')
            self._opened.close()

    def cut(self) -> None:
        """End it at once: all that blocks here raises."""
        self._over = True
        if self._connection is not None:
            with suppress(OSError):  # it is closed
                self._connection.socket.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> ClientConnection:
        connection = self._opened.enter_context(
            connect(
                self._address,
                proxy=None,
                open_timeout=_OPENING,
                close_timeout=_CLOSING,
                ping_interval=None,  # a server may be busy for longer than it takes to answer pings
                max_size=_LARGEST,
            )
        )
        self._connection = connection
        if self._over:
            self._opened.close()
        return connection
