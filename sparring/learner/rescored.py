"""What scoring a run's stored episodes again found: rows, what they come to for each seat and task, and the text of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeVar

import msgspec

from sparring.rollout.events import Admitted, Ended, SeatResult

T = TypeVar("T")
K = TypeVar("K", str, tuple[int, int, str])

Outcome = Literal["equal", "higher", "lower", "judged", "unjudged", "neither", "fault", "asks", "cut"]
"""What became of a reward.

equal, higher, lower  it has one now, as it had then
judged, unjudged      it has one only now, it had one only then
neither               it was not judged then and is not now
fault                 the episode fails now
asks                  the episode asks for a reply that the journal does not hold
cut                   so does this one, but it was cut off by a fault then
"""

_COMPARED = ("equal", "higher", "lower")
_MOST_TASKS = 10


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One seat or fork of one stored episode. `before` and `after` are its returns, None where it has none; `detail` says what
    a fault said, where the journal had no reply, or why it is not judged now."""

    group: int
    member: int
    source: int
    index: int
    seat: str
    fork: str
    label: str
    before: float | None
    after: float | None
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatChange:
    """One seat, its forks included: how many rows of each outcome, and the mean rewards of those that have both."""

    seat: str
    outcomes: Mapping[str, int]
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """One seat in one task: the mean rewards of the `count` rows that have both."""

    source: int
    index: int
    seat: str
    count: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepChange:
    """One committed step: whether its batch would have had the same advantages, others, or nobody can say."""

    policy: str
    step: int
    advantages: Literal["same", "other", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescoring:
    """All that was found.

    rows        by group, episode, seat and fork
    episodes    those that the journal holds whole; `unfinished` ones are not scored
    unasked     how many ended without asking for all of their replies
    new_tasks   how many played a task whose content is other now
    accepted    since when the run itself went on with changed code, as sentences
    """

    rows: tuple[Row, ...]
    steps: tuple[StepChange, ...]
    episodes: int
    unfinished: int
    unasked: int
    new_tasks: int
    accepted: tuple[str, ...] = ()

    @property
    def seats(self) -> list[SeatChange]:
        """By name; what failed before any seat had a result belongs to none."""
        return [_seat_change(seat, rows) for seat, rows in _grouped(self.rows, _seat_of) if seat]

    @property
    def tasks(self) -> list[TaskChange]:
        """Those whose mean reward is other now, the largest change first."""
        found = [_task_change(*key, rows) for key, rows in _grouped(_compared(self.rows), _task_of)]
        changed = [one for one in found if one.before != one.after]
        return sorted(changed, key=lambda one: (-abs(one.after - one.before), one.source, one.index, one.seat))

    @property
    def lines(self) -> list[str]:
        """What a person reads."""
        return [
            f"{_count(self.episodes, 'stored episode')} scored again",
            *map(_seat_line, self.seats),
            *self._incomplete(),
            *self._task_lines(),
            *self._step_lines(),
            *self.accepted,
        ]

    def _incomplete(self) -> list[str]:
        """What could not be scored, or not quite as it was played."""
        lines = []
        for outcome, what in _INCOMPLETE.items():
            rows = [row for row in self.rows if row.outcome == outcome]
            if rows:
                episodes = {(row.group, row.member) for row in rows}
                said = (rows[0].detail.strip().splitlines() or [""])[-1]
                lines.append(f"{len(episodes)} {what}; group {rows[0].group}, episode {rows[0].member}: {said}")
        for number, what in (
            (self.unasked, "ended without asking for all the replies that the journal holds"),
            (self.new_tasks, "played a task whose content is other now"),
            (self.unfinished, "never ended and were not scored"),
        ):
            if number:
                lines.append(f"{number} {what}")
        return lines

    def _task_lines(self) -> list[str]:
        changed = self.tasks
        if not changed:
            return []
        shown = changed[:_MOST_TASKS]
        more = f", the largest {len(shown)}" if len(changed) > len(shown) else ""
        return [f"tasks with another mean reward: {len(changed)}{more}"] + [
            f"  train/{one.source} task {one.index}, {one.seat}: {one.before:.3f} -> {one.after:.3f} "
            f"({_count(one.count, 'reward')})"
            for one in shown
        ]

    def _step_lines(self) -> list[str]:
        lines = []
        for policy, steps in _grouped(self.steps, _policy_of):
            other = [one.step for one in steps if one.advantages == "other"]
            unknown = [one.step for one in steps if one.advantages == "unknown"]
            lines.append(
                f"steps of {policy!r} with other advantages: {len(other)} of {len(steps)}"
                + (f": {spans(other)}" if other else "")
                + (f"; not known for {len(unknown)}: {spans(unknown)}" if unknown else "")
            )
        return lines


_INCOMPLETE: Mapping[str, str] = {
    "fault": "fail now",
    "asks": "ask for a reply that the journal does not hold",
    "cut": "had been cut off, and go on for longer than the journal does",
}


def rows_of(admitted: Admitted, before: Ended, after: Ended, outcome: Outcome | None) -> list[Row]:
    """The rows of one episode; `outcome` is that of all of them, None where each has its own."""
    then, now = ({(one.seat, one.fork): one for one in ended.results} for ended in (before, after))
    absent = SeatResult(seat="")
    rows = []
    for seat, fork in sorted({**then, **now}) or [("", "")]:
        old, new = then.get((seat, fork), absent), now.get((seat, fork), absent)
        rows.append(
            Row(
                group=admitted.group,
                member=before.member,
                source=admitted.source,
                index=admitted.index,
                seat=seat,
                fork=fork,
                label=new.label or old.label,
                before=old.value,
                after=new.value,
                outcome=outcome or _outcome(old.value, new.value),
                detail=after.detail or new.unjudged,
            )
        )
    return rows


def _outcome(before: float | None, after: float | None) -> Outcome:
    if before is None or after is None:
        return "unjudged" if before is not None else "judged" if after is not None else "neither"
    return "equal" if before == after else "higher" if after > before else "lower"


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as `0, 2-5`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, span)) for span in found)


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> list[tuple[K, list[T]]]:
    """The items of each key, in the order of the keys."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return sorted(found.items(), key=lambda pair: pair[0])


def _compared(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.outcome in _COMPARED]


def _means(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    before = [row.before for row in rows if row.before is not None]
    after = [row.after for row in rows if row.after is not None]
    return fmean(before) if before else None, fmean(after) if after else None


def _seat_change(seat: str, rows: Sequence[Row]) -> SeatChange:
    before, after = _means(_compared(rows))
    return SeatChange(seat=seat, outcomes=Counter(row.outcome for row in rows), before=before, after=after)


def _seat_of(row: Row) -> str:
    return row.seat


def _policy_of(one: StepChange) -> str:
    return one.policy


def _task_of(row: Row) -> tuple[int, int, str]:
    return row.source, row.index, row.seat


def _task_change(source: int, index: int, seat: str, rows: Sequence[Row]) -> TaskChange:
    before, after = _means(rows)
    assert before is not None and after is not None, rows
    return TaskChange(source=source, index=index, seat=seat, count=len(rows), before=before, after=after)


def _seat_line(one: SeatChange) -> str:
    counted = [f"{one.outcomes.get(name, 0)} {name}" for name in _COMPARED]
    counted += [f"{count} {name}" for name, count in sorted(one.outcomes.items()) if name not in _COMPARED]
    means = "" if one.before is None or one.after is None else f"; mean reward {one.before:.3f} -> {one.after:.3f}"
    return f"{one.seat}: {', '.join(counted)}{means}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
