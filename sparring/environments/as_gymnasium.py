"""An environment of ours with one seat as one of Gymnasium's: what the seat is told is observed, an action is its reply.

Needs the extra `games`; `from sparring.environments.as_gymnasium import as_gymnasium`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from random import Random
from sys import maxsize
from typing import Any, ClassVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from sparring.environments.conversation import Conversation, Message
from sparring.environments.environment import Environment
from sparring.environments.gymnasium_extra import gymnasium
from sparring.environments.outcome import Settled, settle
from sparring.environments.reply import Reply
from sparring.environments.running import RUNNING, Request
from sparring.environments.seat import Seat
from sparring.environments.tasks import Tasks, size
from sparring.errors import SettingError, UnsupportedError


class AnyText(gymnasium.Space[str]):
    """All texts. Samples are short and printable."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__((), None, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """It has no numbers."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        letters = self.np_random.integers(32, 127, size=int(self.np_random.integers(1, 20)))
        return "".join(map(chr, letters))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __repr__(self) -> str:
        return "AnyText()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    __hash__ = None  # type: ignore[assignment]  # like other spaces


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A seat waits for a reply, which goes into `answer`."""

    told: str
    answer: Callable[[str], None]


class _Hand:
    """The `Running` of an episode that is played by whoever steps."""

    def __init__(self, questions: SimpleQueue[_Asked | None]) -> None:
        self._questions = questions

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        said: list[str] = []
        event = anyio.Event()

        def answer(text: str) -> None:
            said.append(text)
            event.set()

        self._questions.put(_Asked(told=_since_its_turn(conversation), answer=answer))
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


class SeatEnv(gymnasium.Env[str, str]):
    """What `as_gymnasium` makes. `play` runs on an event loop in a thread of its own; `close` ends both."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]  # as Gymnasium's own ought to be

    def __init__(self, environment: Environment[Any], tasks: Tasks[Any]) -> None:
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._environment, self._tasks = environment, tasks
        self._loop: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._questions: SimpleQueue[_Asked | None] = SimpleQueue()
        self._asked: _Asked | None = None
        self._episode: Future[Settled] | None = None
        self._seats: list[Seat] = []
        self._given = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode of a task drawn with the generator that `seed` sets, or of `options["task"]`, a number."""
        super().reset(seed=seed)
        self._cancel()
        count = size(self._tasks)
        index = int((options or {}).get("task", self.np_random.integers(maxsize if count is None else count)))
        chance = int(self.np_random.integers(2**31))
        self._given = 0.0
        self._questions = SimpleQueue()
        hand = _Hand(self._questions)
        self._seats = [Seat(name, hand) for name in self._environment.seats]
        self._episode = self._running().start_task_soon(self._play, hand, self._tasks[index], Random(chance))
        self._episode.add_done_callback(lambda _, asked=self._questions: asked.put(None))  # type: ignore[misc]
        observation, _, _, info = self._next()
        return observation, {"task": index, **info}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Reply, and go on to the next question or the end. Raises what `play` raises."""
        if self._asked is None:
            raise SettingError("step() after the end of an episode: call reset() first")
        if not isinstance(action, str):
            raise SettingError(f"step({action!r}): must be text, the reply of the seat")
        self._running().call(self._asked.answer, action)
        observation, reward, over, info = self._next()
        return observation, reward, over, False, info

    def close(self) -> None:
        """End what runs."""
        self._cancel()
        if self._loop is not None:
            self._loop.__exit__(None, None, None)
            self._loop = self._portal = None

    def _next(self) -> tuple[str, float, bool, dict[str, Any]]:
        """What is asked now, the reward since the last question, whether the episode is over, and what is known of its end."""
        self._asked = self._questions.get()
        if self._asked is not None:
            total = sum(sum(seat.turn_rewards.values()) for root in self._seats for seat in root.family)
            reward, self._given = total - self._given, total
            return self._asked.told, reward, False, {}
        assert self._episode is not None
        settled = self._episode.result()
        reward = sum(settled.returns.values()) - self._given
        unjudged = {seat.key: why for seat, why in settled.unjudged.items()}
        return "", reward, True, {"metrics": dict(settled.metrics), "unjudged": unjudged}

    async def _play(self, hand: _Hand, task: Any, rng: Random) -> Settled:
        RUNNING.set(hand)
        returned = await self._environment.begin(task, self._seats, rng)
        trained = frozenset(self._environment.seats)
        return settle(returned, self._seats, trained=trained, zero_sum=self._environment.zero_sum)

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            self._loop = start_blocking_portal()
            self._portal = self._loop.__enter__()
        return self._portal

    def _cancel(self) -> None:
        if self._episode is not None:
            self._episode.cancel()
        self._episode = self._asked = None


def as_gymnasium(environment: Environment[Any], tasks: Tasks[Any]) -> SeatEnv:
    """A `gymnasium.Env` of texts over these tasks, of an environment with one seat: `reset(seed=...)` draws the task and all
    chance of the episode, the return of the seat (of its forks too) is spread over the steps, `info` at the end has the metrics
    and, of what could not be judged, why. Raises `SettingError` for an environment of several seats, or no tasks."""
    if len(environment.seats) != 1:
        raise SettingError(
            f"{environment.name} has the seats {', '.join(environment.seats)}: Gymnasium knows one player"
        )
    if size(tasks) == 0:
        raise SettingError(f"as_gymnasium({environment.name}, tasks=[]): give at least one task")
    return SeatEnv(environment, tasks)
