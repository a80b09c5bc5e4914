"""Several engines with the same versions, scripted ones in vLLM's place: who is asked, who leaves, and that nothing is lost."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparring.backend.vllm.engine import Engine
from sparring.backend.vllm.errors import EngineLost
from sparring.backend.vllm.files import WeightsFile
from sparring.backend.vllm.replicas import Replicas
from sparring.backend.vllm.routing import blocks
from sparring.errors import BackendError
from tests.backend.scripted_engine import Scripted, ask

Script = Callable[[], Scripted]


@contextmanager
def replicas_of(*scripts: Sequence[Script]) -> Iterator[tuple[Replicas, list[list[Scripted]]]]:
    """For each replica the engines that it makes, in turn, and those that were made."""
    made: list[list[Scripted]] = [[] for _ in scripts]

    def maker(index: int) -> Callable[[], Engine]:
        waiting = list(scripts[index])

        def start_engine() -> Engine:
            if not waiting:
                raise BackendError(f"no room for another engine {index}")
            made[index].append(waiting.pop(0)())
            return made[index][-1]

        return start_engine

    makers = [maker(index) for index in range(len(scripts))]
    replicas = Replicas(makers, stuck_after=60, restarts=2, remembered=100)
    replicas.start()
    try:
        yield replicas, made
    finally:
        replicas.close()


def submit(replicas: Replicas, tokens: Sequence[int]) -> Future[int]:
    return replicas.submit(ask(tokens), chain=blocks(tokens, "a", 2), work=1)


def load(number: int) -> Callable[[Engine], Coroutine[Any, Any, int]]:
    """Load a version and say which engine did."""
    weights = WeightsFile(name=f"v{number}", number=number, version=number, folder=Path("/nowhere"))

    async def asked(engine: Engine) -> int:
        await engine.load(weights)
        return id(engine)

    return asked


def fine(answer: int) -> None:
    """Every answer will do."""


def test_a_version_goes_to_all_and_a_request_to_the_one_that_has_its_beginning() -> None:
    with replicas_of([Scripted], [Scripted]) as (replicas, made):
        answers: list[int] = []
        replicas.install(load(3), answers.append, within=60)
        assert sorted(answers) == sorted(id(engines[0]) for engines in made)
        assert made[0][0].loaded == made[1][0].loaded == {3}
        for turn in range(1, 5):
            for first in (10, 20):
                assert submit(replicas, [first] * 2 * turn).result(60) == first * 2 * turn
        assert {len({tokens[0] for tokens in engines[0].answered}) for engines in made} <= {0, 1, 2}
        assert sum(len(engines[0].answered) for engines in made) == 8
        done = threading.Event()
        replicas.everywhere(lambda engine: engine.unload(WEIGHTS_3), then=done.set)
        assert done.wait(60)
        assert made[0][0].loaded == made[1][0].loaded == set()


WEIGHTS_3 = WeightsFile(name="v3", number=3, version=3, folder=Path("/nowhere"))


def test_one_that_dies_is_replaced_and_what_was_asked_of_it_is_asked_again_once() -> None:
    """Nothing is lost, nothing is answered twice, and the other goes on."""
    with replicas_of([lambda: Scripted(dies=99), Scripted], [lambda: Scripted(dies=99), Scripted]) as (replicas, made):
        futures = [submit(replicas, [number, number, 99 if number == 4 else 0]) for number in range(20)]
        assert [future.result(60) for future in futures] == [2 * n + (99 if n == 4 else 0) for n in range(20)]
        answered = sorted(tokens[0] for engines in made for engine in engines for tokens in engine.answered)
        assert answered == list(range(20))
        assert (replicas.died, replicas.left, replicas.rotation) == (1, 0, (0, 1))


def test_one_that_cannot_be_started_again_leaves_and_others_are_asked_what_it_was_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), replicas_of([lambda: Scripted(dies=7)], [Scripted]) as (replicas, made):
        deadly = submit(replicas, [7, 7])  # with nothing to do, the first is chosen
        waiting = [submit(replicas, [number, number]) for number in range(6)]
        assert deadly.result(60) == 14
        assert [future.result(60) for future in waiting] == [2 * number for number in range(6)]
        assert (replicas.rotation, replicas.left) == ((1,), 1)
        assert "replica 0 leaves the rotation, 1 go on: no room for another engine 0" in caplog.text
        replicas.install(load(2), fine, within=60)
        assert made[1][0].loaded == {2} and made[0][0].loaded == set()
        assert submit(replicas, [1, 1]).result(60) == 2


def test_the_last_one_that_is_lost_is_said() -> None:
    with replicas_of([lambda: Scripted(dies=7)], [lambda: Scripted(dies=7)]) as (replicas, _):
        with pytest.raises(EngineLost, match="no room for another engine 1"):
            submit(replicas, [7, 7]).result(60)
        assert (replicas.rotation, replicas.left) == ((1,), 1)


def refused(version: int) -> list[Script]:
    return [lambda: Scripted(refuses=version)]


@pytest.mark.parametrize("why", ["refuses", "stalls", "drifts"])
def test_one_that_does_not_take_a_version_leaves(why: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is ended; what it was about to answer, the other answers."""
    bad: list[Script] = [
        lambda: Scripted(hangs=9, refuses=2 if why == "refuses" else -1, stalls=2 if why == "stalls" else -1)
    ]
    with caplog.at_level(logging.WARNING), replicas_of(bad, [Scripted]) as (replicas, made):
        replicas.install(load(1), fine, within=60)
        under_way = submit(replicas, [9, 9])
        assert made[0][0].asked_for == [[9, 9]] or made[0][0].asked.wait(60)

        def check(answer: int) -> None:
            if why == "drifts" and answer == id(made[0][0]):
                raise BackendError("sampler and trainer drifted apart")

        replicas.install(load(2), check, within=0.5 if why == "stalls" else 60)
        assert (replicas.rotation, replicas.left) == ((1,), 1)
        said = {"refuses": "version 2 cannot be read", "stalls": "within 0 s", "drifts": "drifted"}
        assert said[why] in caplog.text
        assert under_way.result(60) == 18 and made[1][0].answered == [[9, 9]]
        assert made[1][0].loaded == {1, 2}
    assert made[0][0].was_shut


