"""Rows of equal marks on a board."""

from __future__ import annotations

from collections.abc import Sequence


def winner(rows: Sequence[Sequence[str]], length: int) -> str:
    """The mark that stands `length` times in a row, column or diagonal; "" for none, "." is an empty place."""
    height, width = len(rows), len(rows[0])
    for row in range(height):
        for column in range(width):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                end, side = row + (length - 1) * down, column + (length - 1) * right
                if rows[row][column] == "." or end >= height or not 0 <= side < width:
                    continue
                if len({rows[row + down * step][column + right * step] for step in range(length)}) == 1:
                    return rows[row][column]
    return ""
