"""A run's state at a checkpoint, as it lies beside the journal: which of them can be used, and which are still needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from sparring.learner.lines import LinesState
from sparring.rollout.snapshot import SCHEMA, CoordinatorState, unpacked


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """What the events come to, up to the checkpoint of `policy` after `step` steps. `versions` are the steps that each policy
    had made, `coordinator` is a packed `CoordinatorState`."""

    policy: str
    step: int
    versions: dict[str, int]
    lines: LinesState
    coordinator: msgspec.Raw
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        return f"{self.policy}/{self.step}"

    def unpacked(self) -> CoordinatorState:
        """Raises `msgspec.MsgspecError` where it is damaged."""
        return unpacked(self.coordinator)


class _Schema(msgspec.Struct):
    schema: int


def read(blob: bytes) -> RunState | None:
    """None for a state of another schema. Raises `msgspec.MsgspecError` for what is none."""
    return _states.decode(blob) if _schemas.decode(blob).schema == SCHEMA else None


def readable(found: Iterable[tuple[int, bytes]]) -> list[tuple[int, RunState]]:
    """Those that can be used: one of another schema or a damaged one is left out, as the journal has all that it says."""
    states: list[tuple[int, RunState]] = []
    for segment, blob in found:
        try:
            state = read(blob)
        except msgspec.MsgspecError:
            continue
        if state is not None:
            states.append((segment, state))
    return states


def needed(
    found: Mapping[str, Mapping[str, int]], since: Mapping[str, int], checkpoints: Mapping[str, Collection[int]]
) -> list[str]:
    """The names of the states that a resume may have to start from, oldest first.

    `found` are each one's versions, oldest first. A resume starts from a state with no policy beyond the checkpoint that its
    model starts from: one of `checkpoints`, and none before `since`. So a state is needed where one of these lies between it
    and the next newer one that is kept.
    """
    kept: list[str] = []
    newer: Mapping[str, int] | None = None
    for name, at in reversed(list(found.items())):
        if newer is None or any(
            at[policy] <= step < newer[policy] and step >= since[policy]
            for policy, steps in checkpoints.items()
            for step in steps
        ):
            kept.append(name)
            newer = at
    return kept[::-1]


_states = msgspec.msgpack.Decoder(RunState)
_schemas = msgspec.msgpack.Decoder(_Schema)
