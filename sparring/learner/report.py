"""`report.html`: what a run learned, on one self-contained page, from the journal's events alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import takewhile
from pathlib import Path
from typing import Any

from sparring.learner.accounts import Accounts, AccountsFolding
from sparring.learner.chart import COLOURS, DARK_COLOURS, STYLE, Series, line_chart
from sparring.learner.display import shown, span
from sparring.learner.folder import write_whole
from sparring.learner.history import (
    Estimate,
    Fault,
    History,
    estimate_mean,
    figures,
    headline_name,
    history,
    read_events,
)
from sparring.learner.page_style import DARK_PAGE, LIGHT_PAGE, PAGE_STYLE
from sparring.learner.pieces import details, section, table
from sparring.learner.report_accounts import asynchrony
from sparring.rollout.events import AnyEvent, Evaluated

Transcript = Sequence[tuple[str, str]]


class ReportFile:
    """A `Watcher` that writes `report.html` into the run folder when the run ends or stops."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def opened(self, run: Mapping[str, Any]) -> None:
        """Nothing is shown yet."""

    def event(self, event: AnyEvent) -> None:
        """The journal keeps it."""

    def closed(self) -> None:
        write_report(read_events(self._folder), self._folder / "report.html")


def write_report(events: Iterable[AnyEvent], path: Path) -> None:
    """Write the page, whole or not at all. Uses the events and nothing else. Raises `JournalError` where the disk is full."""
    folding = AccountsFolding()
    told = history(folding.through(events))
    write_whole(path, page(told, folding.result()))


def write_picture(events: Iterable[AnyEvent], path: Path) -> None:
    """Write the measured curve, held-out with its 95 % interval over the training reward, as one SVG that stands alone."""
    told = history(events)
    write_whole(path, held_out_chart(told, width=760, height=320, alone=True) + "\n")


def page(told: History, found: Accounts | None = None) -> str:
    """The whole report as HTML; without accounts, without what they tell."""
    name = escape(str(told.run.get("settings", {}).get("name", "run")))
    title = f"<p class=kicker>sparring &middot; {name}</p><h1>{escape(headline(told))}</h1>{_facts(told)}"
    body = (
        f"<header>{title}</header>",
        f"<figure class=wide>{held_out_chart(told, width=860, height=320)}</figure>",
        f"<figure class=narrow>{held_out_chart(told, width=400, height=300)}</figure>",
        section("Curves", f"<div class=grid>{''.join(_curves(told))}</div>"),
        _before_and_after(told),
        _accounts(told),
        asynchrony(told, found) if found is not None else "",
        _settings(told.run),
    )
    dark = f"@media(prefers-color-scheme:dark){{:root{{{DARK_COLOURS}{DARK_PAGE}}}}}"
    style = f"<style>:root{{{COLOURS}{LIGHT_PAGE}}}{dark}{STYLE}{PAGE_STYLE}</style>"
    meta = "<meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
    head = f"<head>{meta}<title>{name}</title>{style}</head>"
    return f"<!doctype html><html lang=en>{head}<body><main>{''.join(body)}</main></body></html>\n"


# ------------------------------------------------------------------------------------------------------------- headline


def headline(told: History) -> str:
    """What the run did, in one sentence."""
    span_text = f"{told.versions} steps ({span(told.seconds)} of training)"
    for name in told.held_out:
        first, last = told.evaluated(name)[0], told.evaluated(name)[-1]
        before, after = estimate_mean(first.values), estimate_mean(last.values)
        if before is None or after is None:
            return f"The held-out tasks could not be judged; {span_text}"
        what = f"{_kind(told.run, name)}{headline_name(first)} on {len(first.values)} held-out tasks"
        if first.version == last.version:
            return f"{what.capitalize()} is {_plain(before)} at version {first.version}; no later version was evaluated"
        if _plain(before) == _plain(after):
            return f"{what.capitalize()} stayed at {_plain(after)} in {span_text}"
        verb = "rose" if after.mean > before.mean else "fell"
        return f"{what.capitalize()} {verb} from {_plain(before)} to {_plain(after)} in {span_text}"
    return f"{span_text}, without held-out tasks"


