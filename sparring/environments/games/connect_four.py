"""Connect four on a small board."""

from __future__ import annotations

from sparring.environments.environment import environment
from sparring.environments.games.lines import winner
from sparring.environments.seat import Seat


@environment(zero_sum=("x", "o"))
async def connect_four(
    task: int, x: Seat, o: Seat, *, rows: int = 4, columns: int = 5, line: int = 4
) -> dict[Seat, float]:
    """A move is a column, numbered from 1, in which the piece falls; `x` begins, `line` in a row win. The winner gets 1, the
    loser -1, both 0 for a full board. Who names no free column, asked twice, forfeits: -1, the other 1. A task is a number."""
    board = [["."] * columns for _ in range(rows)]
    for turn in range(rows * columns):
        mover, other, mark = (x, o, "x") if turn % 2 == 0 else (o, x, "o")
        shown = "\n".join(" ".join(row) for row in board)
        free = [str(column + 1) for column in range(columns) if board[0][column] == "."]
        move = await mover.pick(f"Connect {line}, you are {mark}.\n{shown}", free)
        if move is None:
            return {mover: -1.0, other: 1.0}
        column = int(move) - 1
        landed = max(row for row in range(rows) if board[row][column] == ".")
        board[landed][column] = mark
        if winner(board, line):
            return {mover: 1.0, other: -1.0}
    return {x: 0.0, o: 0.0}
