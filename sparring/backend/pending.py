"""The result of an operation that was submitted and not yet waited for, and what happens to failures that nobody awaited."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, TypeVar

import anyio

T = TypeVar("T")


class PendingResult(Generic[T]):
    """A `Pending` that is settled once, on the event loop, by whoever runs the operation.

    Any number of tasks may await it, before or after it is settled. Cancelling one of them cancels nothing else.
    """

    __slots__ = ("_error", "_settled", "_value", "name", "retrieved")

    def __init__(self, name: str) -> None:
        self.name = name
        self.retrieved = False
        """Whether somebody awaited the outcome to its end."""
        self._settled = anyio.Event()
        self._value: list[T] = []
        self._error: BaseException | None = None

    @property
    def settled(self) -> bool:
        """Whether the operation has ended, well or not."""
        return self._settled.is_set()

    @property
    def error(self) -> BaseException | None:
        """What the operation failed with; None while it runs and after it succeeded."""
        return self._error

    def succeed(self, value: T) -> None:
        """Settle with a value. Called on the event loop, once."""
        assert not self.settled, f"{self.name} was settled twice"
        self._value.append(value)
        self._settled.set()

    def fail(self, error: BaseException) -> None:
        """Settle with a failure. Called on the event loop, once."""
        assert not self.settled, f"{self.name} was settled twice"
        self._error = error
        self._settled.set()

    async def wait(self) -> T:
        """Wait for the operation and return its value; raises what it failed with."""
        await self._settled.wait()
        self.retrieved = True
        if self._error is not None:
            raise self._error
        return self._value[0]

    def __await__(self) -> Generator[Any, Any, T]:
        return self.wait().__await__()


class Unawaited:
    """The submitted operations of one client whose outcome nobody has taken yet.

    `check()` stands first in every method of the client. A failure that only repeats one that somebody has seen (a step
    refused because the gradient before it failed: the cause is its `__cause__`) is not raised again.
    """

    __slots__ = ("_pending", "_seen")

    def __init__(self) -> None:
        self._pending: list[PendingResult[Any]] = []
        self._seen: list[BaseException] = []

    def track(self, pending: PendingResult[T]) -> PendingResult[T]:
        """Remember an operation until it has succeeded or its failure has been seen."""
        self._pending.append(pending)
        return pending

    def check(self) -> None:
        """Raise the first failure that nobody awaited."""
        ended = [pending for pending in self._pending if pending.settled]
        self._pending = [pending for pending in self._pending if not pending.settled]
        failures = [(pending, pending.error) for pending in ended if pending.error is not None]
        self._seen = (self._seen + [error for pending, error in failures if pending.retrieved and error])[-8:]
        unseen = [
            e for p, e in failures if not p.retrieved and e and not any(e.__cause__ is seen for seen in self._seen)
        ]
        if unseen:
            self._seen.append(unseen[0])
            raise unseen[0]