def test_where_none_takes_a_version_it_is_the_versions_fault() -> None:
    with replicas_of(refused(2), refused(2)) as (replicas, _):
        with pytest.raises(BackendError, match="version 2 cannot be read"):
            replicas.install(load(2), fine, within=60)
        assert (replicas.rotation, replicas.left) == ((0, 1), 0)
        replicas.install(load(3), fine, within=60)
        assert submit(replicas, [1, 1]).result(60) == 2


def test_cancelling_ends_the_request_where_it_is_and_makes_room() -> None:
    with replicas_of([lambda: Scripted(hangs=9)], [Scripted]) as (replicas, made):
        future = submit(replicas, [9, 9])
        assert made[0][0].asked.wait(60)
        assert future.cancel()
        again = [submit(replicas, [1, 1]) for _ in range(4)]
        assert [one.result(60) for one in again] == [2] * 4
        assert made[0][0].running == 0 and made[0][0].answered, "the cancelled one still counts as work"


def end_when_asked(replicas: Replicas, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an engine leave the rotation, and be ended, between its choice and the question."""
    thread = replicas.threads[index]
    submit_there = thread.submit

    def ended(asked: Callable[[Engine], Coroutine[Any, Any, Any]]) -> Future[Any]:
        replicas._leave(index, BackendError("planted"))  # pyright: ignore[reportPrivateUsage]
        return submit_there(asked)

    monkeypatch.setattr(thread, "submit", ended)


def test_a_request_whose_engine_is_ended_before_it_is_asked_goes_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with replicas_of([Scripted], [Scripted]) as (replicas, made):
        end_when_asked(replicas, 0, monkeypatch)
        assert submit(replicas, [1, 1]).result(60) == 2
        assert (replicas.rotation, replicas.left) == ((1,), 1)
        assert (made[0][0].answered, made[1][0].answered) == ([], [[1, 1]])


@pytest.mark.parametrize("index", [0, 1])
def test_a_version_goes_to_the_rest_where_one_is_ended_meanwhile(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with replicas_of([Scripted], [Scripted]) as (replicas, made):
        end_when_asked(replicas, index, monkeypatch)
        replicas.install(load(3), fine, within=60)
        assert (made[index][0].loaded, made[1 - index][0].loaded) == (set(), {3})
        assert (replicas.rotation, replicas.left) == ((1 - index,), 1)


@pytest.mark.parametrize("index", [0, 1])
def test_what_is_asked_everywhere_is_done_once_where_one_is_ended_meanwhile(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replicas_of([Scripted], [Scripted]) as (replicas, made):
        replicas.install(load(3), fine, within=60)
        end_when_asked(replicas, index, monkeypatch)
        done: queue.Queue[str] = queue.Queue()
        replicas.everywhere(lambda engine: engine.unload(WEIGHTS_3), then=lambda: done.put("done"))
        assert done.get(timeout=60) == "done"
        assert made[1 - index][0].loaded == set() and replicas.left == 1
    assert done.empty(), "it was done twice"


def test_once_all_are_ended_versions_are_refused_and_what_is_asked_everywhere_is_done_at_once() -> None:
    with replicas_of([Scripted], [Scripted]) as (replicas, _):
        pass
    done: list[str] = []
    replicas.everywhere(lambda engine: engine.unload(WEIGHTS_3), then=lambda: done.append("done"))
    assert done == ["done"]
    with pytest.raises(BackendError, match="closed"):
        replicas.install(load(3), fine, within=60)


def test_closing_cancels_what_runs_and_leaves_no_thread() -> None:
    threads = threading.active_count()
    with replicas_of([lambda: Scripted(hangs=9)], [lambda: Scripted(hangs=9)]) as (replicas, made):
        futures = [submit(replicas, [9, 9]) for _ in range(4)]
        for engines in made:
            assert engines[0].asked.wait(60)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(60)
    with pytest.raises(BackendError, match="closed"):
        submit(replicas, [1, 1])
    assert all(engines[0].was_shut for engines in made) and threading.active_count() == threads


def test_one_that_does_not_start_takes_the_others_with_it() -> None:
    threads, started = threading.active_count(), list[Scripted]()

    def start_engine() -> Engine:
        if started:
            raise BackendError("vLLM did not start: no room")
        started.append(Scripted())
        return started[0]

    replicas = Replicas([start_engine] * 3, stuck_after=60, restarts=0, remembered=1)
    with pytest.raises(BackendError, match="no room"):
        replicas.start()
    assert started[0].was_shut and threading.active_count() == threads


def test_all_processes_are_told_of_whenever_one_is_started_anew() -> None:
    told: list[tuple[int, ...]] = []

    def make(*engines: tuple[int, Scripted]) -> Callable[[], Engine]:
        waiting = list(engines)

        def start_engine() -> Engine:
            number, engine = waiting.pop(0)
            engine.processes = (number,)
            return engine

        return start_engine

    first = make((11, Scripted(dies=7)), (12, Scripted()))
    replicas = Replicas([first, make((21, Scripted()))], stuck_after=60, restarts=1, remembered=9, started=told.append)
    replicas.start()
    try:
        assert submit(replicas, [7, 7]).result(60) == 14
        assert replicas.processes == (12, 21)
    finally:
        replicas.close()
    assert told == [(11,), (11, 21), (12, 21)]
