"""Who is told of a run while it happens, and the one that always is: `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from sparring.errors import JournalError
from sparring.learner.history import estimate_mean, headline_name, read_events
from sparring.rollout.events import AnyEvent, Evaluated, Stepped, Timed


class Watcher(Protocol):
    """Told what is on the disk, in the journal's order, one call at a time.

    The calls come from a worker thread, not from the event loop: they may block, and the run waits for them only as far as its
    queue of untold events allows. What a watcher raises ends the run; one that may be missed catches its own failures.
    """

    def opened(self, run: Mapping[str, Any]) -> None:
        """The run starts or goes on; `run` is what `run.json` shows. Called once, before anything new is in the journal."""
        ...

    def event(self, event: AnyEvent) -> None:
        """One event of the journal, once it is on the disk. Events of earlier starts of the run are not told again."""
        ...

    def closed(self) -> None:
        """The run has ended or stopped; nothing follows. Called exactly where `opened` returned."""
        ...


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `metrics.jsonl`: a step, or a held-out evaluation (then `name` says of which set).

    version        the weights' version: what the step made (1 after the first), or what was evaluated
    deterministic  computed from what was played: equal in a replay
    engine         measured by the backend: equal where the backend is deterministic
    timing         from the clock
    """

    kind: str
    policy: str = ""
    name: str = ""
    version: int
    deterministic: dict[str, float]
    engine: dict[str, float] = {}
    timing: dict[str, float] = {}


class Lines:
    """Turns events into lines. A step's line waits for its clock figures, at most until the policy's next step.

    A function of the events alone, so that a file written line by line and one written again from the journal are the same.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Line] = {}
        self._seen: set[tuple[str, str, int]] = set()

    def of(self, event: AnyEvent) -> list[Line]:
        """The lines that this event completes."""
        match event:
            case Stepped():
                line = Line(
                    kind="step",
                    policy=event.policy,
                    version=event.step + 1,
                    deterministic=event.metrics,
                    engine=event.engine,
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

    def rest(self) -> list[Line]:
        """The lines of steps whose clock figures never came."""
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())

    def _known(self, line: Line) -> bool:
        key = (line.policy, line.name, line.version)
        known = key in self._seen
        self._seen.add(key)
        return known


def evaluation_line(event: Evaluated) -> Line:
    """Mean, 95 % interval and counts of one held-out evaluation."""
    figures: dict[str, float] = {"tasks": float(len(event.values))}
    for name, values in ((headline_name(event), event.values), ("reward", event.rewards)):
        found = estimate_mean(values)
        if found is not None:
            figures |= {name: found.mean, f"{name}/low": found.low, f"{name}/high": found.high}
        figures[f"{name}/missing"] = float(sum(value is None for value in values))
    return Line(kind="evaluation", name=event.name, version=event.version, deterministic=figures)


class MetricsFile:
    """A `Watcher`: `metrics.jsonl` in the run folder.

    Opening writes it again from the journal, so that no line is lost or doubled. Raises `JournalError` where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._lines = Lines()
        self._file: TextIO | None = None

    def opened(self, run: Mapping[str, Any]) -> None:
        aside = self._path.with_suffix(".partial")
        with self._writing():
            with aside.open("w", encoding="utf-8") as file:
                for event in earlier_events(self._folder):
                    write_lines(file, self._lines.of(event))
            aside.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8")

    def event(self, event: AnyEvent) -> None:
        assert self._file is not None, "opened() comes first"
        with self._writing():
            write_lines(self._file, self._lines.of(event))

    def closed(self) -> None:
        assert self._file is not None, "opened() comes first"
        with self._writing(), self._file:
            write_lines(self._file, self._lines.rest())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"{str(self._path)!r} cannot be written: {error.strerror}; free some disk space and resume"
            ) from error


def earlier_events(folder: Path) -> Iterable[AnyEvent]:
    """What the run's journal holds already; nothing where there is no journal yet."""
    return read_events(folder) if (folder / "journal.db").is_file() else ()


def write_lines(file: TextIO, lines: Iterable[Line]) -> None:
    """Write and flush lines, one JSON object each, keys sorted."""
    file.writelines(msgspec.json.encode(line, order="sorted").decode() + "\n" for line in lines)
    file.flush()
