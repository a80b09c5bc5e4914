"""The smallest renderer: utf-8 bytes and one special token per role. For scripted backends and tests; no model needed."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from sparring.arrays import I32
from sparring.backend.calls import CallForm, with_tools
from sparring.backend.messages import check_messages
from sparring.backend.renderer import Parsed, ParsedCall, RenderedMessage, RenderedTool
from sparring.errors import SettingError

ROLES = {"system": 256, "user": 257, "assistant": 258, "tool": 259}
"""The token that opens a message of each role."""

END = 260
"""The token that ends a message; the only stop token."""

VOCABULARY = 261
"""Ids run from 0 to 260: 256 bytes, 4 roles, `END`."""


class ByteRenderer:
    """A `Renderer` whose tokens are bytes: a message is its role's token, its text in utf-8, then `END`. Tools and calls are
    written as `calls` says, and the answers of tools have a role of their own."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """`END` alone."""
        return (END,)

    @property
    def fingerprint(self) -> str:
        """The same for every instance; changes only when this file's format does."""
        return sha256(b"sparring bytes renderer, format 1").hexdigest()

    def start(self, messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool] = ()) -> I32:
        """The messages and the token that opens the assistant's turn, i32[T]. Raises `SettingError` for a bad message."""
        if not messages:
            raise SettingError("a context of no messages: start with at least one")
        return self._messages(with_tools(messages, tools))

    def extend(self, messages: Sequence[RenderedMessage], previous: I32) -> I32:
        """`END` if `previous` lacks it, the messages, and the assistant's opening token, i32[T]."""
        closed = len(previous) > 0 and int(previous[-1]) == END
        rest = self._messages(messages)
        return rest if closed else np.concatenate([np.array([END], np.int32), rest])

    def parse(self, tokens: I32, *, tools: bool = False) -> Parsed:
        """The bytes of a sampled turn as text; what is no utf-8 becomes U+FFFD, special tokens are left out."""
        text, calls = CallForm().read(self.text(tokens)) if tools else (self.text(tokens), ())
        return Parsed(text=text, calls=calls)

    def calling(self, text: str, calls: Sequence[ParsedCall]) -> str:
        """What an assistant's message says that makes these calls."""
        return CallForm().write(text, calls)

    def prompt(self, messages: Sequence[RenderedMessage]) -> I32:
        """The same as `start`."""
        return self.start(messages)

    def text(self, tokens: Sequence[int] | I32) -> str:
        """The tokens as text, special tokens left out; what is no utf-8 becomes U+FFFD."""
        ids = np.asarray(tokens, np.int32)
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def _messages(self, messages: Sequence[RenderedMessage]) -> I32:
        check_messages(messages)
        pieces = [_message(message) for message in messages]
        return np.concatenate([*pieces, np.array([ROLES["assistant"]], np.int32)])


def _message(message: RenderedMessage) -> I32:
    role = message["role"]
    if role not in ROLES:
        raise SettingError(f"role {role!r}: must be one of {tuple(ROLES)!r}")
    data = np.frombuffer(message["content"].encode("utf-8"), np.uint8)
    return np.concatenate([[ROLES[role]], data, [END]]).astype(np.int32)
