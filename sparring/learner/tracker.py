"""Who is told of a run while it happens, and the one that always is: `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sparring.errors import JournalError
from sparring.learner.history import read_events, read_snapshots
from sparring.learner.lines import Line, Lines, LinesState, write_lines
from sparring.learner.snapshots import readable
from sparring.rollout.events import AnyEvent


class Watcher(Protocol):
    """Told what is on the disk, in the journal's order, one call at a time.

    The calls come from a worker thread, not from the event loop: they may block, and the run waits for them only as far as its
    queue of untold events allows. What a watcher raises ends the run, unless the run failed before; one that may be missed
    catches its own failures. A call that takes longer than the run's `stall_deadline` ends the run too, and is given up: then
    `closed` may come while it still runs.
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


class MetricsFile:
    """A `Watcher`: `metrics.jsonl` in the run folder.

    Opening writes again what comes after the newest snapshot of the journal that the file agrees with, or all of it, so that no
    line is lost or doubled. Raises `JournalError` where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._lines = Lines()
        self._file: BinaryIO | None = None

    def opened(self, run: Mapping[str, Any]) -> None:
        aside = self._path.with_suffix(".partial")
        with self._writing():
            self._lines, earlier = earlier_lines(self._folder, self._agrees)
            size = self._lines.state().size
            if size:
                with self._path.open("r+b") as file:
                    file.truncate(size)
                    file.seek(size)
                    write_lines(file, earlier)
            else:
                with aside.open("wb") as file:
                    write_lines(file, earlier)
                aside.replace(self._path)
            self._file = self._path.open("ab")

    def event(self, event: AnyEvent) -> None:
        assert self._file is not None, "opened() comes first"
        with self._writing():
            write_lines(self._file, self._lines.of(event))

    def closed(self) -> None:
        assert self._file is not None, "opened() comes first"
        with self._writing(), self._file:
            write_lines(self._file, self._lines.rest())

    def _agrees(self, state: LinesState) -> bool:
        """Whether the file holds these lines; only the last of them is read."""
        if not self._path.is_file():
            return False
        with self._path.open("rb") as file:
            file.seek(state.size - len(state.last))
            return file.read(len(state.last)) == state.last

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"{str(self._path)!r} cannot be written: {error.strerror}; free some disk space and resume"
            ) from error


def earlier_lines(folder: Path, usable: Callable[[LinesState], bool]) -> tuple[Lines, Iterator[Line]]:
    """What makes the lines of the run in this folder, and those that its journal has for it: after the newest snapshot that is
    `usable`, else from the beginning. They are to be taken before it is given anything else."""
    if not (folder / "journal.db").is_file():
        return Lines(), iter(())
    found = [(segment, one.lines) for segment, one in readable(read_snapshots(folder)) if usable(one.lines)]
    after, state = found[-1] if found else (0, None)
    lines = Lines(state)
    return lines, (line for event in read_events(folder, after) for line in lines.of(event))
