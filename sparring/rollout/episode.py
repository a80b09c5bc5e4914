"""One running episode: it connects seats to players, journals what they do, and replays what the journal already holds.

It waits for a player's reply and for effects, each with a deadline; while it replays, for its branches to ask in the journaled
order. Keys are (seat, fork, context, turn, attempt) and (function, arguments, occurrence), each with a digest of its request.
What `play` learns from outside is in the journal, or ends the episode: nothing else may decide how it goes on.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from sparring.agents import Agent, Chooser, Drawing, Sample
from sparring.environments import Conversation, Environment, EpisodeRandom, Reply, Request, Rewards, Seat, settle
from sparring.environments.running import OWN_CODE, RUNNING, Running, encoded
from sparring.errors import (
    ContextFull,
    EffectError,
    SettingError,
    SparringError,
    Unjudged,
    UnsupportedError,
)
from sparring.rollout.culprit import Own, Page, asking
from sparring.rollout.events import DEADLINE, Acted, Affected, Ended, Sampled, SeatResult
from sparring.rollout.past import Answers, Past

Emit = Callable[[Acted | Affected], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """What an episode is: `agents` by seat, the seats that are `trained`, its numbers, and what the journal holds of it.

    Without `clock` nothing in it ends for the time it takes (deterministic runs): neither asks nor effects nor `play`.
    `page` tells whose code runs; `held_out` is the name and version of the evaluation that it belongs to, if to one.
    """

    environment: Environment[Any]
    task: Any
    task_digest: str
    agents: Mapping[str, Agent]
    trained: frozenset[str]
    seed: int
    group: int
    member: int
    deadline: float | None
    clock: bool = True
    past: Sequence[Acted | Affected] = field(default=())
    page: Page = field(default_factory=Page)
    held_out: tuple[str, int] = ("", 0)


def seeded(*parts: object) -> int:
    """A 63-bit seed that is a function of its parts alone."""
    return int.from_bytes(sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Episode:
    """The `Running` of one episode. `emit` puts an event into the journal's queue before what depends on it goes on; `answers`
    are where it looks before it asks anybody: the plan's past, if nothing else is given."""

    def __init__(self, plan: EpisodePlan, emit: Emit, answers: Answers | None = None) -> None:
        self._plan = plan
        self._emit = emit
        self._answers = answers or Past(plan.past, self._named())
        self._occurrences: dict[tuple[str, bytes], int] = {}
        self._over = False
        self.failure: Exception | None = None
        """What broke it: a player, the journal, its replay. No answer for `play` to go on from, even if `play` caught it. Once
        it has ended, what `play` raised too."""
        self.waits_for = "to start"
        self._named_on_page = plan.page.named(plan.group, plan.member, *plan.held_out)

    def own(self, code: Awaitable[Any]) -> Awaitable[Any]:
        """What the environment wrote, told to the page while it runs."""
        return Own(code, self._plan.page, self._named_on_page)

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        place = conversation.place
        asked = msgspec.json.encode((request.max_tokens, request.stop, request.timeout))
        event = Acted(
            group=self._plan.group,
            member=self._plan.member,
            seat=place.seat,
            fork=place.fork,
            context=place.context,
            turn=request.turn,
            attempt=request.attempt,
            request=sha256(conversation.digest + asked).digest()[:16],
        )
        known = await self._answered(
            event, f"a reply of seat {place.seat!r}", lambda: self._ask(event, conversation, request)
        )
        assert isinstance(known, Acted)
        if known.error == "timeout":
            raise TimeoutError(known.message)
        if known.error:
            raise ContextFull(known.message)
        assert known.reply is not None
        sample: Sample | None = known.sample.unpacked() if known.sample is not None else None
        return known.reply, sample

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        arguments = conversation.digest + msgspec.json.encode(options)
        event = msgspec.structs.replace(self._affected(asked, arguments), player=True)
        known = await self._answered(event, asked, lambda: self._choose(event, conversation, options))
        assert isinstance(known, Affected)
        if known.error:
            raise ContextFull(known.error)
        return [
            -inf if value is None else value for value in msgspec.json.decode(known.result, type=list[float | None])
        ]

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        event = self._affected(name, arguments)
        limit = timeout if self._plan.clock else None
        known = await self._answered(event, f"effect {name}", lambda: _affect(event, lambda: self.own(call()), limit))
        assert isinstance(known, Affected)
        if known.error:
            raise EffectError(known.error)
        return msgspec.json.decode(known.result)

    def _affected(self, name: str, arguments: bytes) -> Affected:
        """The event of a call, before it has its answer."""
        occurrence = self._occurrences.get((name, arguments), 0)
        self._occurrences[name, arguments] = occurrence + 1
        digest = sha256(arguments).digest()[:16]
        return Affected(
            group=self._plan.group, member=self._plan.member, name=name, arguments=digest, occurrence=occurrence
        )

    async def _choose(self, event: Affected, conversation: Conversation, options: Sequence[str]) -> Affected:
        seat = conversation.place.seat
        agent = self._plan.agents[seat]
        if not isinstance(agent, Chooser):
            raise UnsupportedError(
                f"seat {seat!r} is played by {type(agent).__name__}, which has no probabilities: use pick(), or seat a policy"
            )
        await anyio.lowlevel.checkpoint()
        try:
            found = await agent.choose(conversation, options)
        except ContextFull as error:
            return msgspec.structs.replace(event, error=str(error))
        plain = [float(value) if value > -inf else None for value in found]  # JSON has no infinity
        return msgspec.structs.replace(event, result=msgspec.json.encode(plain))

    def context_left(self, conversation: Conversation) -> int:
        return self._plan.agents[conversation.place.seat].context_left(conversation)

    def temperature(self, seat: str) -> float | None:
        agent = self._plan.agents[seat]
        return agent.temperature if isinstance(agent, Drawing) else None

    def split(self, more: int) -> None:
        self._answers.split(more)

    def end(self) -> None:
        """`play` has returned: nothing of it may go on."""
        self._over = True

    async def _answered(
        self, wanted: Acted | Affected, what: str, live: Callable[[], Awaitable[Acted | Affected]]
    ) -> Acted | Affected:
        """The journaled answer, or a new one, journaled before anything depends on it."""
        self._refuse_if_over(what)
        with asking():
            try:
                known = await self._answers.known(wanted)
                if known is None:
                    self.waits_for = what
                    known = await live()
                    self._refuse_if_over(what)
                    await self._emit(known)
            except Exception as error:
                self.failure = self.failure or error
                raise
            self.waits_for = "the environment itself"
            return known

    def _refuse_if_over(self, what: str) -> None:
        if self._over:
            raise SettingError(
                f"{self._named()} asked for {what} after play had returned: run parts of play with gather(), which waits"
            )

    async def _ask(self, event: Acted, conversation: Conversation, request: Request) -> Acted:
        place, plan = conversation.place, self._plan
        seed = seeded(
            plan.seed, plan.group, plan.member, place.seat, place.fork, place.context, request.turn, request.attempt
        )
        limited = request.timeout is not None and plan.clock
        try:
            with anyio.fail_after(request.timeout) if limited else nullcontext():
                await anyio.lowlevel.checkpoint()  # a player that never waits must not keep `play` from its deadline
                action = await plan.agents[place.seat].act(conversation, request, seed)
        except TimeoutError as error:  # ours, or the player's own
            message = str(error) or f"seat {place.seat!r} gave no reply within {request.timeout} s"
            return msgspec.structs.replace(event, error="timeout", message=message)
        except ContextFull as error:
            return msgspec.structs.replace(event, error="context_full", message=str(error))
        sample = Sampled.packed(action.sample) if action.sample is not None else None
        return msgspec.structs.replace(event, reply=action.reply, sample=sample)

    def check_over(self, failed: Exception | None) -> None:
        """Raises `ReplayDiverged` where the episode ended, or `failed`, without asking for all that the journal holds."""
        self._answers.check_over(failed)

    def _named(self) -> str:
        plan = self._plan
        return f"{plan.environment.name}, group {plan.group}, episode {plan.member}"


