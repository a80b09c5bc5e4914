"""Tic-tac-toe, which is a draw where both play well."""

from __future__ import annotations

from sparring.environments.environment import environment
from sparring.environments.games.lines import winner
from sparring.environments.seat import Seat


@environment(zero_sum=("x", "o"))
async def tic_tac_toe(task: int, x: Seat, o: Seat) -> dict[Seat, float]:
    """Places are numbered 1 to 9; `x` begins. The winner gets 1 and the loser -1, both 0 for a draw. Who names no free place,
    asked twice, forfeits: -1, the other 1. A task is any number."""
    places = [str(number) for number in range(1, 10)]
    free = list(places)
    for turn in range(9):
        mover, other, mark = (x, o, "x") if turn % 2 == 0 else (o, x, "o")
        board = "\n".join(" ".join(places[start : start + 3]) for start in (0, 3, 6))
        move = await mover.pick(f"Tic-tac-toe, you are {mark}.\n{board}", free)
        if move is None:
            return {mover: -1.0, other: 1.0}
        free.remove(move)
        places[int(move) - 1] = mark
        shown = ["." if place.isdigit() else place for place in places]
        if winner([shown[start : start + 3] for start in (0, 3, 6)], 3):
            return {mover: 1.0, other: -1.0}
    return {x: 0.0, o: 0.0}
