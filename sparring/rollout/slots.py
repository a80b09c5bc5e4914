"""Episode slots: how many episodes are played at once, and who is next.

An episode waits here for a slot; it is unblocked by another that ends. Those due earliest go first, then those admitted first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatistics:
    """Slots in all, in use, and episodes that wait for one."""

    slots: int
    used: int
    waiting: int


class Slots:
    """A counting semaphore whose waiters are ordered by priority (smallest first)."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._used = 0
        self._waiting: list[tuple[tuple[int, ...], int, anyio.Event]] = []
        self._arrivals = 0

    @asynccontextmanager
    async def at(self, priority: tuple[int, ...]) -> AsyncIterator[None]:
        """Hold a slot; waits until one is free and nobody waits with a smaller priority."""
        await self._take(priority)
        try:
            yield
        finally:
            self._give()

    def statistics(self) -> SlotStatistics:
        return SlotStatistics(slots=self._slots, used=self._used, waiting=len(self._waiting))

    async def _take(self, priority: tuple[int, ...]) -> None:
        if self._used < self._slots and not self._waiting:
            self._used += 1
            return
        entry = (priority, self._arrivals, anyio.Event())
        self._arrivals += 1
        heappush(self._waiting, entry)
        mine = False
        try:
            await entry[2].wait()
            mine = True
        finally:
            if not mine and entry in self._waiting:
                self._waiting.remove(entry)
                heapify(self._waiting)
            elif not mine:  # the slot was handed over to a waiter that was cancelled
                self._give()

    def _give(self) -> None:
        """Hand the slot to the next in line, or back."""
        if self._waiting:
            heappop(self._waiting)[2].set()
        else:
            self._used -= 1
