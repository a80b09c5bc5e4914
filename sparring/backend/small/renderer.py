"""A renderer for models that know a few replies: what they are told is bytes, a whole reply is one token."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from sparring.arrays import I32
from sparring.backend.bytes_renderer import ROLES, VOCABULARY, ByteRenderer
from sparring.backend.messages import check_messages
from sparring.backend.renderer import Parsed, ParsedCall, RenderedMessage, RenderedTool
from sparring.errors import SettingError, UnsupportedError


class ReplyRenderer:
    """A `Renderer` with the tokens of `ByteRenderer` and one more for each reply, which also ends the turn."""

    def __init__(self, replies: Sequence[str]) -> None:
        self.replies = tuple(replies)
        self._bytes = ByteRenderer()

    @property
    def vocabulary(self) -> int:
        return VOCABULARY + len(self.replies)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every reply."""
        return tuple(range(VOCABULARY, self.vocabulary))

    @property
    def fingerprint(self) -> str:
        return sha256(f"replies as tokens, format 1: {self.replies!r}".encode()).hexdigest()

    def start(self, messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool] = ()) -> I32:
        """The messages and the token that opens the assistant's turn, i32[T]. Raises `SettingError` for a turn of the assistant
        that is none of the replies, `UnsupportedError` for tools: no reply calls one."""
        if tools:
            raise UnsupportedError(f"a model of the replies {self.replies!r} cannot call tools; leave seat.tools out")
        if not messages:
            raise SettingError("a context of no messages: start with at least one")
        check_messages(messages)
        pieces = [self._message(message) for message in messages]
        return np.concatenate([*pieces, np.array([ROLES["assistant"]], np.int32)])

    def extend(self, messages: Sequence[RenderedMessage], previous: I32) -> I32:
        """The messages: a reply has closed itself."""
        return self.start(messages)

    def parse(self, tokens: I32, *, tools: bool = False) -> Parsed:
        return Parsed(text=self.text(tokens))

    def calling(self, text: str, calls: Sequence[ParsedCall]) -> str:
        """The text; there are no calls."""
        if calls:
            raise UnsupportedError(f"a model of the replies {self.replies!r} cannot call tools: {calls!r}")
        return text

    def prompt(self, messages: Sequence[RenderedMessage]) -> I32:
        """The same as `start`."""
        return self.start(messages)

    def text(self, tokens: Sequence[int] | I32) -> str:
        """Bytes and replies as text, other special tokens left out."""
        ids = np.asarray(tokens, np.int32)
        edges = np.flatnonzero(ids >= VOCABULARY).tolist()
        pieces, start = list[str](), 0
        for edge in edges:
            pieces += [self._bytes.text(ids[start:edge]), self.replies[int(ids[edge]) - VOCABULARY]]
            start = edge + 1
        return "".join([*pieces, self._bytes.text(ids[start:])])

    def _message(self, message: RenderedMessage) -> I32:
        if message["role"] != "assistant":
            return self._bytes.start([message])[:-1]
        if message["content"] not in self.replies:
            raise SettingError(f"the reply {message['content']!r} is none of this model's: {self.replies!r}")
        token = VOCABULARY + self.replies.index(message["content"])
        return np.array([ROLES["assistant"], token], np.int32)
