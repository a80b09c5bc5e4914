"""An episode that is played by whoever steps it, from outside of its event loop: a question, an answer, the next question."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from random import Random
from sys import maxsize
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from sparring.environments.conversation import Conversation, Message
from sparring.environments.environment import Environment
from sparring.environments.outcome import Settled, settle
from sparring.environments.reply import Reply
from sparring.environments.running import RUNNING, Request
from sparring.environments.seat import Seat
from sparring.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A `seat` waits for a reply, which goes into `answer`, to what it was `told` since its last. `given` are the rewards that
    the turns of each seat, forks included, had when it was asked."""

    seat: str
    told: str
    given: Mapping[str, float]
    answer: Callable[[str], None]


class _Hand:
    """The `Running` of an episode that is played by whoever steps."""

    def __init__(self, names: Sequence[str]) -> None:
        self.questions: SimpleQueue[Asked | None] = SimpleQueue()
        self.seats = [Seat(name, self) for name in names]

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        said: list[str] = []
        event = anyio.Event()

        def answer(text: str) -> None:
            said.append(text)
            event.set()

        told, given = _since_its_turn(conversation), _given(self.seats)
        self.questions.put(Asked(seat=conversation.place.seat, told=told, given=given, answer=answer))
        with anyio.fail_after(request.timeout):
            await event.wait()
        return Reply(text=said[0]), None

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        raise UnsupportedError(f"{asked}: whoever steps an environment has no probabilities; use pick()")

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        with anyio.fail_after(timeout):
            return json.loads(json.dumps(await call()))

    def context_left(self, conversation: Conversation) -> int:
        return maxsize

    def temperature(self, seat: str) -> float | None:
        return None

    def split(self, more: int) -> None:
        """Who is asked first is answered first, however many parts of `play` there are."""


def _since_its_turn(conversation: Conversation) -> str:
    told: list[str] = []
    for entry in conversation.entries:
        told = [*told, entry.text] if isinstance(entry, Message) else []
    return "\n".join(told)


def _given(seats: Sequence[Seat]) -> dict[str, float]:
    return {root.name: float(sum(sum(seat.turn_rewards.values()) for seat in root.family)) for root in seats}


class Stepped:
    """Episodes of an environment, one at a time, on an event loop in a thread of its own; `close` ends both."""

    def __init__(self, environment: Environment[Any]) -> None:
        self._environment = environment
        self._loop: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._hand = _Hand(environment.seats)
        self._episode: Future[Settled] | None = None
        self.asked: Asked | None = None

    def begin(self, task: Any, rng: Random) -> None:
        """End what is played, play this task, and wait until somebody is `asked`, or nobody any more."""
        self._cancel()
        hand = self._hand = _Hand(self._environment.seats)
        self._episode = self._running().start_task_soon(self._play, hand, task, rng)
        self._episode.add_done_callback(lambda _: hand.questions.put(None))
        self.asked = hand.questions.get()

    def answer(self, text: str) -> None:
        """Reply for who is `asked`, and wait likewise."""
        assert self.asked is not None, "nobody is asked"
        self._running().call(self.asked.answer, text)
        self.asked = self._hand.questions.get()

    @property
    def given(self) -> Mapping[str, float]:
        """The rewards of each seat so far, forks included: those of its turns, and all once nobody is `asked` any more. Raises
        what `play` raised."""
        if self.asked is not None:
            return self.asked.given
        returns = self.settled.returns
        return {root.name: float(sum(returns.get(seat, 0.0) for seat in root.family)) for root in self._hand.seats}

    @property
    def settled(self) -> Settled:
        """The end of an episode in which nobody is `asked` any more. Raises what `play` raised."""
        assert self._episode is not None and self.asked is None
        return self._episode.result()

    @property
    def end(self) -> dict[str, Any]:
        """Its metrics and, of what could not be judged, why."""
        unjudged = {seat.key: why for seat, why in self.settled.unjudged.items()}
        return {"metrics": dict(self.settled.metrics), "unjudged": unjudged}

    def close(self) -> None:
        """End what runs."""
        self._cancel()
        if self._loop is not None:
            self._loop.__exit__(None, None, None)
            self._loop = self._portal = None

    async def _play(self, hand: _Hand, task: Any, rng: Random) -> Settled:
        RUNNING.set(hand)
        returned = await self._environment.begin(task, hand.seats, rng)
        trained = frozenset(self._environment.seats)
        return settle(returned, hand.seats, trained=trained, zero_sum=self._environment.zero_sum)

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            self._loop = start_blocking_portal()
            self._portal = self._loop.__enter__()
        return self._portal

    def _cancel(self) -> None:
        if self._episode is not None:
            self._episode.cancel()
        self._episode = self.asked = None
