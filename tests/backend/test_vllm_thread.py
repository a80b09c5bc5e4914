"""The thread that owns an engine, with a scripted engine in vLLM's place: death, silence, cancelling, closing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sparring.backend.vllm.adapters import AdapterFile
from sparring.backend.vllm.engine import Engine, EngineDied, VllmThread, start_vllm
from sparring.errors import BackendError, SettingError

ADAPTER = AdapterFile(name="a", number=1, folder=Path("/nowhere"))


class Scripted:
    """Answers a prompt with its sum. `dies` and `hangs` say at which token."""

    def __init__(self, *, dies: int = -1, hangs: int = -1, answers: bool = True) -> None:
        self._dies, self._hangs, self._answers = dies, hangs, answers
        self.dead = self.was_shut = False
        self.processes = (1,)
        self.running = 0
        self._killed = anyio.Event()
        self.asked = threading.Event()

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], adapter: AdapterFile) -> Any:
        self.running += 1
        self.asked.set()
        try:
            if self.dead or self._dies in tokens:
                self.dead = True
                raise EngineDied
            if self._hangs in tokens:
                await self._killed.wait()
                raise EngineDied
            return sum(tokens)
        finally:
            self.running -= 1

    async def warm_up(self) -> None: ...

    async def load(self, adapter: AdapterFile) -> None: ...

    async def unload(self, adapter: AdapterFile) -> None: ...

    async def answer(self) -> None:
        if not self._answers:
            await anyio.sleep_forever()

    def kill(self) -> None:
        self.dead = True
        self._killed.set()

    def shut(self) -> None:
        self.was_shut = True


@contextmanager
def thread_of(
    *scripts: Callable[[], Scripted], stuck_after: float = 0.1, restarts: int = 2
) -> Iterator[tuple[VllmThread, list[Scripted]]]:
    """A thread whose engines are made by the scripts, in turn, and those that were made."""
    waiting, made = list(scripts), list[Scripted]()

    def start_engine() -> Engine:
        made.append(waiting.pop(0)())
        return made[-1]

    thread = VllmThread(start_engine, stuck_after=stuck_after, restarts=restarts)
    thread.start()
    try:
        yield thread, made
    finally:
        thread.close()


def ask(tokens: Sequence[int]) -> Callable[[Engine], Any]:
    return lambda engine: engine.generate(tokens, {}, ADAPTER)


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


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "sparring.backend.vllm.calls", raising=False)
    with pytest.raises(SettingError, match=r"needs 'vllm': pip install 'sparring\[vllm\]'"):
        start_vllm({"enforce_eager": True})
