"""One running episode: it connects seats to players, journals what they do, and replays what the journal already holds.

It waits for a player's reply and for effects, each with a deadline; while it replays, for its branches to ask in the journaled
order. Keys are (seat, fork, context, turn, attempt) and (function, arguments, occurrence), each with a digest of its request.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import anyio
import msgspec

from sparring.agents import Agent, Sample
from sparring.environments import Conversation, Environment, EpisodeRandom, Reply, Request, Rewards, Seat, settle
from sparring.environments.running import RUNNING, encoded
from sparring.errors import ContextFull, EffectError, ReplayDiverged, SparringError, Unjudged
from sparring.rollout.events import Acted, Affected, Ended, Sampled, SeatResult
from sparring.rollout.signal import Signal

REPLAY_DEADLINE = 60.0
"""Seconds for an episode's branches to ask again for what is journaled; nothing outside is waited for meanwhile."""

Emit = Callable[[Acted | Affected], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """What an episode is: `agents` by seat, the seats that are `trained`, its numbers, and what the journal holds of it."""

    environment: Environment[Any]
    task: Any
    task_digest: str
    agents: Mapping[str, Agent]
    trained: frozenset[str]
    seed: int
    group: int
    member: int
    deadline: float | None
    past: Sequence[Acted | Affected] = field(default=())


def seeded(*parts: object) -> int:
    """A 63-bit seed that is a function of its parts alone."""
    return int.from_bytes(sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Episode:
    """The `Running` of one episode. `emit` puts an event into the journal's queue before what depends on it goes on."""

    def __init__(self, plan: EpisodePlan, emit: Emit) -> None:
        self._plan = plan
        self._emit = emit
        self._past = plan.past
        self._positions = {event.key: position for position, event in enumerate(plan.past)}
        self._replayed = 0
        self._moved = Signal()
        self._occurrences: dict[tuple[str, bytes], int] = {}
        self.waits_for = "to start"

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
        known = await self._journaled(event)
        if known is None:
            self.waits_for = f"a reply of seat {place.seat!r}"
            known = await self._ask(event, conversation, request)
            await self._emit(known)
        assert isinstance(known, Acted)
        if known.error == "timeout":
            raise TimeoutError(known.message)
        if known.error:
            raise ContextFull(known.message)
        assert known.reply is not None
        sample: Sample | None = known.sample.unpacked() if known.sample is not None else None
        return known.reply, sample

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        occurrence = self._occurrences.get((name, arguments), 0)
        self._occurrences[name, arguments] = occurrence + 1
        digest = sha256(arguments).digest()[:16]
        event = Affected(
            group=self._plan.group, member=self._plan.member, name=name, arguments=digest, occurrence=occurrence
        )
        known = await self._journaled(event)
        if known is None:
            self.waits_for = f"effect {name}"
            known = await _affect(event, call, timeout)
            await self._emit(known)
        assert isinstance(known, Affected)
        if known.error:
            raise EffectError(known.error)
        return msgspec.json.decode(known.result)

    def context_left(self, conversation: Conversation) -> int:
        return self._plan.agents[conversation.place.seat].context_left(conversation)

    async def _ask(self, event: Acted, conversation: Conversation, request: Request) -> Acted:
        place, plan = conversation.place, self._plan
        seed = seeded(
            plan.seed, plan.group, plan.member, place.seat, place.fork, place.context, request.turn, request.attempt
        )
        try:
            with anyio.fail_after(request.timeout):
                action = await plan.agents[place.seat].act(conversation, request, seed)
        except TimeoutError:
            message = f"seat {place.seat!r} gave no reply within {request.timeout} s"
            return msgspec.structs.replace(event, error="timeout", message=message)
        except ContextFull as error:
            return msgspec.structs.replace(event, error="context_full", message=str(error))
        sample = Sampled.packed(action.sample) if action.sample is not None else None
        return msgspec.structs.replace(event, reply=action.reply, sample=sample)

    async def _journaled(self, wanted: Acted | Affected) -> Acted | Affected | None:
        """The journaled event of this key, when its turn in the journaled order has come; None for what is new.

        Something new waits until all that is journaled has been asked for again: it came later then too.
        """
        if self._replayed == len(self._past):
            return None
        position = self._positions.get(wanted.key, len(self._past))
        with anyio.move_on_after(REPLAY_DEADLINE):
            while self._replayed < position:
                await self._moved.wait()
        if self._replayed < position:
            missing = self._past[self._replayed]
            raise ReplayDiverged(f"{self._named()} did not ask again for {missing.key!r}, which the journal holds")
        if position == len(self._past):
            return None
        known = self._past[position]
        if isinstance(known, Acted) and isinstance(wanted, Acted) and known.request != wanted.request:
            raise ReplayDiverged(f"{self._named()}: {wanted.key!r} was asked something else than in the journal")
        self._replayed += 1
        self._moved.notify()
        return known

    def all_replayed(self) -> None:
        """Raises `ReplayDiverged` where the episode ended without asking for all that the journal holds."""
        if self._replayed < len(self._past):
            raise ReplayDiverged(f"{self._named()} ended without asking for {self._past[self._replayed].key!r} again")

    def _named(self) -> str:
        plan = self._plan
        return f"{plan.environment.name}, group {plan.group}, episode {plan.member}"


def open_seats(episode: Episode, plan: EpisodePlan) -> list[Seat]:
    """A fresh seat for every player, in the environment's order."""
    return [Seat(name, episode) for name in plan.environment.seats]


async def played(episode: Episode, plan: EpisodePlan, seats: Sequence[Seat]) -> Rewards:
    """What `play` returns; raises whatever it raises."""
    token = RUNNING.set(episode)
    try:
        rng = EpisodeRandom(f"{plan.seed}/{plan.task_digest}/{plan.group}")
        return await plan.environment.play(plan.task, *seats, rng=rng)
    finally:
        RUNNING.reset(token)


async def run_episode(episode: Episode, plan: EpisodePlan) -> tuple[Ended, list[Seat]]:
    """Play one episode to its end. Waits for `play`, at most `plan.deadline` seconds.

    What the environment raises is a fault of the episode, as is the deadline; what sparring raises (a wrong reward, a broken
    backend, a diverged replay) is raised, but for what an episode may run into: `Unjudged`, `EffectError`, `ContextFull`.
    """
    seats = open_seats(episode, plan)
    returned: Rewards = None
    fault = detail = ""
    try:
        with anyio.move_on_after(plan.deadline) as scope:
            returned = await played(episode, plan, seats)
        if scope.cancelled_caught:
            fault = "deadline"
            detail = f"play did not end within {plan.deadline} s; it waited for {episode.waits_for}"
        else:
            episode.all_replayed()
            return _settled(plan, returned, seats), seats
    except (Unjudged, EffectError, ContextFull) as error:
        fault, detail = type(error).__name__, str(error)
    except SparringError:
        raise
    except (
        Exception
    ) as error:  # the one place where the user's code may raise anything: it is counted, with its traceback
        fault, detail = type(error).__name__, "".join(traceback.format_exception(error))
    return Ended(group=plan.group, member=plan.member, fault=fault, detail=detail), seats


def _settled(plan: EpisodePlan, returned: Rewards, seats: Sequence[Seat]) -> Ended:
    settled = settle(returned, seats, trained=plan.trained, zero_sum=plan.environment.zero_sum)
    results = [
        SeatResult(
            seat=seat.name,
            fork=seat.conversation.place.fork,
            label=seat.label,
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
        metrics=dict(settled.metrics),
        notes=dict(settled.notes),
    )


async def _affect(event: Affected, call: Callable[[], Awaitable[Any]], timeout: float) -> Affected:
    try:
        with anyio.fail_after(timeout):
            result = encoded(await call(), f"the result of {event.name}")
    except TimeoutError:
        return msgspec.structs.replace(event, error=f"{event.name} did not answer within {timeout} s")
    except EffectError as error:
        return msgspec.structs.replace(event, error=str(error))
    except SparringError:
        raise
    except Exception as error:  # noqa: BLE001 - an effect is the user's code too: its failure is an answer
        return msgspec.structs.replace(event, error=f"{event.name} raised {type(error).__name__}: {error}")
    return msgspec.structs.replace(event, result=result)
