"""Snapshots held against what the events before them come to."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sparring.learner.lines import Lines
from sparring.learner.snapshots import RunState, read
from sparring.rollout import Coordinator
from sparring.rollout.events import AnyEvent, Checkpointed
from sparring.rollout.snapshot import differing


class SnapshotCheck:
    """Told of every event in order; `agreed` counts the snapshots that are what they should be. One of another schema is not
    looked at."""

    def __init__(self, snapshots: Iterable[tuple[int, bytes]]) -> None:
        self.agreed = 0
        self._lines = Lines()
        self._states: dict[str, RunState] = {}
        self._damaged: list[str] = []
        for segment, blob in snapshots:
            try:
                state = read(blob)
            except msgspec.MsgspecError as error:
                self._damaged.append(f"the snapshot after segment {segment} is damaged: {error}")
                continue
            if state is not None:
                self._states[state.name] = state

    def after(self, event: AnyEvent, coordinator: Coordinator) -> list[str]:
        """What is wrong with the snapshot that was taken after this event, which the coordinator has applied."""
        self._lines.of(event)
        if not isinstance(event, Checkpointed):
            return []
        state = self._states.pop(f"{event.policy}/{event.step}", None)
        if state is None:
            return []
        try:
            parts = differing(state.unpacked(), coordinator.state())
        except msgspec.MsgspecError as error:
            return [f"snapshot {state.name} is damaged: {error}"]
        versions = {policy: coordinator.budget.version(policy) for policy in coordinator.schedule.bounds}
        parts += ["versions"] * (versions != state.versions) + ["lines"] * (self._lines.state() != state.lines)
        self.agreed += not parts
        return [f"snapshot {state.name} differs from what the events before it come to: {', '.join(parts)}"] * bool(
            parts
        )

    def left(self) -> list[str]:
        """After the last event: what is wrong with the others."""
        return [*self._damaged, *(f"snapshot {name}: the journal has no such checkpoint" for name in self._states)]
