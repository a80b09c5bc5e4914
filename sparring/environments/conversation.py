"""The append-only record of what one seat saw and said in one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from sparring.environments.reply import Reply, ToolCall

Role = Literal["system", "user", "assistant", "tool"]
"""Who says a message: `tool` answers a call; `assistant` is what others said in the player's name (its own are turns)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A part of a message; images will be another."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something a seat was told. `calls` are those of an assistant's message."""

    role: Role
    parts: tuple[Text, ...]
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What a player knows of a tool: `parameters` is the JSON schema of its arguments, an object, as JSON text."""

    name: str
    description: str
    parameters: str


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
    """Messages and turns in order, with a running digest of them, so that a request is named by what led to it. `tools` are
    those that the player may call."""

    __slots__ = ("_digest", "_entries", "_tools", "inherited", "place")

    def __init__(self, place: Place, entries: Sequence[Message | Turn] = (), digest: bytes = b"") -> None:
        self.place = place
        self.inherited = len(entries)
        """How many entries a fork took over: they are its past, not its actions."""
        self._entries = list(entries)
        self._digest = digest
        self._tools: tuple[ToolSpec, ...] = ()

    @property
    def entries(self) -> Sequence[Message | Turn]:
        return self._entries

    @property
    def digest(self) -> bytes:
        return self._digest

    @property
    def tools(self) -> Sequence[ToolSpec]:
        return self._tools

    def offer(self, tools: Sequence[ToolSpec]) -> None:
        """So many more tools, where there are any."""
        for tool in tools:
            self._digest = sha256(
                self._digest + ascii((tool.name, tool.description, tool.parameters)).encode()
            ).digest()
        self._tools = (*self._tools, *tools)

    def append(self, entry: Message | Turn) -> None:
        if isinstance(entry, Message):
            content: tuple[object, ...] = (entry.role, tuple(part.text for part in entry.parts))
            if entry.calls:
                content = (*content, _plain(entry.calls))
        else:
            reply = entry.reply
            content = ("assistant", reply.text, reply.reasoning, _plain(reply.tool_calls), reply.stop)
        self._digest = sha256(self._digest + ascii(content).encode()).digest()
        self._entries.append(entry)

    def copied(self, place: Place) -> Conversation:
        """A fork's start: everything so far, at another place."""
        copy = Conversation(place, self._entries, self._digest)
        copy._tools = self._tools
        return copy

    def renewed(self, place: Place) -> Conversation:
        """A fresh context: tools and what the system said are kept, the rest is not."""
        fresh = Conversation(place)
        fresh.offer(self._tools)
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
        return isinstance(last, Message) and last.role in ("user", "tool")

    def unanswered(self) -> Sequence[ToolCall]:
        """The calls of the last turn that were not answered yet; none once something else was said."""
        for answers, entry in enumerate(reversed(self._entries)):
            if isinstance(entry, Turn):
                return entry.reply.tool_calls[answers:]
            if entry.role != "tool":
                break
        return ()


def _plain(calls: Sequence[ToolCall]) -> tuple[tuple[str, str], ...]:
    return tuple((call.name, call.arguments) for call in calls)
