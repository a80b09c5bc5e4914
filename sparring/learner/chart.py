"""Line charts and histograms as SVG text, drawn here: no library, no script, no font from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

Point = tuple[float, float]

_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 18.0, 54.0, 26.0
_MOST_TARGETS = 400
"""Points beyond which only some carry a tooltip."""

COLOURS = """\
--ink:#1c2024;--muted:#5f6872;--grid:#e3e6ea;--surface:#ffffff;--s1:#2463c8;--s2:#b4511a;--s3:#177a50;--s4:#7a46b8;"""
DARK_COLOURS = """\
--ink:#e8eaed;--muted:#9aa4af;--grid:#2f353d;--surface:#181b20;--s1:#7fb0ff;--s2:#f2a766;--s3:#63cf9f;--s4:#c4a1f5;"""
STYLE = """\
.chart text{font:12px system-ui,sans-serif;fill:var(--muted)}.chart .title{font-size:14px;font-weight:600;fill:var(--ink)}
.chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--muted)}.chart .line{fill:none;stroke-width:2;stroke-linejoin:round}
.chart .band{opacity:.16;stroke:none}.chart .target{fill:transparent}
.chart .s1{stroke:var(--s1)}.chart .s2{stroke:var(--s2)}.chart .s3{stroke:var(--s3)}.chart .s4{stroke:var(--s4)}
.chart .f1{fill:var(--s1)}.chart .f2{fill:var(--s2)}.chart .f3{fill:var(--s3)}.chart .f4{fill:var(--s4)}
.chart .thin{stroke-width:1.5;opacity:.7}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve. `band` are (x, low, high); `dots` marks each point; `thin` draws it as background to another one."""

    label: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    thin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The chart's rectangle in pixels and the ranges of its axes."""

    width: float
    height: float
    x: Point
    y: Point

    def at(self, x: float, y: float) -> Point:
        """Where a value lies, in pixels."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        inner_width, inner_height = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return _LEFT + across * inner_width, self.height - _BOTTOM - up * inner_height


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    width: int = 420,
    height: int = 220,
    y: tuple[float | None, float | None] = (None, None),
    axis: str = "steps",
    alone: bool = False,
) -> str:
    """One chart as an `<svg>` element. `y` fixes the ends of the vertical axis (None: from the data).

    Colours come from the page's variables; `alone` puts them, for light and dark, into the picture itself. A chart without
    points says so.
    """
    kept = [_finite(one) for one in series]
    shown = [one for one in kept if one.points]
    frame = _frame(shown, width, height, y)
    parts = [
        _opening(title, width, height),
        _style() if alone else "",
        f'<rect width="{width}" height="{height}" fill="var(--surface)"/>' if alone else "",
        _heading(title),
        *(_axes(frame, axis) if shown else [f'<text x="12" y="{height / 2:.0f}">not measured</text>']),
        *_legend(shown),
    ]
    for number, one in enumerate(shown):
        parts += _curve(one, number % 4 + 1, frame)
    return "".join([*parts, "</svg>"])


def histogram(title: str, counts: Mapping[int, float], *, width: int = 420, height: int = 220, axis: str) -> str:
    """A bar for each whole number, as high as its share of all that was counted. Nothing counted says so."""
    total = sum(counts.values())
    parts = [_opening(title, width, height), _heading(title)]
    if not total:
        return "".join([*parts, f'<text x="12" y="{height / 2:.0f}">not measured</text></svg>'])
    frame = Frame(width=width, height=height, x=(min(counts) - 0.5, max(counts) + 0.5), y=(0.0, 1.0))
    parts += _axes(frame, axis)
    for number, count in sorted(counts.items()):
        left, top = frame.at(number - 0.3, count / total)
        right, base = frame.at(number + 0.3, 0.0)
        said = escape(f"{number} {axis}: {count / total:.1%}, {number_text(count)}")
        size = f'width="{right - left:.1f}" height="{base - top:.1f}"'
        parts.append(f'<rect class="f1" x="{left:.1f}" y="{top:.1f}" {size}><title>{said}</title></rect>')
    return "".join([*parts, "</svg>"])


def _opening(title: str, width: int, height: int) -> str:
    spelled = f'role="img" aria-label="{escape(title, quote=True)}"'
    return f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {spelled}>'


def _heading(title: str) -> str:
    return f'<text class="title" x="12" y="20">{escape(title)}</text>'


def _style() -> str:
    dark = f"@media(prefers-color-scheme:dark){{svg{{{DARK_COLOURS}}}}}"
    return f"<style>svg{{{COLOURS}}}{dark}{STYLE}</style>"


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in series.points if isfinite(y)]
    band = [(x, low, high) for x, low, high in series.band if isfinite(low) and isfinite(high)]
    return Series(label=series.label, points=points, band=band, dots=series.dots, thin=series.thin)


def _frame(series: Sequence[Series], width: int, height: int, y: tuple[float | None, float | None]) -> Frame:
    xs = [x for one in series for x, _ in one.points] or [0.0]
    ys = [value for one in series for _, value in one.points]
    ys += [edge for one in series for _, low, high in one.band for edge in (low, high)]
    low = y[0] if y[0] is not None else min(ys, default=0.0)
    high = y[1] if y[1] is not None else max(ys, default=1.0)
    steps = ticks(low, high if high > low else low + max(abs(low), 1.0) * 0.1)
    left, right = min(xs), max(xs)
    bottom = low if y[0] is not None else min(low, steps[0])
    top = high if y[1] is not None else max(high, steps[-1])
    return Frame(width=width, height=height, x=(left, right if right > left else left + 1), y=(bottom, top))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover [low, high], at most `most` of them, at distances of 1, 2 or 5 times a power of ten."""
    assert high > low, (low, high)
    power = 10.0 ** floor(log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        if last - first + 1 <= most:
            break
    return [round(number * step, 12) for number in range(first, last + 1)]


def _axes(frame: Frame, axis: str) -> Iterator[str]:
    for value in ticks(*frame.y):
        if frame.y[0] - 1e-12 <= value <= frame.y[1] + 1e-12:
            left, height = frame.at(frame.x[0], value)
            yield f'<line class="grid" x1="{left:.1f}" x2="{frame.width - _RIGHT:.1f}" y1="{height:.1f}" y2="{height:.1f}"/>'
            yield f'<text x="{left - 6:.1f}" y="{height + 4:.1f}" text-anchor="end">{number_text(value)}</text>'
    base = frame.height - _BOTTOM
    yield f'<line class="axis" x1="{_LEFT:.1f}" x2="{frame.width - _RIGHT:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>'
    for value in ticks(*frame.x):
        if frame.x[0] <= value <= frame.x[1] and value == int(value):
            across, _ = frame.at(value, frame.y[0])
            yield f'<text x="{across:.1f}" y="{base + 16:.1f}" text-anchor="middle">{number_text(value)}</text>'
    yield f'<text x="12" y="{base + 16:.1f}">{escape(axis)}</text>'


def number_text(value: float) -> str:
    """A tick or value as short text."""
    if value == int(value) and abs(value) < 1e5:
        return f"{value:.0f}"
    if abs(value) < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def _legend(series: Sequence[Series]) -> Iterator[str]:
    """Names of the curves below the title, where there is more than one; the text lays itself out."""
    if len(series) < 2:
        return
    yield '<text x="12" y="37">'
    for number, one in enumerate(series):
        gap = ' dx="14"' if number else ""
        yield f'<tspan class="f{number % 4 + 1}"{gap}>&#9644;</tspan><tspan dx="4">{escape(one.label)}</tspan>'
    yield "</text>"


def _curve(series: Series, colour: int, frame: Frame) -> Iterator[str]:
    if series.band:
        upper = [frame.at(x, high) for x, _, high in series.band]
        lower = [frame.at(x, low) for x, low, _ in reversed(series.band)]
        yield f'<polygon class="band f{colour}" points="{_path([*upper, *lower])}"/>'
    points = [frame.at(x, y) for x, y in series.points]
    thin = " thin" if series.thin else ""
    yield f'<polyline class="line s{colour}{thin}" points="{_path(points)}"/>'
    if series.dots or len(points) == 1:
        for across, up in points:
            yield f'<circle class="f{colour}" cx="{across:.1f}" cy="{up:.1f}" r="3.5"/>'
    every = len(points) // _MOST_TARGETS + 1
    for (x, y), (across, up) in list(zip(series.points, points, strict=True))[::every]:
        said = escape(f"{series.label} at {number_text(x)}: {number_text(y)}")
        yield f'<circle class="target" cx="{across:.1f}" cy="{up:.1f}" r="7"><title>{said}</title></circle>'


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
