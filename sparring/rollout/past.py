"""What the journal holds of an episode, delivered once more: to the code that made it, which goes on from there (`Past`), or to
changed code (`StoredAnswers`).

Answers come in the journaled order, whichever branch of `play` asks first: what one branch hears may depend on what another
heard before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import anyio

from sparring.errors import ReplayDiverged
from sparring.rollout.events import Acted, Affected
from sparring.rollout.signal import Signal

REPLAY_DEADLINE = 60.0
"""Seconds for an episode's branches to ask again for what is journaled, or to give up what they gave up then; nothing outside
is waited for meanwhile."""


class Answers(Protocol):
    """Where an episode finds the answers that nobody has to be asked for."""

    async def known(self, wanted: Acted | Affected) -> Acted | Affected | None:
        """The answer, when its turn has come; None for what is new. Raises `ReplayDiverged` where there can be none."""
        ...

    def split(self, more: int) -> None:
        """So many more parts of `play` run at once from here on (fewer, where negative)."""
        ...

    def check_over(self, failed: Exception | None) -> None:
        """`play` has ended, or `failed`. Raises `ReplayDiverged` where it must not end yet."""
        ...


class Past:
    """To the same code. Something new waits until all that is journaled has been asked for again: it came later then too."""

    def __init__(self, events: Sequence[Acted | Affected], named: str) -> None:
        self._events = events
        self._named = named
        self._positions = {event.key: position for position, event in enumerate(events)}
        self._replayed = 0
        self._moved = Signal()

    async def known(self, wanted: Acted | Affected) -> Acted | Affected | None:
        position = self._positions.get(wanted.key, len(self._events))
        while self._replayed < position:
            before = self._replayed
            with anyio.move_on_after(REPLAY_DEADLINE):
                await self._moved.wait()
            if self._replayed == before:
                missing = self._events[before].key
                raise ReplayDiverged(f"{self._named} did not ask again for {missing!r}, which the journal holds")
        if position == len(self._events):
            return None
        known = self._events[position]
        assert position == self._replayed, f"{self._named} asked twice for {wanted.key!r}"
        if isinstance(known, Acted) and isinstance(wanted, Acted) and known.request != wanted.request:
            raise ReplayDiverged(f"{self._named}: {wanted.key!r} was asked something else than in the journal")
        self._replayed += 1
        self._moved.notify()
        return known

    def split(self, more: int) -> None:
        """Every part asks again, however many there are."""

    def check_over(self, failed: Exception | None) -> None:
        """Raises `ReplayDiverged` where the episode ended, or `failed`, without asking for all that the journal holds."""
        if self._replayed < len(self._events):
            missing = self._events[self._replayed].key
            raise ReplayDiverged(f"{self._named} ended without asking for {missing!r} again") from failed


class NoReply(ReplayDiverged):
    """Changed code asks for a reply that the journal does not hold.

    `more` says that there is none of this seat at this turn; else there is one, to another question. `turn` counts from 0.
    """

    def __init__(self, seat: str, turn: int, *, more: bool) -> None:
        what = "asks for more than the journal holds" if more else "asks something else"
        super().__init__(f"seat {seat!r} {what} at turn {turn}")
        self.seat = seat
        self.turn = turn
        self.more = more


Effects = Literal["anew", "journal"]


class StoredAnswers:
    """To changed code. A reply answers the question that it answered then, at the place where it was asked, or is none.

    What nobody asks for any more is passed over, once every part of `play` waits for its turn: then nobody is left who could.
    Effects are computed `anew`, or taken from the `journal` where it holds them; either way they are heard in their turn.
    """

    def __init__(self, events: Sequence[Acted | Affected], effects: Effects = "anew") -> None:
        self._events = events
        self._effects = effects
        self._positions = {event.key: position for position, event in enumerate(events)}
        self._next = 0
        self._parts = 1
        self._waiting: list[int] = []
        self._moved = Signal()
        self.heard: list[Acted] = []
        """The replies that were delivered, in that order."""

    async def known(self, wanted: Acted | Affected) -> Acted | Affected | None:
        position = self._positions.get(wanted.key)
        known = None if position is None else self._events[position]
        if isinstance(wanted, Acted):
            if not isinstance(known, Acted) or known.request != wanted.request:
                if known is None and self._was_cancelled(wanted):
                    with anyio.move_on_after(REPLAY_DEADLINE):
                        await anyio.sleep_forever()
                seat = f"{wanted.seat}/{wanted.fork}" if wanted.fork else wanted.seat
                raise NoReply(seat, wanted.turn, more=known is None)
        elif wanted.player:
            if known is None:
                raise ReplayDiverged(f"{wanted.name}: the journal does not hold what it would have chosen of these")
        elif self._effects == "anew":
            return None
        if position is not None:
            await self._turn(position)
        if isinstance(known, Acted):
            self.heard.append(known)
        return known

    async def keep(self, event: Acted | Affected) -> None:
        """An effect was computed; it is heard when it was heard then, or at once where it is new."""
        position = self._positions.get(event.key)
        if position is not None:
            await self._turn(position)

    def split(self, more: int) -> None:
        self._parts += more
        self._moved.notify()

    def check_over(self, failed: Exception | None) -> None:
        """Changed code may end when it likes."""

    async def _turn(self, position: int) -> None:
        """Waits for those before it, unblocked when one of them was heard or nobody can ask for one any more."""
        self._waiting.append(position)
        self._moved.notify()
        try:
            while not self._is_next(position):
                await self._moved.wait()
        finally:
            self._waiting.remove(position)
        self._next = max(self._next, position + 1)
        self._moved.notify()

    def _was_cancelled(self, wanted: Acted) -> bool:
        """Whether `play` gave up waiting for this reply then (its own time limit, a branch that failed), and asked again."""
        return any(
            isinstance(event, Acted) and event.key[:-1] == wanted.key[:-1] and event.attempt > wanted.attempt
            for event in self._events
        )

    def _is_next(self, position: int) -> bool:
        if position <= self._next:
            return True
        return len(self._waiting) >= self._parts and position == min(self._waiting)
