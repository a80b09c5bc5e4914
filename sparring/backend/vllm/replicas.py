"""Several engines that draw from the same versions: a request goes to one of them, a version to all.

A version counts as installed once every engine in the rotation has it, so whoever is told of it finds it wherever a request may
go. An engine that dies is started again by its thread, which asks it again what was asked. One that cannot be started again, or
does not take a version that others take, leaves the rotation for good and is ended; what it was asked, others are asked. The
last one stays, and its failure is the caller's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, Generic, TypeVar

from sparring.backend.vllm.engine import CLOSED, Ask, Engine, VllmThread
from sparring.backend.vllm.errors import EngineLost
from sparring.backend.vllm.routing import Routing
from sparring.errors import BackendError, SparringError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call(Generic[T]):
    """A request: `outer` is settled once, with what the last engine that was asked says."""

    ask: Ask[T]
    chain: Sequence[bytes]
    work: int
    outer: Future[T] = field(default_factory=Future)


class Replicas:
    """Engines by number, each with a thread of its own. `start`, `install` and `close` block; the rest may be called from any
    thread. `left` counts the engines that left the rotation."""

    def __init__(
        self,
        start_engines: Sequence[Callable[[], Engine]],
        *,
        stuck_after: float,
        restarts: int,
        remembered: int,
        start_within: float = 600.0,
        started: Callable[[tuple[int, ...]], None] = lambda processes: None,
    ) -> None:
        self._started = started
        self._threads = [
            VllmThread(
                start,
                stuck_after=stuck_after,
                restarts=restarts,
                start_within=start_within,
                started=partial(self._began, index),
            )
            for index, start in enumerate(start_engines)
        ]
        self._lock = threading.Lock()
        self._routing = Routing(len(self._threads), remembered=remembered)
        self._processes: list[tuple[int, ...]] = [()] * len(self._threads)
        self._rotation: list[int] = []
        self.left = 0

    @property
    def threads(self) -> tuple[VllmThread, ...]:
        """What runs the engines, by their numbers."""
        return tuple(self._threads)

    @property
    def died(self) -> int:
        """How often an engine was found dead or stuck."""
        return sum(thread.died for thread in self._threads)

    @property
    def drawing(self) -> int:
        """Tokens drawn so far for requests under way."""
        return sum(thread.drawing for thread in self._threads)

    @property
    def rotation(self) -> tuple[int, ...]:
        """The engines that requests may go to."""
        with self._lock:
            return tuple(self._rotation)

    @property
    def processes(self) -> tuple[int, ...]:
        """The numbers of all present engines' processes."""
        return tuple(number for thread in self._threads for number in thread.processes)

    def start(self) -> None:
        """Start one after the other. Raises as `VllmThread.start`; then none is left."""
        for index, thread in enumerate(self._threads):
            try:
                thread.start()
            except BaseException:
                self.close()
                raise
            with self._lock:
                self._rotation.append(index)

    def close(self) -> None:
        """End requests, engines, processes and threads."""
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.join()

    def submit(self, ask: Ask[T], *, chain: Sequence[bytes], work: int) -> Future[T]:
        """Ask it of one engine, chosen by `Routing`; cancelling the future ends the request there. Raises `BackendError` once
        closed."""
        call = _Call(ask=ask, chain=chain, work=work)
        self._send(call)
        return call.outer

    def everywhere(self, ask: Ask[None], *, then: Callable[[], None]) -> None:
        """Ask it of every engine in the rotation, and call `then`, once, when it was done everywhere or cannot be done; of an
        engine that is ended there is nothing to wait for."""
        asked = list(self._ask_all(ask).values())
        left = count(len(asked) - 1, -1)
        for future in asked:
            future.add_done_callback(lambda _: then() if next(left) == 0 else None)
        if not asked:
            then()

    def install(self, ask: Ask[T], check: Callable[[T], None], *, within: float) -> None:
        """Ask it of every engine in the rotation; `check` raises for an answer that will not do. An engine that fails where
        others do not leaves; where all fail, the first failure is raised and none leaves."""
        until = monotonic() + within
        asked = self._ask_all(ask)
        if not asked:
            raise BackendError(CLOSED)
        failed = {index: error for index, future in asked.items() if (error := _tried(future, check, until, within))}
        if len(failed) == len(asked):
            raise next(iter(failed.values()))
        for index, error in failed.items():
            self._leave(index, error)

    def _ask_all(self, ask: Ask[T]) -> dict[int, Future[T]]:
        """Ask it of every engine in the rotation but those that are ended by now."""
        asked: dict[int, Future[T]] = {}
        for index in self.rotation:
            with suppress(BackendError):
                asked[index] = self._threads[index].submit(ask)
        return asked

    def _send(self, call: _Call[Any]) -> None:
        """One that is ended after it was chosen has left the rotation before: another one is chosen then."""
        while True:
            index = self._choose(call)
            try:
                inner = self._threads[index].submit(call.ask)
                break
            except BaseException as error:
                with self._lock:
                    self._routing.ended(index, call.work)
                    gone = index not in self._rotation
                if not (gone and isinstance(error, BackendError)):
                    raise
        inner.add_done_callback(partial(self._answered, call, index))
        call.outer.add_done_callback(lambda outer: inner.cancel() if outer.cancelled() else None)

    def _choose(self, call: _Call[Any]) -> int:
        with self._lock:
            if not self._rotation:
                raise BackendError("vLLM: it was not started, or did not start")
            ready = [index for index in self._rotation if not self._threads[index].restarting]
            return self._routing.choose(call.chain, call.work, ready or self._rotation)

    def _answered(self, call: _Call[Any], index: int, inner: Future[Any]) -> None:
        """On the engine's thread, or that of whoever cancelled it."""
        with self._lock:
            self._routing.ended(index, call.work)
        if call.outer.cancelled():
            return
        error = None if inner.cancelled() else inner.exception()
        lost = inner.cancelled() and index not in self.rotation
        if lost or (isinstance(error, EngineLost) and self._leave(index, error)):
            try:
                self._send(call)
                return
            except BackendError as closed:
                error = closed
        with suppress(InvalidStateError):  # cancelled meanwhile
            if error is not None:
                call.outer.set_exception(error)
            elif inner.cancelled():
                call.outer.cancel()
            else:
                call.outer.set_result(inner.result())

    def _leave(self, index: int, why: BaseException) -> bool:
        """Take an engine out of the rotation and end it, if it is not the last; whether another can be asked."""
        with self._lock:
            if self._rotation == [index]:
                return False
            if index not in self._rotation:
                return True
            self._rotation.remove(index)
            self.left += 1
            rest = len(self._rotation)
        _LOG.warning("vLLM replica %d leaves the rotation, %d go on: %s", index, rest, why)
        self._threads[index].end()
        return True

    def _began(self, index: int, processes: tuple[int, ...]) -> None:
        with self._lock:
            self._routing.forget(index)
            self._processes[index] = processes
            every = tuple(number for numbers in self._processes for number in numbers)
            self._started(every)


def _tried(future: Future[T], check: Callable[[T], None], until: float, within: float) -> SparringError | None:
    """What is wrong with the answer, if anything is."""
    try:
        error = future.exception(timeout=max(0.0, until - monotonic()))
        if error is None:
            check(future.result())
    except TimeoutError:
        future.cancel()
        error = BackendError(f"vLLM did not answer within {within:.0f} s")
    except CancelledError:
        error = BackendError("the engine was ended meanwhile")
    except SparringError as wrong:
        error = wrong
    if error is None or isinstance(error, SparringError):
        return error
    wrapped = BackendError(f"vLLM failed: {error!r}")
    wrapped.__cause__ = error
    return wrapped
