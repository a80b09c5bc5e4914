"""The lines of `metrics.jsonl`, made from events: a function of these alone, wherever it begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import msgspec

from sparring.learner.history import estimate_mean, headline_name
from sparring.rollout.events import AnyEvent, Evaluated, Stepped, Timed


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `metrics.jsonl`: a step, or a held-out evaluation (then `name` says of which set).

    version        the weights' version: what the step made (1 after the first), or what was evaluated
    deterministic  computed from what was played: equal in a replay
    engine         measured by the backend: equal where the backend is deterministic; with `fell_back_to` where a gauge had the
                   policy fall back: the version that this one is once more
    timing         from the clock
    """

    kind: str
    policy: str = ""
    name: str = ""
    version: int
    deterministic: dict[str, float]
    engine: dict[str, float] = {}
    timing: dict[str, float] = {}


class LinesState(msgspec.Struct, frozen=True, kw_only=True):
    """What `Lines` has made so far.

    count, size  lines, and their bytes in a file
    last         the last of them, as it stands there
    waiting      {policy: the step that waits for its clock figures}
    newest       {policy: the version of its last step}
    evaluated    (held-out set, version) of each evaluation
    """

    count: int = 0
    size: int = 0
    last: bytes = b""
    waiting: dict[str, Line] = {}
    newest: dict[str, int] = {}
    evaluated: list[tuple[str, int]] = []


class Lines:
    """Turns events into lines. A step's line waits for its clock figures, at most until the policy's next step.

    A function of the events alone, so that a file written line by line and one written again from the journal are the same.
    """

    def __init__(self, state: LinesState | None = None) -> None:
        state = LinesState() if state is None else state
        self._count, self._size, self._last = state.count, state.size, state.last
        self._waiting = dict(state.waiting)
        self._newest = dict(state.newest)
        self._evaluated = dict.fromkeys(state.evaluated)

    def state(self) -> LinesState:
        """What was made, for `Lines` that go on from there."""
        return LinesState(
            count=self._count,
            size=self._size,
            last=self._last,
            waiting=dict(self._waiting),
            newest=dict(self._newest),
            evaluated=list(self._evaluated),
        )

    def of(self, event: AnyEvent) -> list[Line]:
        """The lines that this event completes."""
        made = self._completed(event)
        for line in made:
            self._last = text_of(line)
            self._count += 1
            self._size += len(self._last)
        return made

    def rest(self) -> list[Line]:
        """The lines of steps whose clock figures never came."""
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())

    def _completed(self, event: AnyEvent) -> list[Line]:
        match event:
            case Stepped():
                line = Line(
                    kind="step",
                    policy=event.policy,
                    version=event.step + 1,
                    deterministic=event.metrics,
                    engine=_engine(event),
                )
                if self._known(line):
                    return []
                earlier = self._waiting.pop(event.policy, None)
                self._waiting[event.policy] = line
                return [earlier] if earlier is not None else []
            case Timed():
                waiting = self._waiting.get(event.policy)
                if waiting is None or waiting.version != event.step + 1:
                    return []
                del self._waiting[event.policy]
                return [msgspec.structs.replace(waiting, timing=event.timing)]
            case Evaluated():
                line = evaluation_line(event)
                return [] if self._known(line) else [line]
            case _:
                return []

    def _known(self, line: Line) -> bool:
        """Whether this step or evaluation was there before; from now on it was."""
        if line.kind == "step":
            known = line.version <= self._newest.get(line.policy, 0)
            self._newest[line.policy] = max(line.version, self._newest.get(line.policy, 0))
            return known
        known = (line.name, line.version) in self._evaluated
        self._evaluated[line.name, line.version] = None
        return known


def _engine(event: Stepped) -> dict[str, float]:
    back = event.fell_back
    return event.engine if back is None else event.engine | {"fell_back_to": float(back.to)}


def evaluation_line(event: Evaluated) -> Line:
    """Mean, 95 % interval and counts of one held-out evaluation."""
    figures: dict[str, float] = {"tasks": float(len(event.values))}
    for name, values in ((headline_name(event), event.values), ("reward", event.rewards)):
        found = estimate_mean(values)
        if found is not None:
            figures |= {name: found.mean, f"{name}/low": found.low, f"{name}/high": found.high}
        figures[f"{name}/missing"] = float(sum(value is None for value in values))
    return Line(kind="evaluation", name=event.name, version=event.version, deterministic=figures)


def text_of(line: Line) -> bytes:
    """One JSON object and the end of the line, keys sorted."""
    return msgspec.json.encode(line, order="sorted") + b"\n"


def write_lines(file: BinaryIO, lines: Iterable[Line]) -> None:
    """Write and flush lines."""
    file.writelines(map(text_of, lines))
    file.flush()
