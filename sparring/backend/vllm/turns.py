"""Versions taking turns in an engine that holds all weights of one version at a time.

A request waits until the weights that it names are installed. It starts at once where they are and nobody waits for others; as
soon as somebody does, those that are under way come to their end, the weights that are waited for longest are installed, and
everything that waits for these starts together. So an older version is still drawn from exactly, and nobody waits for ever;
what it costs is that the engine runs empty and reads weights at each change.

What follows a model goes on with its newer weights in the middle: where nobody else is under way, these are installed under it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[W]):
    """One in line, for the weights that `weights` tells then. `follower` is the model that it follows, None where it follows
    none; it `goes_on` if it is that model, which waits for nobody who follows it. `begun` is settled when it may begin, or
    with why it cannot."""

    weights: Callable[[], W]
    follower: int | None
    goes_on: bool
    begun: asyncio.Future[None]


class Turns(Generic[W]):
    """`install` puts weights into the engine; it runs while nobody is inside but those who go on with them, and to its end
    whoever is cancelled. What it raises goes to all that wait for those weights; the next are then installed anew. Used on one
    asyncio loop."""

    def __init__(self, install: Callable[[W], Awaitable[None]]) -> None:
        self._install = install
        self._installed: W | None = None
        self._installing: asyncio.Future[None] | None = None
        self._inside = Counter[int | None]()
        self._line: list[_Waiting[W]] = []

    @asynccontextmanager
    async def of(self, weights: Callable[[], W], *, follower: int | None = None) -> AsyncIterator[None]:
        """Inside the block these weights are installed, or newer ones of the model that it follows."""
        if self._installing is None and not self._line and self._installed == weights():
            self._inside[follower] += 1
        else:
            await self._wait(weights, follower, goes_on=False)
        try:
            yield
        finally:
            self._inside[follower] -= 1
            self._advance()

    async def move(self, weights: Callable[[], W], *, follower: int) -> None:
        """Install newer weights of a model, under those who follow it. Returns once they are there."""
        await self._wait(weights, follower, goes_on=True)

    async def _wait(self, weights: Callable[[], W], follower: int | None, *, goes_on: bool) -> None:
        """Stand in line; whoever begins is counted as inside by then."""
        waiting = _Waiting(weights, follower, goes_on, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        self._advance()
        try:
            await waiting.begun
        except asyncio.CancelledError:
            if not goes_on and not waiting.begun.cancelled() and waiting.begun.exception() is None:
                self._inside[follower] -= 1  # it was let in just before it was cancelled
            self._advance()
            raise

    def _advance(self) -> None:
        """Nobody inside who must end before: let in who is first in line and all that wait for the same, or install what they
        wait for."""
        self._line = [waiting for waiting in self._line if not waiting.begun.done()]
        if self._installing is not None or not self._line:
            return
        first = self._line[0]
        if self._inside.total() - first.goes_on * self._inside[first.follower] > 0:
            return
        weights = first.weights()
        if self._installed == weights:
            for waiting in self._taken(weights):
                self._inside[waiting.follower] += not waiting.goes_on
                waiting.begun.set_result(None)
            self._advance()  # what went on is not inside: nobody's leaving would bring the next their turn
        else:
            self._installed = None
            self._installing = asyncio.ensure_future(self._install(weights))
            self._installing.add_done_callback(lambda task: self._ended(weights, task))

    def _ended(self, weights: W, installing: asyncio.Future[None]) -> None:
        self._installing = None
        if installing.cancelled():
            return  # the loop ends
        error = installing.exception()
        if error is None:
            self._installed = weights
        else:
            for waiting in self._taken(weights):
                waiting.begun.set_exception(error)
        self._advance()

    def _taken(self, weights: W) -> list[_Waiting[W]]:
        """Those that wait for these weights, out of the line."""
        taken = [waiting for waiting in self._line if waiting.weights() == weights and not waiting.begun.done()]
        self._line = [waiting for waiting in self._line if waiting not in taken]
        return taken
