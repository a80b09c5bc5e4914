"""Episodes as the checks of an environment play them: with stand-ins, noting what every seat is asked; and played again.

An episode that is played again has its replies and effects from the first time, in the same order, as one that is resumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from sparring.agents import Agent
from sparring.agents.stand_in import StandIn
from sparring.environments import Conversation, Environment, Message, Reply, Request, gold_reply, task_digest
from sparring.environments.plain import canonical
from sparring.environments.running import REVEALED
from sparring.errors import SparringError, Unjudged
from sparring.rollout.episode import Episode, EpisodePlan, run_episode
from sparring.rollout.events import Acted, Affected, Ended
from sparring.rollout.past import Answers, Past

MEMBERS = 2
"""Episodes of each task, as of a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is checked. `tasks` are those of the source, of which the first `count` are played; `deadline` is in seconds."""

    environment: Environment[Any]
    tasks: Sequence[Any]
    count: int
    trained: frozenset[str]
    deadline: float
    seed: int

    def plan(self, index: int, member: int, agents: Mapping[str, Agent] | None = None) -> EpisodePlan:
        """One episode of a task, played by stand-ins where nobody else is given."""
        task = self.tasks[index]
        standing = StandIn(gold_reply(self.environment, task))
        return EpisodePlan(
            environment=self.environment,
            task=task,
            task_digest=task_digest(task),
            agents={**dict.fromkeys(self.environment.seats, standing), **(agents or {})},
            trained=self.trained,
            seed=self.seed,
            group=index,
            member=member,
            deadline=self.deadline,
        )


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request to a seat. `place` is unique within the episode; `digest` is of all that the seat saw and said before, and of
    the limits; `text` is what it was told since it last spoke."""

    seat: str
    place: str
    digest: bytes
    text: str


class Revealed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A value that was marked by `reveal`."""

    value: bytes


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An episode that ended: of which task, what was answered in it, what was asked."""

    index: int
    member: int
    events: list[Acted | Affected]
    asked: list[Asked]
    ended: Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An episode that was listened to. One of `ended` and `error` is there."""

    log: list[Asked | Revealed]
    events: list[Acted | Affected]
    ended: Ended | None = None
    error: SparringError | None = None

    @property
    def asked(self) -> list[Asked]:
        return [one for one in self.log if isinstance(one, Asked)]

    @property
    def failure(self) -> str:
        """Why it came to no verdict; "" where it did, or said itself that it cannot be judged."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        assert self.ended is not None
        if self.ended.fault in ("", Unjudged.__name__):
            return ""
        *_, last = self.ended.detail.strip().splitlines()
        return last if self.ended.fault in last else f"{self.ended.fault}: {last}"


@dataclass(slots=True)
class _Listening:
    """The `Running` that notes what is asked before anybody answers."""

    episode: Episode
    log: list[Asked | Revealed] = field(default_factory=list[Asked | Revealed])
    _choices: Counter[str] = field(default_factory=Counter[str])

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        limits = repr((request.max_tokens, request.stop, request.timeout))
        self._note(conversation, f"turn {request.turn}, attempt {request.attempt}", limits)
        return await self.episode.act(conversation, request)

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        self._choices[asked] += 1
        self._note(conversation, f"{asked} {self._choices[asked]}", repr(tuple(options)))
        return await self.episode.choose(conversation, options, asked)

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        return await self.episode.effect(name, call, arguments, timeout)

    def context_left(self, conversation: Conversation) -> int:
        return self.episode.context_left(conversation)

    def split(self, more: int) -> None:
        self.episode.split(more)

    def reveal(self, value: object) -> None:
        try:
            self.log.append(Revealed(value=canonical(value)))
        except ValueError:  # no JSON data
            self.log.append(Revealed(value=repr(value).encode()))

    def _note(self, conversation: Conversation, which: str, limits: str) -> None:
        place = conversation.place
        name = f"{place.seat}/{place.fork}" if place.fork else place.seat
        told = takewhile(lambda entry: isinstance(entry, Message), reversed(conversation.entries))
        text = "\n".join([entry.text for entry in told if isinstance(entry, Message)][::-1])
        where = f"{name}, context {place.context}, {which}"
        digest = conversation.digest + limits.encode()
        self.log.append(Asked(seat=place.seat, place=where, digest=digest, text=text))


