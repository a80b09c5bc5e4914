"""Versions that groups are played with throughout: kept from a group's admission until nobody plays it any more."""

from __future__ import annotations

from collections.abc import Mapping

from sparring.learner.versions import Versions
from sparring.rollout import Coordinator


class Holds:
    """What each group holds. A resumed run begins with what the groups hold that were being played, which is kept already."""

    def __init__(self, versions: Mapping[str, Versions], coordinator: Coordinator) -> None:
        self._versions, self._coordinator = versions, coordinator
        playing = {number: live for number, live in coordinator.groups.items() if live.playing}
        self._held = {number: coordinator.held(live.admitted) for number, live in playing.items()}

    @property
    def groups(self) -> tuple[int, ...]:
        """Whose versions are kept."""
        return tuple(self._held)

    def take(self, number: int) -> None:
        """Keep the versions of a group that begins; of one that ended at once, nothing."""
        live = self._coordinator.groups.get(number)
        if live is not None and live.playing:
            self._held[number] = self._coordinator.held(live.admitted)
            for policy, version in self._held[number]:
                self._versions[policy].hold(version)

    async def let_go(self, number: int) -> None:
        """Of a group that may still be played, nothing. Waits for clients that are closed."""
        live = self._coordinator.groups.get(number)
        if live is None or not live.playing:
            for policy, version in self._held.pop(number, ()):
                await self._versions[policy].release(version)
