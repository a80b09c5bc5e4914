"""Weights that a sampling client has opened: which they are, and that they are let go of once."""

from __future__ import annotations

from collections.abc import Callable

from sparring.errors import BackendError


class Opened:
    """What all clients have in common. `version` tells which weights the next token is started with."""

    def __init__(self, version: Callable[[], int], release: Callable[[], None]) -> None:
        self._version, self._release = version, release
        self._closed = False

    @property
    def version(self) -> int:
        """The version that was opened, or of weights that follow the model, the one they have now."""
        return self._version()

    async def aclose(self) -> None:
        """Let go of the weights; further calls raise `BackendError`."""
        if not self._closed:
            self._closed = True
            self._release()

    def _refuse_if_closed(self, name: str) -> None:
        if self._closed:
            raise BackendError(f"{name}: this sampling client was closed")
