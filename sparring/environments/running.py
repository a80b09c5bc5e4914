"""How `gather`, `effect` and `reveal` find the episode that is running, and what an episode offers to its seats.

`play` waits in three places only: for a reply, for an effect, and for the branches of a `gather`. The first two have deadlines,
kept by the running episode; the third ends when its branches do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

import anyio
import msgspec

from sparring.environments.conversation import Conversation
from sparring.environments.reply import Reply
from sparring.errors import EffectError, SettingError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a seat asks its player for. None leaves the player's own limit; `timeout` is in seconds."""

    turn: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    attempt: int = 0


class Running(Protocol):
    """The episode, as its seats see it."""

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        """The player's reply and its record; raises `TimeoutError` after `request.timeout`, `ContextFull` where it cannot fit."""
        ...

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        """The result of something outside, from the journal where it is there."""
        ...

    def context_left(self, conversation: Conversation) -> int:
        """Tokens that still fit."""
        ...


RUNNING: ContextVar[Running | None] = ContextVar("sparring_running", default=None)
_branch: ContextVar[bool] = ContextVar("sparring_branch", default=False)


class EpisodeRandom(Random):
    """Chance for `play`: equal for all episodes of a group, refused inside `gather`, where the order of draws is not fixed."""

    def random(self) -> float:
        self._check()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._check()
        return super().getrandbits(k)

    @staticmethod
    def _check() -> None:
        if _branch.get():
            raise SettingError("rng was used inside gather(): the order of draws would be chance; draw before gather()")


async def gather(*aws: Awaitable[Any]) -> tuple[Any, ...]:
    """Run parts of `play` at once and return their results in the order given: the only way to do so.

    The first failure cancels the other branches and is raised as it is.
    """
    results: list[Any] = [None] * len(aws)

    async def branch(index: int, aw: Awaitable[Any]) -> None:
        _branch.set(True)
        results[index] = await aw

    try:
        async with anyio.create_task_group() as group:
            for index, aw in enumerate(aws):
                group.start_soon(branch, index, aw)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        for aw in aws:  # a branch that was cancelled before its first step never touched its coroutine
            if isinstance(aw, Coroutine):
                aw.close()
    return tuple(results)


async def effect(fn: Callable[..., Awaitable[T]], *args: Any, timeout: float = 60.0) -> T:
    """Call something outside the episode (a tool, a clock, a service): at least once, then its journaled result for ever.

    `fn` is an async function, `args` and its result are JSON data; `play` gets the result as decoded from the journal, also the
    first time (a tuple comes back as a list). A failure or `timeout` seconds without an answer is `EffectError`, also when
    replayed. Outside an episode `fn` is simply called.
    """
    name = f"{fn.__module__}:{fn.__qualname__}"
    running = RUNNING.get()
    if running is None:
        return await fn(*args)
    result: T = await running.effect(name, lambda: fn(*args), encoded(args, f"the arguments of {name}"), timeout)
    return result


def encoded(value: Any, what: str) -> bytes:
    """JSON with sorted keys; raises `EffectError` naming `what` where the value is not JSON data."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, msgspec.MsgspecError) as error:
        raise EffectError(f"{what} are not JSON data ({error}): pass numbers, text, lists and dictionaries") from error


def reveal(value: T) -> T:
    """Mark a flow from hidden fields into a conversation as intended (a verified quote)."""
    return value

