"""The operations that one client submits to the engine thread, in the order of the calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sparring.arrays import I32
from sparring.backend.datum import Datum, ValueDatum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.thread import EngineThread
from sparring.backend.pending import PendingResult, Unawaited
from sparring.errors import BackendError, SettingError

T = TypeVar("T")


class Operations:
    """Submits, raises failures that nobody awaited, and refuses everything after the model `name` was unloaded."""

    def __init__(self, engine: EngineThread, name: str) -> None:
        self._engine, self._name = engine, name
        self._unawaited = Unawaited()
        self._unloaded = False

    def submit(self, name: str, run: Callable[[], T]) -> PendingResult[T]:
        """Queue `run` for the engine thread."""
        self.check()
        return self.follow(self._engine.submit(run, name))

    def unload(self, run: Callable[[], None]) -> PendingResult[None]:
        """Queue the last operation."""
        pending = self.submit("unload", run)
        self._unloaded = True
        return pending

    def follow(self, pending: PendingResult[T]) -> PendingResult[T]:
        """Let a failure of an operation that others submitted too be raised by the next call, if nobody awaits it."""
        return self._unawaited.track(pending)

    def check(self) -> None:
        """Raises `BackendError` after unloading, and the first failure that nobody awaited."""
        self.refuse_if_unloaded()
        self._unawaited.check()

    def refuse_if_unloaded(self) -> None:
        """Raises `BackendError`."""
        if self._unloaded:
            raise BackendError(f"model {self._name!r} was unloaded; create it again, from a state if it saved one")


def check_fits(data: Sequence[Datum | ValueDatum], base: BaseModel) -> None:
    """Raises `SettingError` naming a datum that is longer than the base's context, or a token that is not in its vocabulary."""
    for index, datum in enumerate(data):
        if len(datum.tokens) > base.context_length:
            raise SettingError(
                f"datum {index} has {len(datum.tokens)} tokens; the model's context holds {base.context_length}"
            )
        _check_ids(datum.tokens, base, f"datum {index} holds token")
        if isinstance(datum, Datum) and datum.soft_targets is not None:
            _check_ids(datum.soft_targets.tokens[datum.mask], base, f"datum {index} has soft target")


def _check_ids(tokens: I32, base: BaseModel, where: str) -> None:
    bad = tokens[(tokens < 0) | (tokens >= base.vocabulary)]
    if len(bad):
        raise SettingError(f"{where} {int(bad[0])!r}; this model's are 0 to {base.vocabulary - 1}")