def _kind(run: Mapping[str, Any], name: str) -> str:
    return "greedy " if run.get("episodes", {}).get(f"held_out/{name}", {}).get("greedy") else "sampled "


def _plain(found: Estimate) -> str:
    return f"{found.mean:.2f}"


def _facts(told: History) -> str:
    """Both ends with their intervals, and what became of the single tasks."""
    for name in told.held_out:
        first, last = told.evaluated(name)[0], told.evaluated(name)[-1]
        before, after = estimate_mean(first.values), estimate_mean(last.values)
        if before is None or after is None or first.version == last.version:
            return ""
        unseen = not told.run.get("episodes", {}).get(f"held_out/{name}", {}).get("seen")
        better, worse = compared(first, last)
        texts = (
            f"before {before}, after {after} (95 % intervals)",
            f"{better} tasks got better, {worse} worse",
            "no held-out task was trained on" if unseen else "held-out tasks may have been trained on (seen=True)",
        )
        return f"<p class=facts>{''.join(f'<span>{escape(text)}</span>' for text in texts)}</p>"
    return ""


def compared(first: Evaluated, last: Evaluated) -> tuple[int, int]:
    """How many tasks got a higher value, and how many a lower one; those without a value either time count as neither."""
    pairs = [
        (one, two) for one, two in zip(first.values, last.values, strict=True) if one is not None and two is not None
    ]
    return sum(two > one for one, two in pairs), sum(two < one for one, two in pairs)


# --------------------------------------------------------------------------------------------------------------- curves


def held_out_chart(told: History, *, width: int, height: int, alone: bool = False) -> str:
    """Held-out values with their 95 % intervals; with one policy, the training reward behind them."""
    series: list[Series] = []
    for name in told.held_out:
        points: list[tuple[float, float]] = []
        band: list[tuple[float, float, float]] = []
        for evaluated in told.evaluated(name):
            found = estimate_mean(evaluated.values)
            if found is not None:
                points.append((evaluated.version, found.mean))
                band.append((evaluated.version, found.low, found.high))
        series.append(Series(label=name, points=points, band=band, dots=True))
    if len(told.policies) == 1:
        series.append(Series(label="training reward", points=figures(told.steps, "metrics", "reward"), thin=True))
    names = {headline_name(evaluated) for evaluated in told.evaluations} or {"reward"}
    title = f"Held-out {', '.join(sorted(names))}, 95 % interval"
    return line_chart(title, series, width=width, height=height, y=_unit(series), alone=alone)


def _unit(series: Sequence[Series]) -> tuple[float | None, float | None]:
    """Shares are drawn from 0 to 1, everything else as far as it goes."""
    values = [y for one in series for _, y in one.points]
    return (0.0, 1.0) if values and min(values) >= 0 and max(values) <= 1 else (None, None)


_SMALL = (
    ("Reward in training", "metrics", "reward", None),
    ("Reply length, tokens", "metrics", "length", (0.0, None)),
    ("Replies cut at the token limit", "metrics", "truncated", (0.0, 1.0)),
    ("Groups with unequal rewards", "metrics", "mixed", (0.0, 1.0)),
    ("KL(sampler || trainer), nats per token", "engine", "kl", (0.0, None)),
    ("Effective sample size", "engine", "ess", (0.0, 1.0)),
    ("Staleness, versions", "metrics", "staleness", (0.0, None)),
    ("Gradient norm", "engine", "gradient_norm", (0.0, None)),
    ("Tokens per second", "timing", "tokens_per_second", (0.0, None)),
    ("Learner idle, share of the time", "timing", "idle", (0.0, 1.0)),
)


def _curves(told: History) -> list[str]:
    charts: list[str] = []
    for title, part, name, ends in _SMALL:
        series = [Series(label=policy, points=figures(told.of(policy), part, name)) for policy in told.policies]
        if name == "staleness" and len(series) == 1:
            oldest = figures(told.steps, "metrics", "staleness_max")
            series = [replace(series[0], label="mean"), Series(label="oldest", points=oldest, thin=True)]
        charts.append(f"<figure>{line_chart(title, series, y=ends if ends is not None else _unit(series))}</figure>")
    return charts


