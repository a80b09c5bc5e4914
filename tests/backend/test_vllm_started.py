"""Processes in vLLM's place: which they are, whether they compute, and that one which does not start in time is ended."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.context import SpawnProcess
from threading import Event

import pytest
from psutil import Process

from sparring.backend.vllm.errors import EngineStuck
from sparring.backend.vllm.processes import begun, computed, family, kill, started_within
from sparring.errors import BackendError

SPAWN = multiprocessing.get_context("spawn")


def wait_for_ever() -> None:
    Event().wait()


def start(name: str = "EngineCore") -> SpawnProcess:
    process = SPAWN.Process(target=wait_for_ever, name=name)
    process.start()
    return process


def test_what_began_since_is_found_by_its_name_and_ended_with_what_it_started() -> None:
    before = start()
    assert before.pid is not None
    process, other = start("EngineCore_DP1"), start("another")
    found = begun("EngineCore", besides=frozenset({before.pid}))
    assert [one.pid for one in found] == [process.pid]
    kill(family(found))
    assert not found[0].is_running()
    assert computed(found) == 0, "it is gone"
    assert family(found) == found
    others = [Process(before.pid), *begun("another")]
    assert [one.pid for one in others] == [before.pid, other.pid]
    kill(others)
    assert not any(one.is_running() for one in others)


def test_computation_is_seen() -> None:
    ours = [Process()]
    before = computed(ours)
    while computed(ours) < before + 0.02:
        sum(range(10_000))


@pytest.mark.parametrize("late", [False, True])
def test_what_does_not_start_in_time_is_ended(*, late: bool) -> None:
    """Also what has a process only once its time is over."""
    threads = threading.active_count()
    with (
        pytest.raises(EngineStuck, match=r"did not start within 0\.1 s") as raised,
        started_within(0.1, lambda: begun("EngineCore")),
    ):
        Event().wait(0.4 if late else 0)
        process = start()
        process.join(60)
        raise RuntimeError(f"it ended with {process.exitcode}")
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert (begun("EngineCore"), threading.active_count()) == ([], threads)


def test_what_fails_in_time_fails_as_it_did() -> None:
    threads = threading.active_count()
    with pytest.raises(BackendError, match="no room"), started_within(60, list):
        raise BackendError("no room")
    with started_within(60, list):
        pass
    assert threading.active_count() == threads
