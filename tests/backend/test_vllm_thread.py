"""The thread that owns an engine, with a scripted engine in vLLM's place: death, silence, cancelling, closing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import pytest

from sparring.backend.vllm.engine import Engine, VllmThread, start_vllm
from sparring.backend.vllm.errors import EngineLost, EngineStuck
from sparring.errors import BackendError, SettingError
from tests.backend.scripted_engine import Scripted, ask


@contextmanager
def thread_of(
    *scripts: Callable[[], Scripted], stuck_after: float = 0.1, restarts: int = 2, start_within: float = 600
) -> Iterator[tuple[VllmThread, list[Scripted]]]:
    """A thread whose engines are made by the scripts, in turn, and those that were made."""
    waiting, made = list(scripts), list[Scripted]()

    def start_engine() -> Engine:
        made.append(waiting.pop(0)())
        return made[-1]

    thread = VllmThread(start_engine, stuck_after=stuck_after, restarts=restarts, start_within=start_within)
    thread.start()
    try:
        yield thread, made
    finally:
        thread.close()


def test_what_is_asked_of_an_engine_that_dies_is_asked_of_the_next() -> None:
    with thread_of(lambda: Scripted(dies=7), Scripted) as (thread, made):
        assert thread.submit(ask([1, 2])).result(60) == 3
        found = [thread.submit(ask([7, number])) for number in range(5)]
        assert [future.result(60) for future in found] == [7, 8, 9, 10, 11]
        assert (thread.died, len(made), made[0].was_shut) == (1, 2, True)


def test_an_engine_that_does_not_answer_is_killed_and_replaced() -> None:
    with thread_of(lambda: Scripted(hangs=7, answers=False), Scripted) as (thread, made):
        assert thread.submit(ask([7])).result(60) == 7
        assert (thread.died, made[0].dead) == (1, True)


def test_an_engine_that_answers_may_take_its_time() -> None:
    """It is asked several times within the time that a silent one would have."""
    with thread_of(lambda: Scripted(hangs=7), stuck_after=0.05) as (thread, made):
        future = thread.submit(ask([7]))
        with pytest.raises(TimeoutError):
            future.result(0.5)
        assert (thread.died, made[0].running) == (0, 1)


@pytest.mark.parametrize("computes", [True, False])
def test_one_that_computes_has_more_time_to_answer(monkeypatch: pytest.MonkeyPatch, *, computes: bool) -> None:
    """A long step does nothing else."""
    monkeypatch.setattr("sparring.backend.vllm.engine.IDLE", 0.05)
    with thread_of(
        lambda: Scripted(hangs=7, answers=False, computes=computes), Scripted, stuck_after=2 if computes else 60
    ) as (thread, made):
        future = thread.submit(ask([7]))
        if computes:
            with pytest.raises(TimeoutError):
                future.result(1)
            assert thread.died == 0
        assert future.result(60) == 7
        assert (thread.died, made[0].dead) == (1, True)


def test_a_request_that_kills_every_engine_is_given_up() -> None:
    with thread_of(*[lambda: Scripted(dies=7)] * 4) as (thread, made):
        with pytest.raises(BackendError, match="died under one request 3 times"):
            thread.submit(ask([7])).result(60)
        assert len(made) == 4
        assert thread.submit(ask([1])).result(60) == 1


def test_an_engine_that_does_not_start_again_is_said() -> None:
    def broken() -> Scripted:
        raise BackendError("vLLM did not start: no room")

    with thread_of(lambda: Scripted(dies=7), broken) as (thread, _), pytest.raises(BackendError, match="no room"):
        thread.submit(ask([7])).result(60)


def test_one_that_does_not_start_at_all_leaves_no_thread() -> None:
    threads = threading.active_count()

    def broken() -> Engine:
        raise BackendError("vLLM did not start: no room")

    thread = VllmThread(broken, stuck_after=1.0, restarts=0)
    with pytest.raises(BackendError, match="no room"):
        thread.start()
    assert threading.active_count() == threads
    with pytest.raises(BackendError, match="closed"):
        thread.submit(ask([1]))
    thread.close()


def test_cancelling_ends_a_request_inside_the_engine() -> None:
    with thread_of(lambda: Scripted(hangs=7), stuck_after=60) as (thread, made):
        future = thread.submit(ask([7]))
        assert made[0].asked.wait(60)
        assert future.cancel()
        assert thread.submit(ask([1])).result(60) == 1
        assert made[0].running == 0


def test_closing_cancels_what_runs_and_refuses_more() -> None:
    threads = threading.active_count()
    with thread_of(lambda: Scripted(hangs=7), stuck_after=60) as (thread, made):
        future = thread.submit(ask([7]))
        assert made[0].asked.wait(60)
    with pytest.raises(CancelledError):
        future.result(60)
    assert made[0].was_shut
    with pytest.raises(BackendError, match="closed"):
        thread.submit(ask([1]))
    thread.close()
    assert threading.active_count() == threads


def test_an_engine_that_is_still_being_started_is_ended_too() -> None:
    """Whoever waits for it is cancelled, or the backend is closed: its processes would stay."""
    threads = threading.active_count()
    slow = Scripted(warms=False)
    with thread_of(lambda: Scripted(dies=7), lambda: slow, Scripted) as (thread, made):
        future = thread.submit(ask([7]))
        assert slow.begun.wait(60) and thread.restarting
        assert future.cancel()
        assert thread.submit(ask([1])).result(60) == 1
        assert (len(made), slow.was_shut, thread.restarting) == (3, True, False)
    slow = Scripted(warms=False)
    with thread_of(lambda: Scripted(dies=7), lambda: slow) as (thread, _):
        thread.submit(ask([7]))
        assert slow.begun.wait(60)
    assert slow.was_shut and threading.active_count() == threads


def test_one_that_does_not_come_through_its_first_step_in_time_is_ended_and_said_to_all_who_wait() -> None:
    slow = Scripted(warms=False)
    with thread_of(lambda: Scripted(dies=7), lambda: slow, Scripted, start_within=1.0) as (thread, made):
        first = thread.submit(ask([7]))
        assert slow.begun.wait(60)
        second = thread.submit(ask([1]))
        for future in (first, second):
            with pytest.raises(EngineLost, match="did not end its first step within 1 s"):
                future.result(60)
        assert (thread.died, len(made), slow.dead, slow.was_shut) == (2, 2, True, True)
        assert thread.submit(ask([1])).result(60) == 1
        assert len(made) == 3


def test_one_that_does_not_start_in_time_is_counted() -> None:
    def late() -> Scripted:
        raise EngineStuck("vLLM did not start within 3 s, and was ended")

    with thread_of(lambda: Scripted(dies=7), late, Scripted) as (thread, _):
        with pytest.raises(EngineLost, match="within 3 s"):
            thread.submit(ask([7])).result(60)
        assert thread.submit(ask([7])).result(60) == 7
        assert thread.died == 3, "the first that died, the one that was late, and the first once more, found dead"


def test_an_engine_of_which_nobody_can_be_told_is_ended() -> None:
    engine = Scripted()

    def broken(processes: tuple[int, ...]) -> None:
        raise BrokenPipeError("the reaper is gone")

    thread = VllmThread(lambda: engine, stuck_after=1.0, restarts=0, started=broken)
    with pytest.raises(BrokenPipeError, match="gone"):
        thread.start()
    assert engine.was_shut


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "sparring.backend.vllm.calls", raising=False)
    with pytest.raises(SettingError, match=r"needs 'vllm': pip install 'sparring\[vllm\]'"):
        start_vllm({"enforce_eager": True}, within=60, mark="mark")
