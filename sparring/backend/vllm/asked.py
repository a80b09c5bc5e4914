"""A request that vLLM's thread works on and a task on the event loop waits for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from sparring.backend.pending import PendingResult
from sparring.errors import BackendError, SparringError

T = TypeVar("T")


class Post(Protocol):
    """What settles results on the event loop; see `EngineThread`."""

    def succeed(self, pending: PendingResult[T], value: T) -> None: ...
    def fail(self, pending: PendingResult[Any], error: BaseException) -> None: ...


class Request(Generic[T]):
    """`pending` settles with `read(answer)`. `done` is called once, on vLLM's thread, when vLLM works on it no more."""

    def __init__(
        self, name: str, post: Post, future: Future[Any], *, read: Callable[[Any], T], done: Callable[[], None]
    ) -> None:
        self.pending: PendingResult[T] = PendingResult(name)
        self._post, self._future = post, future
        self._read, self._done = read, done
        self._cancelled = False
        future.add_done_callback(self._settle)

    def cancel(self) -> None:
        """Nobody waits for it any more: abort it."""
        self._cancelled = True
        self._future.cancel()

    def _settle(self, future: Future[Any]) -> None:
        self._done()
        if self._cancelled:
            return
        if future.cancelled():
            self._post.fail(self.pending, BackendError(f"{self.pending.name}: the backend was closed before it ended"))
            return
        error = future.exception()
        try:
            if error is None:
                self._post.succeed(self.pending, self._read(future.result()))
                return
        except SparringError as unreadable:
            error = unreadable
        self._post.fail(self.pending, failure(self.pending.name, error))


def failure(name: str, error: BaseException) -> SparringError:
    """What failed inside vLLM, as one of this library's errors."""
    if isinstance(error, SparringError):
        return error
    wrapped = BackendError(f"{name}: vLLM failed: {error!r}")
    wrapped.__cause__ = error
    return wrapped