def open_seats(running: Running, plan: EpisodePlan) -> list[Seat]:
    """A fresh seat for every player, in the environment's order."""
    return [Seat(name, running) for name in plan.environment.seats]


async def played(episode: Episode, plan: EpisodePlan, seats: Sequence[Seat], running: Running | None = None) -> Rewards:
    """What `play` returns; raises whatever it raises. `running` answers the seats, where that is not `episode` itself."""
    token, own = RUNNING.set(running or episode), OWN_CODE.set(episode.own)
    try:
        chance = f"{plan.seed}/{plan.task_digest}/{plan.group}"
        rng = EpisodeRandom(chance) if plan.environment.takes_rng else None
        returned: Rewards = await episode.own(plan.environment.begin(plan.task, seats, rng))
        return returned
    finally:
        RUNNING.reset(token)
        OWN_CODE.reset(own)


async def run_episode(episode: Episode, plan: EpisodePlan, running: Running | None = None) -> tuple[Ended, list[Seat]]:
    """Play one episode to its end. Waits for `play`, at most `plan.deadline` seconds. `running` as in `played`.

    What the environment raises is a fault of the episode, as is what a player raises, and the deadline; what sparring raises
    (a wrong reward, a broken backend, a diverged replay) is raised, but for what an episode may run into: `Unjudged`,
    `EffectError`, `ContextFull`.
    """
    seats = open_seats(running or episode, plan)
    returned: Rewards = None
    failed: Exception | None = None
    scope = anyio.move_on_after(plan.deadline if plan.clock else None)
    try:
        with scope:
            returned = await played(episode, plan, seats, running)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything: it is counted, with its traceback
        failed = error
    episode.end()
    await anyio.lowlevel.checkpoint_if_cancelled()  # a play that swallowed the end of the run has no outcome
    failed = episode.failure = episode.failure or failed
    if isinstance(failed, SparringError) and not isinstance(failed, Unjudged | EffectError | ContextFull):
        raise failed
    if scope.cancel_called:
        detail = f"play did not end within {plan.deadline} s; it waited for {episode.waits_for}"
        return Ended(group=plan.group, member=plan.member, fault=DEADLINE, detail=detail), seats
    episode.check_over(failed)
    if failed is not None:
        fault, detail = type(failed).__name__, _told(failed)
        return Ended(group=plan.group, member=plan.member, fault=fault, detail=detail), seats
    return _settled(plan, returned, seats), seats


