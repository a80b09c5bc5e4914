"""The published weights of one model, kept as long as somebody samples from them. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.backend.local.lora import Weights
from sparring.errors import SettingError


@dataclass(slots=True)
class _Held:
    weights: Weights
    users: int = 0


class Versions:
    """Snapshots by version number. The newest stays; an older one goes when its last user lets go of it."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._closed = False

    @property
    def numbers(self) -> tuple[int, ...]:
        """The versions that can be sampled from, oldest first."""
        return tuple(sorted(self._held))

    def publish(self, version: int, weights: Weights) -> None:
        """Add a version newer than all others; older ones without users are freed."""
        assert all(version > number for number in self._held), (version, self.numbers)
        self._held[version] = _Held(weights)
        self._free()

    def take(self, version: int) -> Weights:
        """The weights of a version, held until as many calls of `release`. Raises `SettingError` for one that is not there."""
        if version not in self._held:
            raise SettingError(f"version={version!r} is not published or was freed; there are {list(self.numbers)}")
        self._held[version].users += 1
        return self._held[version].weights

    def release(self, version: int) -> None:
        """Undo one `take`."""
        held = self._held[version]
        assert held.users > 0, f"version {version} was released more often than taken"
        held.users -= 1
        self._free()

    def close(self) -> None:
        """The newest goes with its last user too."""
        self._closed = True
        self._free()

    def _free(self) -> None:
        newest = None if self._closed else max(self._held)
        self._held = {number: held for number, held in self._held.items() if held.users > 0 or number == newest}
