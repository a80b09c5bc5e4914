"""The processes that vLLM starts: which they are, whether they compute, and that they end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

from psutil import Error, NoSuchProcess, Process, wait_procs

from sparring.backend.vllm.errors import EngineStuck

_AGAIN = 1.0
"""Seconds after which an engine that is late is looked for once more: it may not have had a process when it became late."""


def begun(name: str, *, besides: frozenset[int] = frozenset()) -> list[Process]:
    """The processes that multiprocessing started here under names that begin so, but those numbers."""
    there = [child for child in multiprocessing.active_children() if child.name.startswith(name)]
    found: list[Process] = []
    for number in [child.pid for child in there if child.pid is not None and child.pid not in besides]:
        try:
            found.append(Process(number))
        except NoSuchProcess:
            continue
    return found


def family(processes: Sequence[Process]) -> list[Process]:
    """The processes and all that they started."""
    found = list(processes)
    for process in processes:
        try:
            found += process.children(recursive=True)
        except NoSuchProcess:
            continue
    return found


def computed(processes: Sequence[Process]) -> float:
    """Seconds that they have computed, on all cores together; nothing for one that ended."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except Error:
            continue
        total += times.user + times.system
    return total


def kill(processes: Sequence[Process]) -> None:
    """End them at once, and wait until they are gone."""
    _strike(processes)
    wait_procs(list(processes), timeout=10)


@contextmanager
def started_within(seconds: float, started: Callable[[], Sequence[Process]]) -> Iterator[None]:
    """Where the block takes longer, what is `started` by then, or after that, is killed, and what the block raises then becomes
    `EngineStuck`."""
    left, late = Event(), Event()

    def watch() -> None:
        if left.wait(seconds):
            return
        late.set()
        _strike(family(started()))
        while not left.wait(_AGAIN):
            _strike(family(started()))

    watching = Thread(target=watch, name="sparring vllm start", daemon=True)
    watching.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise EngineStuck(f"vLLM did not start within {seconds:g} s, and was ended") from error
        raise
    finally:
        left.set()
        watching.join()


def _strike(processes: Sequence[Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except NoSuchProcess:
            continue
