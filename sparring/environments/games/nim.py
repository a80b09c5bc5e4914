"""Nim (C. L. Bouton, 1901): who takes the last object wins. The side to move wins unless the heaps' binary sum is zero."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.environments.environment import environment
from sparring.environments.seat import Seat


@dataclass(frozen=True, slots=True)
class Heaps:
    """How many objects each heap has at the start."""

    heaps: tuple[int, ...] = (1, 2, 3)


@environment(zero_sum=("first", "second"))
async def nim(task: Heaps, first: Seat, second: Seat) -> dict[Seat, float]:
    """A move is `A1`: one object from heap A. The winner gets 1, the loser -1. Who names no possible move, asked twice,
    forfeits: -1, the other 1."""
    heaps = list(task.heaps)
    mover, other = first, second
    while any(heaps):
        shown = ", ".join(f"{_name(heap)}: {count}" for heap, count in enumerate(heaps))
        moves = {
            f"{_name(heap)}{take}": (heap, take) for heap, count in enumerate(heaps) for take in range(1, count + 1)
        }
        move = await mover.pick(f"Nim. Who takes the last one wins. Heaps: {shown}.", tuple(moves))
        if move is None:
            return {mover: -1.0, other: 1.0}
        heap, take = moves[move]
        heaps[heap] -= take
        mover, other = other, mover
    return {mover: -1.0, other: 1.0}


def _name(heap: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[heap]
