"""The engine thread: the one thread that touches base weights and adapters.

It waits for a submitted operation or for `wake()`. Operations run in the order in which they were submitted and go before
background steps (decoding); an operation that calls `interleave()` between its parts lets background steps run there. What
settles on the event loop goes through a second thread, so that the engine never waits for a busy loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any, Protocol, TypeVar

import anyio
from anyio import from_thread, lowlevel, to_thread

from sparring.backend.pending import PendingResult
from sparring.errors import BackendError

T = TypeVar("T")


class Background(Protocol):
    """Work that runs when no operation waits, one step at a time, on the engine thread."""

    def step(self) -> bool:
        """Do one unit of work; False when there is nothing to do (then `wake()` is needed before the next call)."""
        ...

    def fail(self, error: BaseException) -> None:
        """A step raised `error`, or the engine ends: fail every request that is carried. Must not raise."""
        ...


@dataclass(frozen=True, slots=True)
class _Operation:
    run: Callable[[], Any]
    pending: PendingResult[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Operations that wait for the engine thread, results that wait for the event loop, and how many take turns between
    operations (samplers). For how many seconds the thread has worked so far: on operations, and on background steps, those
    between two parts of an operation included. `parts` of operations and background steps are done so far: where it stands
    still, nothing is computed."""

    waiting: int
    undelivered: int
    background: int
    operation_seconds: float
    background_seconds: float
    parts: int


class EngineThread:
    """An asynchronous context manager: entering starts the thread, leaving ends it and fails what had not run.

    `decode_share` is how many background steps run in each `interleave()`. All methods may be called from the event loop;
    `interleave`, `post`, `succeed` and `fail` from the engine thread too.
    """

    def __init__(self, *, decode_share: int = 1, on_start: Callable[[], None] = lambda: None) -> None:
        self._decode_share = decode_share
        self._on_start = on_start
        self._operations: deque[_Operation] = deque()
        self._background: list[Background] = []
        self._changed = threading.Condition()
        self._woken = False
        self._closing = False
        self._death: BaseException | None = None
        self._operation_seconds = self._background_seconds = 0.0
        self._parts = 0
        self._outbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sparring engine", daemon=False)
        self._poster = threading.Thread(target=self._deliver, name="sparring engine results", daemon=False)

    async def __aenter__(self) -> EngineThread:
        self._token = lowlevel.current_token()
        self._thread.start()
        self._poster.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._thread.join)
            await to_thread.run_sync(self._poster.join)

    @property
    def closed(self) -> bool:
        """Whether nothing can be submitted any more (or not yet)."""
        return self._closing or self._death is not None or not self._thread.is_alive()

    def statistics(self) -> EngineStatistics:
        """How it stands; read from any thread, each number by itself."""
        return EngineStatistics(
            waiting=len(self._operations),
            undelivered=self._outbox.qsize(),
            background=len(self._background),
            operation_seconds=self._operation_seconds,
            background_seconds=self._background_seconds,
            parts=self._parts,
        )

    def submit(self, run: Callable[[], T], name: str) -> PendingResult[T]:
        """Queue `run` for the engine thread; the result settles on the event loop. Raises `BackendError` once closed."""
        pending: PendingResult[T] = PendingResult(name)
        with self._changed:
            self._refuse_if_over(name)
            self._operations.append(_Operation(run, pending))
            self._changed.notify_all()
        return pending

    def register(self, background: Background) -> None:
        """Add work for the time between operations; several take turns."""
        with self._changed:
            self._refuse_if_over("register")
            self._background.append(background)
            self._woken = True
            self._changed.notify_all()

    def unregister(self, background: Background) -> None:
        """Remove work that `register` added. Called on the engine thread or while the background has nothing to do."""
        with self._changed:
            self._background.remove(background)

    def wake(self) -> None:
        """There is background work again. Called from any thread after the work was queued. Raises once closed."""
        with self._changed:
            self._refuse_if_over("wake")
            self._woken = True
            self._changed.notify_all()

    def interleave(self) -> None:
        """Between two parts of an operation: run up to `decode_share` background steps. Engine thread only.

        Raises `BackendError` when the engine is being closed, so that a long operation ends early.
        """
        if self._closing:
            raise BackendError("the backend was closed while an operation ran")
        self._parts += 1
        for _ in range(self._decode_share):
            if not self._background_step():
                return

    def post(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the event loop, soon, in the order of the calls. Never blocks."""
        self._outbox.put(callback)

    def succeed(self, pending: PendingResult[T], value: T) -> None:
        """Settle `pending` on the event loop."""
        self.post(lambda: pending.succeed(value))

    def fail(self, pending: PendingResult[Any], error: BaseException) -> None:
        """Settle `pending` with a failure on the event loop."""
        self.post(lambda: pending.fail(error))

    def _refuse_if_over(self, name: str) -> None:
        if self._death is not None:
            raise BackendError(f"{name}: the engine thread died: {self._death!r}") from self._death
        if self._closing or not self._thread.is_alive():
            raise BackendError(f"{name}: the backend is closed (its `async with` block was left, or never entered)")

    def _run(self) -> None:
        try:
            self._on_start()
            while (operation := self._next()) is not None:
                self._perform(operation)
            reason: BaseException = BackendError("the backend was closed before this ran")
        except BaseException as error:  # noqa: BLE001 - a dead engine must fail its waiters, whatever killed it
            self._death = reason = error
        with self._changed:
            self._closing = True
            left, self._operations = list(self._operations), deque()
        for background in self._background:
            background.fail(reason)
        for operation in left:
            self.fail(operation.pending, reason)
        self._outbox.put(None)

    def _next(self) -> _Operation | None:
        """The next operation, running background steps until there is one; None when closing."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._closing or self._operations or self._woken))
                if self._closing:
                    return None
                if self._operations:
                    return self._operations.popleft()
            self._background_step()

    def _background_step(self) -> bool:
        """One step of the first background that has work; that one goes to the end of the line. False when none has."""
        with self._changed:
            self._woken = False
        for background in list(self._background):
            began = monotonic()
            try:
                worked = background.step()
            except Exception as error:  # noqa: BLE001 - crosses threads: the requests that were carried get it
                background.fail(error)
                worked = True
            if worked:
                self._background_seconds += monotonic() - began
                self._parts += 1
                self._background.remove(background)
                self._background.append(background)
                with self._changed:
                    self._woken = True
                return True
        return False

    def _perform(self, operation: _Operation) -> None:
        began = monotonic() - self._background_seconds
        settle: Callable[[], None]
        try:
            settle = partial(self.succeed, operation.pending, operation.run())
        except Exception as error:  # noqa: BLE001 - crosses threads: the waiter gets it
            settle = partial(self.fail, operation.pending, error)
        self._operation_seconds += monotonic() - self._background_seconds - began
        self._parts += 1
        settle()

    def _deliver(self) -> None:
        """The second thread: hand settled results to the event loop, all that have gathered at once."""
        while True:
            batch = [self._outbox.get()]
            while not self._outbox.empty():
                batch.append(self._outbox.get())
            callbacks = [callback for callback in batch if callback is not None]
            try:
                from_thread.run_sync(_call_all, callbacks, token=self._token)
            except anyio.RunFinishedError:
                return  # the loop is gone, and with it everyone who could wait
            if len(callbacks) < len(batch):
                return


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()
