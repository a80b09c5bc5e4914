"""A session of a server of OpenEnv: one WebSocket, JSON messages there and back, on either event loop."""

from __future__ import annotations

import json
import ssl
from collections import deque
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from sparring.errors import EffectError, SettingError, UnsupportedError

try:
    from websockets.client import ClientProtocol
    from websockets.exceptions import InvalidURI
    from websockets.frames import Opcode
    from websockets.http11 import Response
    from websockets.protocol import State
    from websockets.uri import WebSocketURI, parse_uri
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"servers of OpenEnv need {missing.name!r}: pip install 'sparring[openenv]'") from missing

_LARGEST = 64 << 20  # bytes of one message
_WAITS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next try where all places are taken


class Refused(Exception):
    """What the server says instead of an observation. `code` is its own: VALIDATION_ERROR, CAPACITY_REACHED, ..."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def checked_url(url: str) -> str:
    """Without the slash at its end. Raises `SettingError` for what is no address."""
    try:
        _address(url)
    except InvalidURI as error:
        raise SettingError(f"url={url!r}: {error}; give the server's address, as in 'http://localhost:8000'") from error
    return url.rstrip("/")


def _address(url: str) -> WebSocketURI:
    scheme, _, rest = url.rstrip("/").partition("://")
    return parse_uri(f"{ {'http': 'ws', 'https': 'wss'}.get(scheme, scheme) }://{rest}/ws")


class Session:
    """Connects when it is first asked something; whoever makes it closes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._wire: _Wire | None = None

    async def request(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The data of the answer. The first request waits until the server has a place. Raises `Refused`, and `EffectError`
        where the connection cannot be had or ends."""
        tries = 0
        while True:
            try:
                return await self._exchanged({"type": kind, "data": data})
            except Refused as refused:
                if refused.code != "CAPACITY_REACHED":
                    raise
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                ended = f"{self.url}: the connection ended, or cannot be had: {error or type(error).__name__}"
                raise EffectError(ended) from error
            await self.aclose()
            await anyio.sleep(_WAITS[min(tries, len(_WAITS) - 1)])
            tries += 1

    async def aclose(self) -> None:
        """Say goodbye, where there is somebody, and close."""
        if self._wire is not None:
            wire, self._wire = self._wire, None
            await wire.aclose()

    async def _exchanged(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._wire is None:
            self._wire = await _Wire.connected(_address(self.url))
        await self._wire.send(json.dumps(message))
        answer = json.loads(await self._wire.received())
        data: dict[str, Any] = answer.get("data", {})
        if answer.get("type") == "error":
            problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in data.get("errors", ()))
            raise Refused(str(data.get("code")), problems or str(data.get("message")))
        return data


class _Wire:
    """The connection: `websockets` knows the protocol, anyio moves the bytes."""

    def __init__(self, stream: ByteStream, protocol: ClientProtocol) -> None:
        self._stream, self._protocol = stream, protocol
        self._events: deque[Any] = deque()

    @classmethod
    async def connected(cls, address: WebSocketURI) -> _Wire:
        stream: ByteStream = await anyio.connect_tcp(address.host, address.port)
        if address.secure:
            stream = await TLSStream.wrap(stream, hostname=address.host, ssl_context=ssl.create_default_context())
        wire = cls(stream, ClientProtocol(address, max_size=_LARGEST))
        try:
            wire._protocol.send_request(wire._protocol.connect())
            await wire._flush()
            answer = await wire._event()
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        if wire._protocol.handshake_exc is not None:
            await anyio.aclose_forcefully(stream)
            raise OSError(f"no server of OpenEnv: {wire._protocol.handshake_exc}")
        assert isinstance(answer, Response), answer
        return wire

    async def send(self, text: str) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text.encode())
        with suppress(anyio.BrokenResourceError):  # what the server said before it closed is still to be read
            await self._flush()

    async def received(self) -> str:
        """The next message, of one frame or several."""
        pieces = bytearray()
        while True:
            frame = await self._event()
            if frame.opcode is Opcode.CLOSE:
                raise anyio.EndOfStream
            if frame.opcode in (Opcode.TEXT, Opcode.CONT):
                pieces += frame.data
                if frame.fin:
                    return pieces.decode()

    async def aclose(self) -> None:
        with anyio.move_on_after(1), suppress(Exception):  # whatever state it is in, it is closed
            if self._protocol.state is State.OPEN:
                self._protocol.send_text(b'{"type": "close"}')
                self._protocol.send_close(1000)
                await self._flush()
        await anyio.aclose_forcefully(self._stream)

    async def _event(self) -> Any:
        while not self._events:
            try:
                self._protocol.receive_data(await self._stream.receive())
            except anyio.EndOfStream:
                self._protocol.receive_eof()
                self._events.extend(self._protocol.events_received())
                if not self._events:
                    raise
                break
            self._events.extend(self._protocol.events_received())
            await self._flush()
        return self._events.popleft()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:  # nothing is left to send where it is empty
                await self._stream.send(data)
