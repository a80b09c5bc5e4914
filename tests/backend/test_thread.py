"""The engine thread: order, interleaving, failures that reach whoever waits, and an end that leaves nobody waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

import anyio
import pytest
from anyio import lowlevel, to_thread

from sparring.backend.local.thread import EngineStatistics, EngineThread
from sparring.backend.pending import PendingResult, Unawaited
from sparring.errors import BackendError


class Countdown:
    """Background work of `left` steps; each is noted in a list that operations write to as well."""

    def __init__(self, notes: list[str], left: int, name: str = "step") -> None:
        self.notes, self.left, self.name = notes, left, name
        self.failures: list[BaseException] = []
        self.raises: Exception | None = None
        self.on_step: Callable[[], None] = lambda: None

    def step(self) -> bool:
        if self.left == 0:
            return False
        self.left -= 1
        self.notes.append(self.name)
        self.on_step()
        if self.raises is not None:
            raise self.raises
        return True

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.left = 0


async def test_operations_run_on_one_other_thread_in_order() -> None:
    threads: set[int] = set()
    order: list[int] = []

    def note(number: int) -> int:
        threads.add(threading.get_ident())
        order.append(number)
        return number * number

    with anyio.fail_after(10):
        async with EngineThread() as engine:
            pending = [engine.submit(lambda n=n: note(n), "note") for n in range(100)]  # type: ignore[misc]
            assert [await p for p in pending] == [n * n for n in range(100)]
    assert order == list(range(100))
    assert len(threads) == 1 and threading.get_ident() not in threads


async def test_a_result_may_be_awaited_by_many_and_again() -> None:
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            pending = engine.submit(lambda: 7, "seven")
            got: list[int] = []

            async def wait() -> None:
                got.append(await pending)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(wait)
            assert got == [7, 7, 7]
            assert await pending == 7


async def test_cancelling_a_waiter_cancels_nothing() -> None:
    gate, ran = threading.Event(), []
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            engine.submit(gate.wait, "hold")
            pending = engine.submit(lambda: ran.append(1), "work")
            with anyio.move_on_after(0):
                await pending
            assert ran == []
            gate.set()
            await pending
    assert ran == [1]


async def test_a_failure_reaches_its_waiter_and_the_thread_lives_on() -> None:
    def fail() -> None:
        raise ZeroDivisionError("planted")

    with anyio.fail_after(10):
        async with EngineThread() as engine:
            failing, following = engine.submit(fail, "fail"), engine.submit(lambda: "alive", "follow")
            with pytest.raises(ZeroDivisionError, match="planted"):
                await failing
            assert await following == "alive"


async def test_waiting_operations_go_before_background_steps() -> None:
    notes: list[str] = []
    gate = threading.Event()
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            engine.submit(gate.wait, "hold")
            engine.register(Countdown(notes, 3))
            operations = [engine.submit(lambda: notes.append("operation"), "note") for _ in range(2)]
            gate.set()
            for operation in operations:
                await operation
            await _until(engine, lambda: len(notes) == 5)
    assert notes == ["operation"] * 2 + ["step"] * 3


@pytest.mark.parametrize(("share", "want"), [(0, "oo"), (1, "osos"), (2, "osso")])
async def test_interleave_gives_background_its_share(share: int, want: str) -> None:
    notes: list[str] = []

    def operation() -> str:
        for _ in range(2):
            notes.append("o")
            engine.interleave()
        return "".join(notes)

    with anyio.fail_after(10):
        async with EngineThread(decode_share=share) as engine:
            background = Countdown(notes, 0, "s")
            engine.register(background)
            background.left = 2
            assert await engine.submit(operation, "operation") == want


async def test_backgrounds_take_turns() -> None:
    notes: list[str] = []
    gate = threading.Event()
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            engine.submit(gate.wait, "hold")
            engine.register(Countdown(notes, 3, "a"))
            engine.register(Countdown(notes, 3, "b"))
            gate.set()
            await _until(engine, lambda: len(notes) == 6)
    assert notes == ["a", "b"] * 3


async def test_an_idle_engine_is_woken() -> None:
    notes: list[str] = []
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            background = Countdown(notes, 0)
            engine.register(background)
            await engine.submit(lambda: None, "settle")
            background.left = 2
            engine.wake()
            await _until(engine, lambda: len(notes) == 2)


async def test_a_wake_during_a_step_is_not_lost() -> None:
    """Work that arrives while a step is just finding that it has none."""
    notes: list[str] = []
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            late = Countdown(notes, 0, "late")

            class Waker(Countdown):
                def step(self) -> bool:
                    if super().step():
                        return True
                    if not notes.count("late"):
                        late.left = 1
                        engine.wake()
                    return False

            engine.register(late)
            engine.register(Waker(notes, 1, "waker"))
            await _until(engine, lambda: "late" in notes)


async def test_a_failing_step_fails_its_requests_and_not_the_thread() -> None:
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            background = Countdown([], 5)
            background.raises = ZeroDivisionError("planted")
            engine.register(background)
            await _until(engine, lambda: bool(background.failures))
            assert isinstance(background.failures[0], ZeroDivisionError)
            assert await engine.submit(lambda: 1, "after") == 1
    assert len(background.failures) == 2  # once for the step, once because the engine ended


async def test_a_background_that_cannot_even_fail_ends_the_engine_loudly() -> None:
    class Hopeless(Countdown):
        def fail(self, error: BaseException) -> None:
            if not self.failures:
                self.failures.append(error)
                raise RuntimeError("hopeless") from error

    gate = threading.Event()
    with anyio.fail_after(10):
        async with EngineThread() as engine:
            background = Hopeless([], 1)
            background.raises = ZeroDivisionError("planted")
            stepping = threading.Event()

            def hold() -> None:
                stepping.set()
                _pass(gate)

            background.on_step = hold
            engine.register(background)
            await _happens(stepping)
            queued = engine.submit(lambda: 1, "queued")
            gate.set()
            with pytest.raises(RuntimeError, match="hopeless"):
                await queued
            with pytest.raises(BackendError, match=r"later: the engine thread died: RuntimeError\('hopeless'\)"):
                engine.submit(lambda: 1, "later")


async def test_leaving_fails_what_had_not_run() -> None:
    started, gate = threading.Event(), threading.Event()
    background = Countdown([], 0)

    def long() -> str:
        started.set()
        gate.wait()
        engine.interleave()
        return "never"

    with anyio.fail_after(10):
        async with EngineThread() as engine:
            engine.register(background)
            running, queued = engine.submit(long, "long"), engine.submit(lambda: 1, "queued")
            await _happens(started)
            threading.Timer(0.05, gate.set).start()
        with pytest.raises(BackendError, match="closed while an operation ran"):
            await running
        with pytest.raises(BackendError, match="closed before this ran"):
            await queued
    assert isinstance(background.failures[0], BackendError)


async def test_before_and_after_its_block_everything_is_refused() -> None:
    engine = EngineThread()
    for call in (lambda: engine.submit(lambda: 1, "work"), engine.wake):
        with pytest.raises(BackendError, match="closed"):
            call()
    assert engine.closed
    with anyio.fail_after(10):
        async with engine:
            assert not engine.closed
    for call in (lambda: engine.submit(lambda: 1, "work"), engine.wake):
        with pytest.raises(BackendError, match="the backend is closed"):
            call()
    assert engine.closed


async def test_leaving_ends_both_threads_even_when_cancelled() -> None:
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, EngineThread() as engine:
            await engine.submit(lambda: 1, "work")
            tasks.cancel_scope.cancel()
            await lowlevel.checkpoint()
    assert not [t for t in threading.enumerate() if t.name.startswith("sparring engine")]


async def test_many_small_results_arrive_in_order() -> None:
    seen: list[int] = []
    with anyio.fail_after(30):
        async with EngineThread() as engine:

            def burst() -> None:
                for number in range(5000):
                    engine.post(lambda n=number: seen.append(n))  # type: ignore[misc]

            await engine.submit(burst, "burst")
            await _until(engine, lambda: len(seen) == 5000)
    assert seen == list(range(5000))


async def test_unawaited_failures_are_raised_once_by_the_next_check() -> None:
    unawaited = Unawaited()
    error = BackendError("planted")
    pending: PendingResult[int] = unawaited.track(PendingResult("work"))
    unawaited.check()
    pending.fail(error)
    with pytest.raises(BackendError, match="planted"):
        unawaited.check()
    unawaited.check()


async def test_an_awaited_failure_and_its_echo_are_not_raised_again() -> None:
    unawaited = Unawaited()
    cause, echo = BackendError("cause"), BackendError("echo")
    echo.__cause__ = cause
    first: PendingResult[int] = unawaited.track(PendingResult("first"))
    second: PendingResult[int] = unawaited.track(PendingResult("second"))
    first.fail(cause)
    second.fail(echo)
    with pytest.raises(BackendError, match="cause"):
        await first
    unawaited.check()


async def test_an_unawaited_success_is_forgotten() -> None:
    unawaited = Unawaited()
    pending: PendingResult[int] = unawaited.track(PendingResult("work"))
    pending.succeed(1)
    unawaited.check()
    assert await pending == 1


def _pass(gate: threading.Event) -> None:
    assert gate.wait(10)


async def _until(engine: EngineThread, condition: Callable[[], bool]) -> None:
    """Let the engine take turns until something has happened; the caller's `fail_after` bounds it."""
    while not condition():
        await engine.submit(lambda: None, "turn")


