"""The append-only record of what one seat saw and said in one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from sparring.environments.reply import Reply

Role = Literal["system", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A part of a message; images will be another."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something a seat was told."""

    role: Role
    parts: tuple[Text, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Something a seat said; `record` is the agent's own memory of it (a policy keeps the sampled tokens there)."""

    reply: Reply
    record: object
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which conversation: a seat, one of its forks, a context.

    `fork` is "" for the seat itself, "2.1" for the first fork of its second one; "0-1:2" is the second one that was made in
    branch 1 of a `gather` in branch 0 of another.
    """

    seat: str
    fork: str = ""
    context: int = 0


class Conversation:
    """Messages and turns in order, with a running digest of them, so that a request is named by what led to it."""

    __slots__ = ("_digest", "_entries", "inherited", "place")

    def __init__(self, place: Place, entries: Sequence[Message | Turn] = (), digest: bytes = b"") -> None:
        self.place = place
        self.inherited = len(entries)
        """How many entries a fork took over: they are its past, not its actions."""
        self._entries = list(entries)
        self._digest = digest

    @property
    def entries(self) -> Sequence[Message | Turn]:
        return self._entries

    @property
    def digest(self) -> bytes:
        return self._digest

    def append(self, entry: Message | Turn) -> None:
        if isinstance(entry, Message):
            content: tuple[object, ...] = (entry.role, tuple(part.text for part in entry.parts))
        else:
            reply = entry.reply
            calls = tuple((call.name, call.arguments) for call in reply.tool_calls)
            content = ("assistant", reply.text, reply.reasoning, calls, reply.stop)
        self._digest = sha256(self._digest + ascii(content).encode()).digest()
        self._entries.append(entry)

    def copied(self, place: Place) -> Conversation:
        """A fork's start: everything so far, at another place."""
        return Conversation(place, self._entries, self._digest)

    def renewed(self, place: Place) -> Conversation:
        """A fresh context: what the system said is kept, the rest is not."""
        fresh = Conversation(place)
        for entry in self._entries:
            if isinstance(entry, Message) and entry.role == "system":
                fresh.append(entry)
        return fresh

    @property
    def awaits_reply(self) -> bool:
        """Whether something was said to the seat since it last spoke (its system text alone is not a question)."""
        if not self._entries:
            return False
        last = self._entries[-1]
        return isinstance(last, Message) and last.role == "user"