# ------------------------------------------------------------------------------------------------------ before and after


def _before_and_after(told: History) -> str:
    for name in told.held_out:
        first, last = told.evaluated(name)[0], told.evaluated(name)[-1]
        numbers = range(len(first.values))
        if first.version == last.version:
            return section(f"Held-out replies, version {first.version}", *_pairs(first, first, numbers))
        changed = [number for number in numbers if first.values[number] != last.values[number]]
        same = [number for number in numbers if first.values[number] == last.values[number]]
        said = f"<p>{len(changed)} of {len(numbers)} tasks changed their value.</p>"
        rest = details(f"{len(same)} tasks with the same value", *_pairs(first, last, same)) if same else ""
        return section("The same held-out tasks, before and after", said, *_pairs(first, last, changed), rest)
    return ""


def _pairs(first: Evaluated, last: Evaluated, numbers: Iterable[int]) -> list[str]:
    made: list[str] = []
    for number in numbers:
        before, after = first.transcripts[number], last.transcripts[number]
        common = [pair[0] for pair in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))]
        if len(common) == len(before) == len(after):
            common = common[: _question(common)]
        made.append(
            f"<article><h3>task {number}</h3>{_said(common)}<div class=pair>"
            f"{_side(first, number, before[len(common) :])}{_side(last, number, after[len(common) :])}</div></article>"
        )
    return made


def _question(said: Transcript) -> int:
    """How many messages stand before the first reply."""
    return len(list(takewhile(lambda line: line[0] in ("system", "user"), said)))


def _side(evaluated: Evaluated, number: int, said: Transcript) -> str:
    value = evaluated.values[number]
    text = "no value" if value is None else f"{headline_name(evaluated)} {value:g}"
    kind = "none" if value is None else "good" if value > 0 else "bad"
    return (
        f'<div><p class=label>version {evaluated.version} <b class="{kind}">{escape(text)}</b></p>{_said(said)}</div>'
    )


def _said(lines: Transcript) -> str:
    return "".join(f"<p class=said><span>{escape(who)}</span>{escape(text)}</p>" for who, text in lines)


# ------------------------------------------------------------------------------------------------------------- accounts


def _accounts(told: History) -> str:
    rows = [(one.policy, str(one.dispatched), str(one.trained), str(one.outside)) for one in told.units]
    failed = sum(fault.count - fault.retried for fault in told.faults)
    unjudged = sum(fault.count for fault in told.unjudged)
    return section(
        "Where the episodes went",
        f"<p>Training episodes that ended: {told.episodes}, of them failed: {failed}, dropped for their age: {told.late}. "
        f"Seats not judged: {unjudged}.</p>",
        table(("policy", "units dispatched", "trained", "dropped or still open"), rows),
        _faults("Failed episodes", told.faults),
        _faults("Not judged", told.unjudged),
        _notes(told),
    )


def _faults(title: str, faults: Sequence[Fault]) -> str:
    if not faults:
        return ""
    rows = [(fault.kind, str(fault.count), str(fault.retried), str(fault.scored), fault.first) for fault in faults]
    heads, more = ("kind", "count", "played again", "scored", "the first"), any(f.retried or f.scored for f in faults)
    shown = rows if more else [(*row[:2], row[-1]) for row in rows]
    return f"<h3>{title}</h3>{table(heads if more else (*heads[:2], heads[-1]), shown)}"


def _notes(told: History) -> str:
    if not told.notes:
        return ""
    return f"<h3>Notes</h3>{table(('kind', 'note'), [(note.kind, note.text) for note in told.notes])}"


def _settings(run: Mapping[str, Any]) -> str:
    tables: list[str] = []
    for part in ("settings", "episodes", "models", "packages", "fingerprints"):
        rows = [(name, shown(value)) for name, value in run.get(part, {}).items()]
        tables.append(f"<h3>{part.capitalize()}</h3>{table(('name', 'value'), rows)}" if rows else "")
    return section("Settings", details("everything that decided the result", *tables))