async def heard(plan: EpisodePlan, answers: Answers | None = None) -> Heard:
    """Play it. What sparring raises for it is its `error`. `answers` as in `Episode`."""
    events: list[Acted | Affected] = []

    async def keep(event: Acted | Affected) -> None:
        events.append(event)

    episode = Episode(plan, keep, answers)
    listening = _Listening(episode)
    token = REVEALED.set(listening.reveal)
    try:
        ended, _ = await run_episode(episode, plan, listening)
    except SparringError as error:
        return Heard(log=listening.log, events=events, error=error)
    finally:
        REVEALED.reset(token)
    return Heard(log=listening.log, events=events, ended=ended)


@dataclass(frozen=True, slots=True)
class _Uneven:
    """`Past`, after a moment in which others go on."""

    past: Past
    rng: Random

    async def known(self, wanted: Acted | Affected) -> Acted | Affected | None:
        for _ in range(self.rng.randrange(4)):
            await anyio.lowlevel.checkpoint()
        return await self.past.known(wanted)

    def split(self, more: int) -> None:
        self.past.split(more)

    def check_over(self, failed: Exception | None) -> None:
        self.past.check_over(failed)


async def played_again(job: Job, recorded: Recorded, *, uneven: Random | None = None) -> str:
    """Play it with the answers it had, which come late by chance with `uneven`.

    Returns in what it differs from then, "" where in nothing."""
    where = f"task {recorded.index}, episode {recorded.member}"
    past = Past(recorded.events, f"{job.environment.name}, {where}")
    now = await heard(job.plan(recorded.index, recorded.member), past if uneven is None else _Uneven(past, uneven))
    found = first_difference(recorded.asked, now.asked)
    if found:
        return f"{where}: {found}"
    if now.ended is None:
        return f"{where}: {now.failure}"
    for what in ("fault", "results", "metrics", "notes"):
        then, again = getattr(recorded.ended, what), getattr(now.ended, what)
        if then != again:
            return f"{where}: its {what} were {_plain(then)} and are {_plain(again)}"
    return ""


async def interleaved(job: Job, recorded: Sequence[Recorded]) -> list[str]:
    """Play all of them at once; returns in what they differ from when each was played alone."""
    found = [""] * len(recorded)

    async def one(number: int) -> None:
        found[number] = await played_again(job, recorded[number], uneven=Random(f"{job.seed}/{number}"))

    async with anyio.create_task_group() as group:
        for number in range(len(recorded)):
            group.start_soon(one, number)
    return [difference for difference in found if difference]


def first_difference(then: Sequence[Asked], now: Sequence[Asked], *, more: bool = False) -> str:
    """The first request of `now` that is another one than in `then`, with both; "" where there is none. With `more` it may ask
    what was not asked in `then` at all."""
    known = {one.place: one for one in then}
    for one in now:
        before = known.get(one.place)
        if before is None and not more:
            return f"{one.place} is asked {shown(one.text)}, and was not"
        if before is not None and before.digest != one.digest:
            return f"{one.place} was asked {_apart(before.text, one.text)}"
    return ""


def _apart(then: str, now: str) -> str:
    """Two texts, from shortly before they part."""
    if then == now:
        return f"{shown(now)} with other limits or after something else"
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(then, now, strict=False)))
    start = max(0, same - 30)
    return f"{shown(then[start:])} and is asked {shown(now[start:])}"


def shown(text: str, longest: int = 80) -> str:
    """A text in quotes, cut."""
    return repr(text if len(text) <= longest else f"{text[:longest]}...")


def _plain(value: Any) -> str:
    return shown(msgspec.json.encode(value).decode(), 200)
