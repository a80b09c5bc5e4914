"""Who holds the event loop is named while it does so, counted when it comes back, and ended when that is too late."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sized
from os import cpu_count
from pathlib import Path
from time import thread_time

import anyio
import pytest

from sparring.rollout.loop_watch import Held, LoopWatch

LIMIT = 0.04


def records(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


class Watched:
    """A watch, and who it said came back."""

    def __init__(self, *, deadline: float = 1000.0) -> None:
        self.held: list[Held] = []
        self._news = anyio.Event()
        self.stuck: list[float] = []
        self.watch = LoopWatch(deadline=deadline, limit=LIMIT, on_held=self._note, on_stuck=self._note_stuck)

    def _note_stuck(self) -> None:
        self.stuck.append(0.0)

    def _note(self, held: Held) -> None:
        self.held.append(held)
        self._news.set()

    async def next(self) -> Held:
        """Waits for the next place that is counted for the first time."""
        with anyio.fail_after(20):
            await self._news.wait()
        self._news = anyio.Event()
        return self.held[-1]

    async def comes_round(self) -> None:
        """Waits for one more beat."""
        before = self.watch.statistics().beats
        with anyio.fail_after(20):
            while self.watch.statistics().beats == before:
                await anyio.lowlevel.checkpoint()


def compute_until(filled: Sized, size: int = 1) -> None:
    """Calls no Python function: a loop that the machine interrupts in one for long would be named by it."""
    while len(filled) < size:
        pass


async def test_who_computes_without_awaiting_is_named(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    async with watched.watch.watching():
        compute_until(watched.watch._warned)
        held = await watched.next()
    assert (held.place.function, held.place.file, held.times) == ("compute_until", __file__, 1)
    assert held.seconds == held.longest >= LIMIT
    assert watched.watch.statistics().held == (held,)
    (said,) = records(caplog)
    assert said.startswith(f"compute_until ({__file__}:") and "nothing else runs meanwhile" in said
    assert "while len(filled) < size:" in said, "the stack shows the lines"
    assert (
        f"{held}" == f"{held.place} held the event loop once, {held.seconds:.1f} s in all, at most {held.longest:.1f} s"
    )


async def test_who_blocks_in_a_library_is_named_by_the_line_that_called_it(caplog: pytest.LogCaptureFixture) -> None:
    watched, freed = Watched(), threading.Event()

    class Frees(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            freed.set()

    handler = Frees()
    logging.getLogger("sparring").addHandler(handler)

    def block() -> None:
        assert freed.wait(20), "nobody noticed"

    try:
        async with watched.watch.watching():
            block()
            held = await watched.next()
    finally:
        logging.getLogger("sparring").removeHandler(handler)
    assert held.place.function.endswith("block") and held.place.file == __file__
    assert "in wait" in records(caplog)[0], "what blocks stands in the stack"


async def test_a_place_is_told_once_and_counted_each_time(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    async with watched.watch.watching():
        for _ in range(2):
            compute_until(watched.watch._named)
            await watched.comes_round()
    (held,) = watched.watch.statistics().held
    assert held.times == 2 and held.longest < held.seconds
    assert len(watched.held) == len(records(caplog)) == 1


async def test_two_calls_of_one_beat_share_its_time(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()

    def after_it() -> None:
        compute_until(watched.watch._named)
        while len(watched.watch._warned) < 2:
            pass

    async with watched.watch.watching():
        after_it()
        await watched.comes_round()
    found = {held.place.function.rpartition(".")[2]: held for held in watched.watch.statistics().held}
    assert found.keys() == {"compute_until", "after_it"}
    total = sum(held.seconds for held in found.values())
    assert total <= watched.watch.statistics().lag_max * 1.001


async def test_a_loop_that_is_held_beyond_the_deadline_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(deadline=2 * LIMIT)
    async with watched.watch.watching():
        compute_until(watched.stuck)
        await watched.comes_round()
    (said,) = records(caplog, logging.ERROR)
    assert "a thread cannot stop it" in said and "the process ends now" in said and "while len(filled) < size:" in said
    assert len(watched.stuck) == 1


async def test_the_thread_ends_with_the_watch() -> None:
    def looking() -> bool:
        frames = list(sys._current_frames().values())
        codes = []
        for frame in frames:
            at = frame
            while at is not None:
                codes.append(at.f_code)
                at = at.f_back  # type: ignore[assignment]
        return LoopWatch._look.__code__ in codes

    watched = Watched()
    with anyio.fail_after(20):
        async with watched.watch.watching():
            while not looking():
                await anyio.lowlevel.checkpoint()
        assert not looking()
        with pytest.RaisesGroup(KeyError):
            async with LoopWatch(
                deadline=9.0, limit=9.0, on_held=watched.held.append, on_stuck=watched._note_stuck
            ).watching():
                raise KeyError
        assert not looking(), "also where it would wait for long, and something failed"


def test_lag_is_told_by_quantiles_and_its_longest() -> None:
    watch = LoopWatch(deadline=9.0, on_held=lambda held: None)
    assert (watch.statistics().lag_p50, watch.statistics().lag_p99, watch.statistics().lag_max) == (0.0, 0.0, 0.0)
    for lag in [0.01] * 70 + [0.2] * 30 + [0.0] * 5 + [1.7] * 2:
        watch._came_round(lag)
    found = watch.statistics()
    assert found.beats == 107
    assert found.lag_p50 == pytest.approx(0.01, rel=0.08)
    assert found.lag_p99 == pytest.approx(1.7, rel=0.08)
    assert found.lag_max == 1.7
    assert found.held == ()


async def test_lag_of_its_own_leaves_out_what_others_took() -> None:
    """As many processes as there are processors, and more, compete with the loop, which computes for a moment of its own."""
    watch = LoopWatch(deadline=1000.0, on_held=lambda held: None, on_stuck=lambda: None, limit=100.0, own_time=True)
    plain = LoopWatch(deadline=1000.0, on_held=lambda held: None, on_stuck=lambda: None, limit=100.0)
    command = [sys.executable, "-S", "-c", "while True: pass"]
    others = [await anyio.open_process(command, stdout=None, stderr=None) for _ in range(3 * (cpu_count() or 1))]
    try:
        async with watch.watching(), plain.watching():
            for _ in range(3):
                until = thread_time() + 0.2
                while thread_time() < until:
                    pass
                await anyio.sleep(0.11)
    finally:
        for other in others:
            other.kill()
            await other.aclose()
    own, all_of_it = watch.statistics().lag_max, plain.statistics().lag_max
    assert own > 0.03, "what it computes itself is in it"
    if Path("/proc/thread-self/schedstat").exists():
        assert own < all_of_it - 0.05
