"""A run's history as people read it, folded from the journal's events: what display, report and the last line are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sparring.errors import SettingError
from sparring.rollout.events import (
    LATE,
    Accepted,
    Admitted,
    AnyEvent,
    Ended,
    Evaluated,
    Noted,
    Opened,
    Planned,
    Retried,
    Stepped,
    Timed,
)
from sparring.rollout.faults import is_fault
from sparring.rollout.journal import Journal, SqliteSegments

_Z = 1.959964
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval [low, high] over `count` values; `missing` values were not judged and do not count."""

    mean: float
    low: float
    high: float
    count: int
    missing: int = 0

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate_mean(values: Sequence[float | None]) -> Estimate | None:
    """The mean of what was judged; None where nothing was.

    Interval: Wilson's score interval where every value is 0 or 1 (it stays in [0, 1] and is honest for few values), else the
    normal approximation, mean +- 1.96 s / sqrt(n).
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    count, mean = len(known), fmean(known)
    if set(known) <= {0.0, 1.0}:
        centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        half = _Z / (1 + _Z**2 / count) * sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
    else:
        half = _Z * stdev(known) / sqrt(count) if count > 1 else 0.0
        low, high = mean - half, mean + half
    return Estimate(mean=mean, low=low, high=high, count=count, missing=len(values) - count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of one policy. `version` is what the step made: 1 after the first. `timing` is empty until it is known."""

    policy: str
    version: int
    metrics: Mapping[str, float]
    engine: Mapping[str, float]
    timing: Mapping[str, float]


def figures(steps: Iterable[Step], part: str, name: str) -> list[tuple[float, float]]:
    """(version, value) of each step that has the figure; `part` is metrics, engine or timing."""
    parts = [
        (step.version, {"metrics": step.metrics, "engine": step.engine, "timing": step.timing}[part]) for step in steps
    ]
    return [(version, of[name]) for version, of in parts if name in of]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Attempts at episodes that failed in one way: how many, and what the first one said. `retried` of them were made again,
    `scored` episodes were trained on with the reward of those that fail."""

    kind: str
    count: int
    first: str
    retried: int = 0
    scored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """One policy's units: `outside` were neither trained nor are they planned any more (dropped, or open when it stopped)."""

    policy: str
    dispatched: int
    trained: int
    outside: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened in a run so far. `run` is what `run.json` shows; the rest is in the journal's order."""

    run: Mapping[str, Any]
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluated, ...]
    units: tuple[Whereabouts, ...]
    faults: tuple[Fault, ...]
    unjudged: tuple[Fault, ...]
    notes: tuple[Noted, ...]
    episodes: int
    late: int
    """Episodes that ended, and those of them that were dropped for their age, which is no fault."""

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(step.policy for step in self.steps))

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names of the held-out sets, the headline's first."""
        return tuple(dict.fromkeys(evaluated.name for evaluated in self.evaluations))

    def evaluated(self, name: str) -> tuple[Evaluated, ...]:
        """The evaluations of one held-out set, oldest version first."""
        found = [evaluated for evaluated in self.evaluations if evaluated.name == name]
        return tuple(sorted(found, key=lambda evaluated: evaluated.version))

    def of(self, policy: str) -> tuple[Step, ...]:
        """One policy's steps."""
        return tuple(step for step in self.steps if step.policy == policy)

    @property
    def seconds(self) -> float:
        """Seconds spent on steps, over every start of the run: of the policy that took longest."""
        spent: dict[str, float] = {}
        for step in self.steps:
            spent[step.policy] = spent.get(step.policy, 0.0) + step.timing.get("seconds", 0.0)
        return max(spent.values(), default=0.0)

    @property
    def versions(self) -> int:
        """The number of steps made: of the policy that made most."""
        return max((step.version for step in self.steps), default=0)


def history(events: Iterable[AnyEvent]) -> History:
    """Fold events, in the journal's order, into what people read. One pass; nothing but these events is used."""
    folding = _Folding()
    for event in events:
        folding.add(event)
    return folding.result()


def read_events(folder: Path, after: int = 0) -> Iterable[AnyEvent]:
    """The events in a run folder's journal, without its first `after` segments. Raises `SettingError` where there is none,
    `JournalError` where it is damaged."""
    return _events(_journal_of(folder), after)


def read_snapshots(folder: Path) -> list[tuple[int, bytes]]:
    """Likewise, (segments up to it, blob) of each of its snapshots, oldest first."""
    store = SqliteSegments(_journal_of(folder))
    try:
        return store.snapshots()
    finally:
        store.close()


def _journal_of(folder: Path) -> Path:
    path = folder / "journal.db"
    if not path.is_file():
        raise SettingError(
            f"run folder {str(folder)!r} has no journal.db: give the folder of a run, as in runs/addition"
        )
    return path


def _events(path: Path, after: int) -> Iterable[AnyEvent]:
    store = SqliteSegments(path)
    try:
        yield from Journal(store).read(after)
    finally:
        store.close()


def note_of(event: Noted | Accepted) -> Noted:
    """What readers of the run should know, as a note."""
    if isinstance(event, Noted):
        return event
    return Noted(kind="accepted", text=f"goes on although these changed: {', '.join(event.changes)}")


