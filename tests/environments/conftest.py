"""A tiny `Running`: an episode whose players read from a script, and which keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio.lowlevel

from sparring.environments import Conversation, Environment, Message, Place, Reply, Request, Rewards, Seat
from sparring.environments.running import RUNNING

Said = str | Reply | Exception
Script = Callable[[Conversation, Request], Said]


@dataclass(kw_only=True)
class Scripted:
    """Replies with what `script` says (an exception is raised); effects are called at once and go through JSON."""

    script: Script
    requests: list[tuple[Place, Request]] = field(default_factory=list)
    effects: list[tuple[str, bytes, float]] = field(default_factory=list)
    likely: dict[str, float] = field(default_factory=dict)
    """The log-prob of each option."""
    chosen: list[tuple[Sequence[str], Sequence[str], str]] = field(default_factory=list)
    left: int = 1000
    drawn_at: float | None = 1.0
    parts: list[int] = field(default_factory=lambda: [1])
    """How many parts of `play` ran at once, one after the other."""

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        self.requests.append((conversation.place, request))
        await anyio.lowlevel.checkpoint()
        said = self.script(conversation, request)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Reply) else Reply(text=said), ("record", request.turn)

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        self.chosen.append((texts(conversation), options, asked))
        await anyio.lowlevel.checkpoint()
        return [self.likely[option] for option in options]

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        self.effects.append((name, arguments, timeout))
        return json.loads(json.dumps(await call()))

    def context_left(self, conversation: Conversation) -> int:
        return self.left - len(conversation.entries)

    def temperature(self, seat: str) -> float | None:
        return self.drawn_at

    def split(self, more: int) -> None:
        self.parts.append(self.parts[-1] + more)


def saying(*lines: Said) -> Scripted:
    """An episode whose players say these lines, one after the other, whoever is asked."""
    rest = iter(lines)
    return Scripted(script=lambda conversation, request: next(rest))


def seat(*lines: Said, name: str = "solver") -> Seat:
    return Seat(name, saying(*lines))


@contextmanager
def episode(running: Scripted) -> Iterator[Scripted]:
    """Inside, `gather` and `effect` find this episode."""
    token = RUNNING.set(running)
    try:
        yield running
    finally:
        RUNNING.reset(token)


async def played(
    environment: Environment[Any], task: object, script: Script, *, rng: Random | None = None
) -> tuple[Rewards, list[Seat]]:
    """One episode of an environment, as it returns, with its seats."""
    with episode(Scripted(script=script)) as running:
        seats = [Seat(name, running) for name in environment.seats]
        return await environment.begin(task, seats, rng or Random(0)), seats


def texts(conversation: Conversation) -> Sequence[str]:
    """What stands in a conversation, as `role: text`."""
    return [
        f"{entry.role}: {entry.text}" if isinstance(entry, Message) else f"assistant: {entry.reply.text}"
        for entry in conversation.entries
    ]
