"""How `gather`, `effect` and `reveal` find the episode that is running, and what an episode offers to its seats.

`play` waits in three places only: for a reply, for an effect, and for the branches of a `gather`. The first two have deadlines,
kept by the running episode; the third ends when its branches do. What happens in a branch is named by where the branch stands
in `play`, never by when it ran: event loops differ in the order in which they start tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import isawaitable, isroutine
from math import isfinite
from random import Random
from typing import Any, Protocol, TypeVar

import anyio

from sparring.environments.conversation import Conversation
from sparring.environments.plain import canonical
from sparring.environments.reply import Reply
from sparring.errors import EffectError, SettingError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a seat asks its player for. None leaves the player's own limit; `timeout` is in seconds.

    `attempt` counts the asks of this turn that brought no reply (they timed out, did not fit, or were cancelled).
    """

    turn: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    attempt: int = 0


class Running(Protocol):
    """The episode, as its seats see it."""

    async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
        """The player's reply and its record.

        Raises `TimeoutError` after `request.timeout` seconds, and `ContextFull` where the reply cannot fit.
        """
        ...

    async def choose(self, conversation: Conversation, options: Sequence[str], asked: str) -> Sequence[float]:
        """The log-prob of each option as the player's reply, f[n]; `asked` tells calls apart that ask the same in different
        branches. Raises `ContextFull` where one does not fit, `UnsupportedError` for a player that cannot say."""
        ...

    async def effect(self, name: str, call: Callable[[], Awaitable[Any]], arguments: bytes, timeout: float) -> Any:
        """The result of something outside, from the journal where it is there."""
        ...

    def context_left(self, conversation: Conversation) -> int:
        """Tokens that still fit."""
        ...

    def split(self, more: int) -> None:
        """So many more parts of `play` run at once from here on (fewer, where negative)."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """One argument of one `gather`: `siblings` is the same object for all arguments of that call."""

    siblings: object
    index: int


OWN_CODE: ContextVar[Callable[[Awaitable[Any]], Awaitable[Any]] | None] = ContextVar("sparring_own_code", default=None)
"""How the running episode runs what the environment wrote; None outside a run."""

REVEALED: ContextVar[Callable[[object], None] | None] = ContextVar("sparring_revealed", default=None)
"""Who is told of what `reveal` marks; None where nobody checks the flows from hidden fields."""

RUNNING: ContextVar[Running | None] = ContextVar("sparring_running", default=None)
_BRANCHES: ContextVar[tuple[Running | None, tuple[Branch, ...]]] = ContextVar("sparring_branches", default=(None, ()))


def in_branch(name: str) -> str:
    """The name of a call, with the branch that it is made in."""
    inside = "-".join(str(branch.index) for branch in branches())
    return f"{name} (branch {inside})" if inside else name


def branches() -> tuple[Branch, ...]:
    """The branches of the running episode that the caller is in, the outermost first; none outside `gather`."""
    running, inside = _BRANCHES.get()
    return inside if running is RUNNING.get() else ()


class EpisodeRandom(Random):
    """Chance for `play`: equal for all episodes of a group, refused inside `gather`, where the order of draws is not fixed."""

    def random(self) -> float:
        self._check()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._check()
        return super().getrandbits(k)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        self._check()  # every second value is one kept from the draw before
        return super().gauss(mu, sigma)

    @staticmethod
    def _check() -> None:
        if branches():
            raise SettingError("rng was used inside gather(): the order of draws would be chance; draw before gather()")


class _Parts:
    """Tells the running episode how many parts of `play` a `gather` adds: its branches in place of the one that waits for
    them, until that one goes on in the place of the last."""

    def __init__(self, branches: int) -> None:
        self._running = RUNNING.get()
        self._more = 0
        self._split(max(branches - 1, 0))

    def ended(self) -> None:
        self._split(-1 if self._more else 0)

    def close(self) -> None:
        """All branches have ended; those that were cancelled before they began did not say so."""
        self._split(-self._more)

    def _split(self, more: int) -> None:
        self._more += more
        if more and self._running is not None:
            self._running.split(more)


async def gather(*aws: Awaitable[Any]) -> tuple[Any, ...]:
    """Run parts of `play` at once and return their results in the order given: the only way to do so.

    The first failure cancels the other branches and is raised as it is.
    """
    results: list[Any] = [None] * len(aws)
    siblings, outer = object(), branches()
    parts = _Parts(len(aws))

    async def branch(index: int, aw: Awaitable[Any]) -> None:
        _BRANCHES.set((RUNNING.get(), (*outer, Branch(siblings, index))))
        own = OWN_CODE.get()
        try:
            results[index] = await (aw if own is None else own(aw))
        finally:
            parts.ended()

    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as group:
            for index, aw in enumerate(aws):
                group.start_soon(branch, index, aw)
    except ExceptionGroup as failures:
        failure = failures.exceptions[0]
    finally:
        for aw in aws:  # a branch that was cancelled before its first step never touched its coroutine
            if isinstance(aw, Coroutine):
                aw.close()
        parts.close()
    if failure is not None:
        raise failure
    return tuple(results)


async def effect(fn: Callable[..., Awaitable[T]], *args: Any, timeout: float = 60.0) -> T:
    """Call something outside the episode (a tool, a clock, a service): at least once, then its journaled result for ever.

    `fn` is an async function, `args` and its result are JSON data; `play` gets the result as decoded from the journal, also the
    first time (a tuple comes back as a list). A failure or `timeout` seconds without an answer is `EffectError`, also when
    replayed. Outside an episode `fn` is simply called.
    """
    if not isroutine(fn):
        raise SettingError(f"effect({fn!r}): give it an async function, and its arguments after it")
    name = f"{fn.__module__}:{fn.__qualname__}"
    if not (isfinite(timeout) and timeout > 0):
        raise SettingError(f"effect({name}, timeout={timeout!r}): must be a finite number of seconds above 0")
    running = RUNNING.get()

    def call() -> Awaitable[T]:
        answer: object = fn(*args)
        if not isawaitable(answer):
            raise SettingError(f"effect({name}): it returned {answer!r} at once; make it an async function")
        return answer

    if running is None:
        return await call()
    result: T = await running.effect(in_branch(name), call, encoded(args, f"the arguments of {name}"), timeout)
    return result


def encoded(value: Any, what: str) -> bytes:
    """JSON with sorted keys; raises `EffectError` naming `what` where the value is not JSON data."""
    try:
        return canonical(value)
    except ValueError as error:
        remedy = "pass finite numbers, text, lists and dictionaries"
        raise EffectError(f"{what} must be JSON data ({error}): {remedy}") from error


def reveal(value: T) -> T:
    """Mark a flow from hidden fields into a conversation as intended: a verified quote, a verdict that `play` goes on by.

    Returns the value. `check_environment` lets a seat's conversation depend on a hidden field only once a revealed value does.
    """
    heard = REVEALED.get()
    if heard is not None:
        heard(value)
    return value