def _told(failed: Exception) -> str:
    """What a fault says of itself: sparring's own its message, any other its traceback too."""
    if isinstance(failed, SparringError):
        return clean(str(failed))
    return clean("".join(traceback.format_exception(failed)))


def clean(text: str) -> str:
    """Text that can be written: what is no Unicode (a lone surrogate) becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _settled(plan: EpisodePlan, returned: Rewards, seats: Sequence[Seat]) -> Ended:
    settled = settle(returned, seats, trained=plan.trained, zero_sum=plan.environment.zero_sum)
    results = [
        SeatResult(
            seat=seat.name,
            fork=seat.conversation.place.fork,
            label=clean(seat.label),
            value=settled.returns.get(seat),
            unjudged=settled.unjudged.get(seat, ""),
            turn_rewards=dict(seat.turn_rewards),
        )
        for root in seats
        for seat in root.family
        if seat in settled.returns or seat in settled.unjudged
    ]
    return Ended(
        group=plan.group,
        member=plan.member,
        results=results,
        metrics={clean(name): value for name, value in settled.metrics.items()},
        notes={clean(name): clean(note) for name, note in settled.notes.items()},
    )


def scored(ended: Ended, seats: Sequence[Seat], trained: Collection[str], score: float) -> Ended:
    """The failed episode with that return for each of its trained seats and forks that spoke, in place of any other reward."""
    family = [seat for root in seats if root.name in trained for seat in root.family if seat.spoke]
    results = [
        SeatResult(seat=seat.name, fork=seat.conversation.place.fork, label=clean(seat.label), value=float(score))
        for seat in family
    ]
    return msgspec.structs.replace(ended, results=results)


async def _affect(event: Affected, call: Callable[[], Awaitable[Any]], timeout: float | None) -> Affected:
    try:
        with anyio.fail_after(timeout):
            await anyio.lowlevel.checkpoint()
            result = encoded(await call(), f"the result of {event.name}")
    except TimeoutError as error:  # ours, or its own
        return msgspec.structs.replace(event, error=str(error) or f"{event.name} did not answer within {timeout} s")
    except EffectError as error:
        return msgspec.structs.replace(event, error=clean(str(error)))
    except (SettingError, UnsupportedError):
        raise
    except Exception as error:  # noqa: BLE001 - an effect is the user's code too: its failure is a journaled answer
        return msgspec.structs.replace(event, error=clean(f"{event.name} raised {type(error).__name__}: {error}"))
    return msgspec.structs.replace(event, result=result)
