"""An episode that is over, told again: its environment with the journaled replies, so that what its seats were told is known.

No player is asked and nothing outside is called. Each request is held against the digest that the journal has of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio

from sparring.agents import Action
from sparring.environments import Conversation, Reply, Request, Seat
from sparring.errors import ReplayDiverged, SettingError, UnsupportedError
from sparring.rollout.episode import Episode, EpisodePlan, open_seats, played
from sparring.rollout.events import DEADLINE, SET_ASIDE, Acted, Affected, Ended


class _NothingMore(UnsupportedError):
    """The environment asks for what the journal does not hold, in an episode that was cut off there."""


async def retold(plan: EpisodePlan, ended: Ended) -> list[Seat]:
    """The seats as they were when the episode ended (or, if it was cut off for its time, when it had its last answer). Waits
    for `play`, which has all its answers.

    `plan.past` must hold all that the journal does; its agents and deadlines are not used. Raises `ReplayDiverged` where the
    environment says or asks something else than it did, `UnsupportedError` where it asks for `context_left`.
    """
    plan = replace(plan, agents=dict.fromkeys(plan.environment.seats, _Silent()), deadline=None, clock=False)
    episode = Episode(plan, _refuse)
    cut_off = ended.fault in {DEADLINE, *SET_ASIDE}
    running = _Retold(episode, len(plan.past))
    seats = open_seats(running, plan)
    failed: Exception | None = None
    async with anyio.create_task_group() as group:
        running.scope = group.cancel_scope
        if cut_off:
            group.start_soon(running.stop)
        try:
            await played(episode, plan, seats, running)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything, as it did when it was played
            failed = error
        group.cancel_scope.cancel()
    episode.end()
    if not cut_off:
        _check(episode, failed, plan, ended)
    elif isinstance(episode.failure, ReplayDiverged):
        raise episode.failure
    return seats


def _check(episode: Episode, failed: Exception | None, plan: EpisodePlan, ended: Ended) -> None:
    """Raises where the episode did not go as it went."""
    where = f"{plan.environment.name}, group {plan.group}, episode {plan.member}"
    if isinstance(episode.failure, _NothingMore):
        raise ReplayDiverged(f"{where}: {episode.failure}") from None
    for error in (episode.failure, failed):
        if isinstance(error, SettingError | ReplayDiverged | UnsupportedError):
            raise error
    episode.check_over(failed)
    if failed is not None and not ended.fault:
        raise ReplayDiverged(f"{where} ended well and now raises {failed!r}") from failed


class _Retold:
    """The `Running` that answers from the journal."""

    def __init__(self, episode: Episode, left: int) -> None:
        self._episode = episode
        self._left = left
        self.scope = anyio.CancelScope()
        self._done = anyio.Event()

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        try:
            return await self._episode.act(conversation, request)
        finally:
            self._count()

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        try:
            return await self._episode.choose(conversation, options, asked)
        finally:
            self._count()

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        try:
            return await self._episode.effect(name, _nothing_more, arguments, timeout)
        finally:
            self._count()

    def context_left(self, conversation: Conversation) -> int:
        raise UnsupportedError(
            f"seat {conversation.place.seat!r}: the environment asks for context_left, which only a model can tell: "
            f"leave the run's file out, and the replies alone are told"
        )

    def temperature(self, seat: str) -> float | None:
        return None  # what was refused then has no reply in the journal, and its program asks for one now: it diverges

    def split(self, more: int) -> None:
        self._episode.split(more)

    async def stop(self) -> None:
        """End an episode that was cut off: once it had its last answer and waits for something else."""
        if self._left:
            await self._done.wait()
        await anyio.wait_all_tasks_blocked()
        self.scope.cancel()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()
        elif self._left < 0:  # an environment that goes on whatever is raised would ask for ever
            self.scope.cancel()


class _Silent:
    """A player that is never asked."""

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        raise _NothingMore(f"seat {conversation.place.seat!r} was asked for more than the journal holds")

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        raise _NothingMore(f"seat {conversation.place.seat!r} was asked to choose more often than the journal holds")

    def context_left(self, conversation: Conversation) -> int:
        raise AssertionError("the running episode answers")


async def _nothing_more() -> Any:
    raise _NothingMore("the environment called for more than the journal holds")


async def _refuse(event: Acted | Affected) -> None:
    raise AssertionError(f"an episode that is told again made {event!r}")


def replies(past: Sequence[Acted | Affected]) -> list[Acted]:
    """What the players said, by seat, fork and turn."""
    said = [event for event in past if isinstance(event, Acted) and event.reply is not None]
    return sorted(said, key=lambda event: (event.seat, event.fork, event.turn))