def fall_back_note(event: Stepped) -> Noted | None:
    """The same where the policy fell back after the step."""
    if event.fell_back is None:
        return None
    back = f"{event.policy!r} fell back: version {event.step + 1} is version {event.fell_back.to} once more"
    return Noted(kind="fell back", text=f"step {event.step}: {event.fell_back.why}; {back}")


def headline_name(evaluated: Evaluated) -> str:
    """What an evaluation's values are: `reward`, or the environment's headline metric."""
    return evaluated.headline or "reward"


def last_line(told: History) -> str:
    """`held-out reward: BEFORE -> AFTER (STEPS steps, SECONDS s)`, for the first held-out set.

    Where nothing is held out, it tells the reward of the first and the last training step, and says so.
    """
    span = f"({told.versions} steps, {told.seconds:.0f} s)"
    for name in told.held_out:
        first, last = told.evaluated(name)[0], told.evaluated(name)[-1]
        before, after = estimate_mean(first.values), estimate_mean(last.values)
        return f"held-out {headline_name(first)}: {_shown(before)} -> {_shown(after)} {span}"
    rewards = [step.metrics["reward"] for step in told.steps if "reward" in step.metrics]
    if not rewards:
        return f"no held-out tasks and no rewards {span}"
    return f"training reward (no held-out tasks): {rewards[0]:.3f} -> {rewards[-1]:.3f} {span}"


def _shown(estimate: Estimate | None) -> str:
    return "unjudged" if estimate is None else f"{estimate.mean:.3f}"


class _Folding:
    """The running state of `history`."""

    def __init__(self) -> None:
        self._run: Mapping[str, Any] = {}
        self._steps: dict[tuple[str, int], Step] = {}
        self._evaluations: list[Evaluated] = []
        self._notes: list[Noted] = []
        self._dispatched: Counter[str] = Counter()
        self._planned: dict[str, int] = {}
        self._trained: dict[str, int] = {}
        self._faults: dict[str, list[str]] = {}
        self._retried: Counter[str] = Counter()
        self._scored: Counter[str] = Counter()
        self._unjudged: dict[str, list[str]] = {}
        self._episodes = 0
        self._late = 0

    def add(self, event: AnyEvent) -> None:
        match event:
            case Opened():
                self._run = event.run
            case Admitted():
                self._dispatched.update(event.trained)
            case Planned():
                self._planned[event.policy] = len(event.groups)
            case Stepped():
                self._step(event)
            case Timed():
                self._time(event)
            case Evaluated():
                self._evaluations.append(event)
            case Ended():
                self._end(event)
            case Retried():
                self._fail(event)
            case Noted() | Accepted():
                self._notes.append(note_of(event))
            case _:
                """What was said and done token by token is not told here."""

    def _step(self, event: Stepped) -> None:
        self._trained[event.policy] = self._trained.get(event.policy, 0) + self._planned.pop(event.policy, 0)
        made = Step(policy=event.policy, version=event.step + 1, metrics=event.metrics, engine=event.engine, timing={})
        self._steps[event.policy, made.version] = made
        note = fall_back_note(event)
        self._notes += [] if note is None else [note]

    def _time(self, event: Timed) -> None:
        step = self._steps.get((event.policy, event.step + 1))
        if step is not None:
            self._steps[step.policy, step.version] = Step(
                policy=step.policy,
                version=step.version,
                metrics=step.metrics,
                engine=step.engine,
                timing={name: value for name, value in event.timing.items() if isfinite(value)},
            )

    def _end(self, event: Ended) -> None:
        self._episodes += 1
        self._late += event.fault == LATE
        if is_fault(event):
            self._fail(event)
            self._scored[event.fault] += bool(event.results)
        for result in event.results:
            if result.unjudged:
                self._unjudged.setdefault(result.unjudged, []).append(f"seat {result.seat}")

    def _fail(self, event: Ended | Retried) -> None:
        detail = event.detail.strip().splitlines() or [""]
        self._faults.setdefault(event.fault, []).append(detail[-1])
        self._retried[event.fault] += isinstance(event, Retried)

    def result(self) -> History:
        return History(
            run=self._run,
            steps=tuple(self._steps.values()),
            evaluations=tuple(self._evaluations),
            units=tuple(self._whereabouts(policy) for policy in sorted(self._dispatched)),
            faults=tuple(
                replace(fault, retried=self._retried[fault.kind], scored=self._scored[fault.kind])
                for fault in _counted(self._faults)
            ),
            unjudged=_counted(self._unjudged),
            notes=tuple(self._notes),
            episodes=self._episodes,
            late=self._late,
        )

    def _whereabouts(self, policy: str) -> Whereabouts:
        dispatched, trained = self._dispatched[policy], self._trained.get(policy, 0)
        outside = dispatched - trained - self._planned.get(policy, 0)
        return Whereabouts(policy=policy, dispatched=dispatched, trained=trained, outside=outside)


def _counted(found: Mapping[str, Sequence[str]]) -> tuple[Fault, ...]:
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Fault(kind=kind, count=len(said), first=said[0]) for kind, said in ordered)
