"""The published weights of one model, kept as long as somebody samples from them. Engine thread only."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.backend.local.snapshots import Snapshot
from sparring.errors import SettingError


@dataclass(slots=True)
class _Held:
    snapshot: Snapshot
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

    def publish(self, version: int, snapshot: Snapshot) -> None:
        """Add a version newer than all others; older ones without users are freed."""
        assert all(version > number for number in self._held), (version, self.numbers)
        self._held[version] = _Held(snapshot)
        self._free()

    def take(self, version: int) -> Snapshot:
        """The snapshot of a version, held until as many calls of `release`. Raises `SettingError` for one that is not there."""
        if version not in self._held:
            raise SettingError(f"version={version!r} is not published or was freed; there are {list(self.numbers)}")
        self._held[version].users += 1
        return self._held[version].snapshot

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
        idle = [number for number, held in self._held.items() if held.users == 0 and number != newest]
        for number in idle:
            self._held.pop(number).snapshot.free()
