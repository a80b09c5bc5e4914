"""One episode on a stage: players that can be late, absent-minded or broken, and a journal that is a list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import maxsize
from typing import Any

from sparring.agents import Action, Agent
from sparring.environments import Conversation, Environment, Message, Reply, Request, Seat, task_digest
from sparring.rollout.episode import Episode, EpisodePlan, run_episode
from sparring.rollout.events import Acted, Affected, Ended, decode_segment, encode, segment

Says = Callable[[Conversation, Request, int], Awaitable[str]]


def last_message(conversation: Conversation) -> str:
    last = conversation.entries[-1]
    assert isinstance(last, Message)
    return last.text


@dataclass
class Voice:
    """A player that says what an async function answers; it remembers who was asked what, with which seed."""

    says: Says
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        place = conversation.place
        self.asked.append((f"{place.seat}/{place.fork}/{place.context}", last_message(conversation), seed))
        return Action(reply=Reply(text=await self.says(conversation, request, seed)))

    def context_left(self, conversation: Conversation) -> int:
        return maxsize


async def echo(conversation: Conversation, request: Request, seed: int) -> str:
    return f"re: {last_message(conversation)}"


@dataclass
class Played:
    """What came of it: `events` are those that were journaled anew."""

    ended: Ended
    events: list[Acted | Affected]
    seats: Sequence[Seat]

    @property
    def value(self) -> float | None:
        """The return of the first seat."""
        return self.ended.results[0].value


def plan_of(
    environment: Environment[Any],
    agent: Agent | Mapping[str, Agent],
    *,
    task: Any = 0,
    past: Sequence[Acted | Affected] = (),
    deadline: float | None = None,
    clock: bool = True,
    group: int = 0,
    member: int = 0,
    trained: frozenset[str] | None = None,
) -> EpisodePlan:
    return EpisodePlan(
        environment=environment,
        task=task,
        task_digest=task_digest(task),
        agents=agent if isinstance(agent, Mapping) else dict.fromkeys(environment.seats, agent),
        trained=frozenset(environment.seats) if trained is None else trained,
        seed=0,
        group=group,
        member=member,
        deadline=deadline,
        clock=clock,
        past=past,
    )


async def conduct(plan: EpisodePlan) -> Played:
    """Play it; every event goes through its bytes, as in a journal."""
    events: list[Acted | Affected] = []

    async def emit(event: Acted | Affected) -> None:
        (decoded,) = decode_segment(segment([encode(event)]))
        assert isinstance(decoded, Acted | Affected)
        events.append(decoded)

    ended, seats = await run_episode(Episode(plan, emit), plan)
    assert decode_segment(segment([encode(ended)])) == [ended]
    return Played(ended, events, seats)