async def _happens(event: threading.Event) -> None:
    await to_thread.run_sync(event.wait, 10)
    assert event.is_set()


async def test_statistics_count_what_waits() -> None:
    begun, freed = threading.Event(), threading.Event()

    def holds() -> None:
        begun.set()
        assert freed.wait(20)

    async with EngineThread() as engine:
        at_rest = EngineStatistics(
            waiting=0, undelivered=0, background=0, operation_seconds=0.0, background_seconds=0.0, parts=0
        )
        assert engine.statistics() == at_rest
        first = engine.submit(holds, "holds")
        await to_thread.run_sync(begun.wait)
        second, third = engine.submit(lambda: 2, "second"), engine.submit(lambda: 3, "third")
        assert engine.statistics().waiting == 2, "the one that runs waits no more"
        freed.set()
        await first
        assert (await second, await third) == (2, 3)
        assert engine.statistics().waiting == 0


async def test_a_long_operation_is_seen_to_go_on() -> None:
    """Between its parts too, where no step waits: whoever watches tells it from one that hangs."""
    async with EngineThread() as engine:
        seen: list[int] = []

        def operation() -> None:
            for _ in range(3):
                engine.interleave()
                seen.append(engine.statistics().parts)

        await engine.submit(operation, "operation")
        assert seen == [1, 2, 3] and engine.statistics().parts == 4


def work(seconds: float) -> None:
    """Compute for so long."""
    until = monotonic() + seconds
    while monotonic() < until:
        pass


async def test_it_counts_how_long_it_worked_and_on_what() -> None:
    async with EngineThread() as engine:
        background = Countdown([], 2)
        background.on_step = lambda: work(0.05)

        def operation() -> None:
            work(0.02)
            engine.interleave()

        engine.register(background)
        await engine.submit(operation, "one")
        await engine.submit(operation, "another")
        before = engine.statistics()
        await anyio.sleep(0.05)
        stands = engine.statistics()
    assert background.left == 0, "both steps ran, before an operation or inside of one"
    assert 0.04 <= stands.operation_seconds < 0.1, "the steps between an operation's parts are not its own"
    assert 0.1 <= stands.background_seconds < 0.3
    assert stands == before, "who waits does not work"
