"""Charts beside and below each other in one picture, and curves over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sparring.learner.chart import Series, line_chart

WIDTH, HEIGHT = 420, 220


def over_seeds(label: str, at: Sequence[int], seeds: Sequence[Sequence[float]], *, dots: bool = False) -> Series:
    """The mean and the range; each seed has a value at each place."""
    columns = list(zip(at, zip(*seeds, strict=True), strict=True))
    return Series(
        label=label,
        points=[(place, fmean(column)) for place, column in columns],
        band=[(place, min(column), max(column)) for place, column in columns],
        dots=dots,
    )


def panel(title: str, series: Sequence[Series], y: tuple[float | None, float | None], axis: str = "steps") -> str:
    """One chart of a picture."""
    return line_chart(title, series, width=WIDTH, height=HEIGHT, y=y, axis=axis, alone=True)


def picture(rows: Sequence[Sequence[str]]) -> str:
    """An SVG file of these panels."""
    placed = [
        one.replace("<svg ", f'<svg x="{column * WIDTH}" y="{row * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for row, panels in enumerate(rows)
        for column, one in enumerate(panels)
    ]
    size = f'viewBox="0 0 {WIDTH * max(map(len, rows))} {HEIGHT * len(rows)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(placed)}</svg>\n'
