"""Is the event loop free? How late it is, and which call holds it.

A task asks to be woken every 50 ms; how much later it is, is the *lag*: what everything else on the loop waits too, beside
what it waits for. A thread looks whether the task still comes round. Where it does not, some call computes or blocks
without awaiting, and the thread names it from the stack of the loop's thread. It cannot stop it: nothing in Python stops a
running call from outside. Where that lasts for too long, it has the process ended.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType

import anyio
import anyio.from_thread
import anyio.to_thread

from sparring.backend.totals import bin_of, quantile
from sparring.rollout.stack import Place, culprit, stack_of, still_running, told

STUCK = 75
"""The exit code of a process that was ended because its event loop was held (EX_TEMPFAIL: it may be tried again)."""

_BEAT = 0.05
_LEAST = 3.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A call that held the event loop: where it was first seen, how often, and for how many seconds in all and at most."""

    place: Place
    times: int
    seconds: float
    longest: float

    def __str__(self) -> str:
        often = "once" if self.times == 1 else f"{self.times} times"
        return f"{self.place} held the event loop {often}, {self.seconds:.1f} s in all, at most {self.longest:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStatistics:
    """How late the event loop was over `beats` wake-ups, in seconds; the quantiles are right to about 8 %. `held` are the
    calls that held it for longer than the limit, those that took most first."""

    beats: int
    lag_p50: float
    lag_p99: float
    lag_max: float
    held: tuple[Held, ...]


class LoopWatch:
    """The watch over an event loop, while `watching`.

    limit     seconds without coming round after which the call that holds the loop is named: at the latest after half as
              much again
    deadline  seconds after which its stack is logged again, as an error, and `on_stuck` is called
    on_held   called on the loop when it comes back from a place that held it for the first time
    on_stuck  called then, in the watching thread. None: the process ends, with the exit code `STUCK`, though not before three
              seconds, which a busy machine may take. Where a call keeps even the thread from running (a regular expression, a
              huge number), a timer in C ends it some seconds later, with the stacks of all threads and exit code 1
    own_time  leave out of the lag what the loop's thread waited for a processor, where the kernel says it (Linux): what is left
              is the loop's own doing
    """

    def __init__(
        self,
        *,
        deadline: float,
        on_held: Callable[[Held], None],
        on_stuck: Callable[[], None] | None = None,
        limit: float = 0.5,
        own_time: bool = False,
    ) -> None:
        self._limit = limit
        self._deadline = deadline if on_stuck is not None else max(deadline, _LEAST)
        self._on_held = on_held
        self._on_stuck = on_stuck
        self._own_time = own_time
        self._loop = 0
        self._over = threading.Event()
        self._due = monotonic() + _BEAT
        self._beats = 0
        self._lags = Counter[int]()
        self._longest = 0.0
        self._held: dict[tuple[str, str], Held] = {}
        self._named: dict[int, list[tuple[float, Place]]] = {}
        self._overdue = -1
        self._warned: set[tuple[str, str]] = set()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the running event loop until the end; its thread ends with it."""
        self._loop, self._due = threading.get_ident(), monotonic() + _BEAT
        async with anyio.create_task_group() as group:
            group.start_soon(self._beat)
            looking = anyio.Event()
            group.start_soon(self._run_thread, looking)
            if self._on_stuck is None:
                group.start_soon(_keep_off, self._deadline * 1.1 + _LEAST)
            try:
                await looking.wait()
                yield
            finally:
                self._over.set()
                group.cancel_scope.cancel()

    def statistics(self) -> LoopStatistics:
        return LoopStatistics(
            beats=self._beats,
            lag_p50=quantile(self._lags, 0.5) if self._lags else 0.0,
            lag_p99=quantile(self._lags, 0.99) if self._lags else 0.0,
            lag_max=self._longest,
            held=tuple(sorted(self._held.values(), key=lambda held: -held.seconds)),
        )

    async def _beat(self) -> None:
        """Comes round every 50 ms."""
        while True:
            before = _unscheduled() if self._own_time else 0.0
            self._due = monotonic() + _BEAT
            await anyio.sleep(_BEAT)
            lag = monotonic() - self._due
            waited = _unscheduled() - before if self._own_time else 0.0
            self._came_round(max(0.0, lag - waited))

    def _came_round(self, lag: float) -> None:
        beat, self._beats = self._beats, self._beats + 1
        self._lags[bin_of(lag)] += 1
        self._longest = max(self._longest, lag)
        named = self._named.pop(beat, [])
        for index, (since, place) in enumerate(named):
            until = named[index + 1][0] if index + 1 < len(named) else lag
            self._count(place, until - (since if index else 0.0))

    def _count(self, place: Place, seconds: float) -> None:
        known = self._held.get(place.key, Held(place=place, times=0, seconds=0.0, longest=0.0))
        self._held[place.key] = held = Held(
            place=known.place,
            times=known.times + 1,
            seconds=known.seconds + seconds,
            longest=max(known.longest, seconds),
        )
        if not known.times:
            self._on_held(held)

    async def _run_thread(self, looking: anyio.Event) -> None:
        """Waits for the thread, which says when it has begun."""

        def look() -> None:
            anyio.from_thread.run_sync(looking.set)
            self._look()

        await anyio.to_thread.run_sync(look, limiter=anyio.CapacityLimiter(1))

    def _look(self) -> None:
        """Waits half the limit, again and again, until the watch is over. Two stacks of the same beat tell one call that goes
        on from many short ones."""
        before: tuple[int, list[FrameType]] | None = None
        while not self._over.wait(self._limit / 2):
            beat, late = self._beats, monotonic() - self._due
            stack = stack_of(self._loop) if late > self._limit / 2 else []
            if not stack or beat != self._beats:
                before = None
                continue
            if before is not None and before[0] == beat:
                self._judge(beat, late, still_running(before[1], stack), stack)
            before = (beat, stack)

    def _judge(self, beat: int, late: float, running: list[FrameType], stack: list[FrameType]) -> None:
        """Say who holds the loop: once for each place, and once more when the deadline is over."""
        if not running:
            return
        place, named = culprit(running), self._named.setdefault(beat, [])
        if not named or named[-1][1].key != place.key:
            named.append((late, place))
        if place.key not in self._warned:
            self._warned.add(place.key)
            _log.warning("%s holds the event loop for %.1f s so far; %s\n%s", place, late, _REMEDY, told(stack))
        if late > self._deadline and beat != self._overdue:
            self._overdue = beat
            _log.error(_OVERDUE, place, late, _REMEDY, told(stack))
            if self._on_stuck is None:
                os._exit(STUCK)
            self._on_stuck()


def _unscheduled() -> float:
    """Seconds for which this thread was ready to run and had no processor, since it began; 0 where the kernel does not say."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


async def _keep_off(seconds: float) -> None:
    """Until it is cancelled: a timer that no lock of the interpreter stops ends the process where this does not come round
    for so long."""
    try:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
            await anyio.sleep(1.0)
    finally:
        faulthandler.cancel_dump_traceback_later()


_STDERR = 2

_OVERDUE = (
    "%s holds the event loop for %.1f s, longer than the run may stand still, and a thread cannot stop it: the process ends "
    "now. Mend what holds it and resume; the journal has all that was done. %s\n%s"
)
_REMEDY = (
    "nothing else runs meanwhile, no deadline and no Ctrl-C: what computes or blocks belongs into an effect() that awaits a "
    "thread or a process (anyio.to_thread, anyio.to_process)"
)
