"""A seat at a table with one agent: what the seat asks for goes to the agent, what the agent asks for to a recording
client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio.lowlevel
import numpy as np

from sparring.agents import Agent, Chooser, Drawing, PolicyAgent, Sample, Sampling
from sparring.arrays import F32, I32
from sparring.backend import SampledSequence, SamplingParams
from sparring.backend.bytes_renderer import END, ByteRenderer
from sparring.environments import Conversation, Place, Reply, Request, Seat, Turn

Drawn = Callable[[int], Sequence[int]]


def words(*replies: str) -> Drawn:
    """The replies in turn, each ended by the stop token; the last one again and again."""
    return lambda call: [*replies[min(call, len(replies) - 1)].encode(), END]


@dataclass(kw_only=True)
class RecordingClient:
    """A `SamplingClient` that draws what it is told and keeps what it was asked: whole prompts, and how to draw."""

    drawn: Drawn
    version: int = 5
    prompts: list[list[int]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    options_asked: list[list[list[int]]] = field(default_factory=list)

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        assert n == 1
        call = len(self.prompts)
        self.prompts.append(np.asarray(prompt).tolist())
        self.params.append(params)
        await anyio.lowlevel.checkpoint()
        whole = np.array(self.drawn(call), np.int32)
        tokens = whole[: params.max_tokens]
        return [
            SampledSequence(
                tokens=tokens,
                logprobs=-np.arange(1, len(tokens) + 1, dtype=np.float32) - call,
                stop="stop" if len(tokens) == len(whole) else "length",
                versions=((self.version, len(tokens)),),
            )
        ]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        raise AssertionError("no player asks for it")

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        """The shorter, the likelier."""
        self.prompts.append(np.asarray(prompt).tolist())
        self.options_asked.append([np.asarray(option).tolist() for option in options])
        await anyio.lowlevel.checkpoint()
        return np.array([-len(option) for option in options], np.float32)

    async def aclose(self) -> None: ...


@dataclass(kw_only=True)
class Table:
    """A `Running` that asks its one agent, and keeps the places and samples in order."""

    agent: Agent
    seed: int = 3
    acts: list[tuple[Place, Sample | None]] = field(default_factory=list)

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        action = await self.agent.act(conversation, request, self.seed)
        self.acts.append((conversation.place, action.sample))
        return action.reply, action.sample

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        assert isinstance(self.agent, Chooser)
        return await self.agent.choose(conversation, options)

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        raise AssertionError("there are no effects at this table")

    def context_left(self, conversation: Conversation) -> int:
        return self.agent.context_left(conversation)

    def temperature(self, seat: str) -> float | None:
        return self.agent.temperature if isinstance(self.agent, Drawing) else None

    def split(self, more: int) -> None:
        """Nobody counts at this table."""

    def samples(self) -> list[Sample]:
        assert all(sample is not None for _, sample in self.acts)
        return [sample for _, sample in self.acts if sample is not None]


def policy(
    drawn: Drawn, *, temperature: float = 1.0, max_tokens: int = 512, context: int = 10_000
) -> tuple[Seat, RecordingClient, Table]:
    """A seat that a policy plays."""
    client = RecordingClient(drawn=drawn)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    table = Table(agent=PolicyAgent(client, ByteRenderer(), sampling, context))
    return Seat("solver", table), client, table


def context_of(conversation: Conversation) -> list[int]:
    """The tokens of a conversation so far, put together from the samples of its turns as a learner does."""
    tokens: list[int] = []
    for entry in conversation.entries:
        if isinstance(entry, Turn):
            assert isinstance(entry.record, Sample)
            if entry.record.whole:
                tokens = []
            tokens += [*entry.record.prompt.tolist(), *entry.record.tokens.tolist()]
    return tokens
