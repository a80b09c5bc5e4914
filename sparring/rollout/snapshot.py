"""The coordinator's state as bytes, so that a resume need not fold what lies before it.

Derived from the events, and never more true than they are: `SCHEMA` changes with whatever changes the bytes or their meaning,
and a state of another schema is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import msgspec
import numpy as np

from sparring.rollout.bias import Fate, Tally
from sparring.rollout.buffer import BufferState
from sparring.rollout.curriculum import Recent
from sparring.rollout.faults import FaultCounts
from sparring.rollout.fell_back import Broken
from sparring.rollout.league import Table
from sparring.rollout.live import LiveGroup
from sparring.rollout.refill import Barren
from sparring.rollout.trajectory import Batch

SCHEMA = 6


class CoordinatorState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the coordinator has folded, each part as the coordinator names it.

    cursors    (groups admitted, the next turn, each source's cursor)
    fell_back  {policy: (the version that it went on with, the one that this was once more)}
    """

    budget: dict[str, Any]
    ledger: dict[str, Any]
    tallies: Mapping[tuple[str, str, Fate], Tally]
    buffer: BufferState
    groups: dict[int, LiveGroup]
    batches: dict[str, Batch]
    durable: Mapping[str, Mapping[str, Any]]
    evaluated: list[tuple[str, int]]
    checkpoints: dict[str, list[int]]
    broken: dict[str, Mapping[str, Broken]]
    fell_back: dict[str, list[tuple[int, int]]]
    episodes: int
    faults: FaultCounts
    restarts: int
    deaths: dict[tuple[str, int, int, int], list[str]]
    fingerprints: Mapping[str, Any]
    barren: dict[str, Barren]
    cursors: tuple[int, int, list[int]]
    successes: Sequence[Recent | None]
    standings: Table


def packed(state: object) -> bytes:
    """Equal states are equal bytes."""
    return _encoder.encode(state)


def unpacked(blob: bytes | msgspec.Raw) -> CoordinatorState:
    """Raises `msgspec.MsgspecError` for anything but what `packed` gives."""
    return _decoder.decode(blob)


def differing(one: CoordinatorState, other: CoordinatorState) -> list[str]:
    """The names of the parts that differ."""
    return [name for name in one.__struct_fields__ if packed(getattr(one, name)) != packed(getattr(other, name))]


def _plain(value: object) -> bytes:
    assert isinstance(value, np.ndarray), (
        f"{type(value)} in a snapshot"
    )  # msgspec asks only about what it does not know
    little: bytes = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return little


def _made(kind: Any, value: Any) -> Any:
    """An array from its bytes, a counter from its dictionary."""
    if get_origin(kind) is Counter:
        return Counter(msgspec.convert(value, dict[get_args(kind)[0], int]))  # type: ignore[misc]  # known when it runs
    (of,) = get_args(get_args(kind)[1])
    dtype = np.dtype(of)
    return np.frombuffer(value, dtype.newbyteorder("<")).astype(dtype)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(CoordinatorState, dec_hook=_made)
