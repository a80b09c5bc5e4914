"""What vLLM's processes and the folder of weights are ended and removed by where this process is killed: another, tiny process.

It waits until its standard input ends, which happens however this process ends, and then acts on the last line that it was
told, and on a mark: an engine that is still being started is known to nobody, but whatever vLLM starts inherits the mark in its
environment. Without all this vLLM's processes would wait for requests for ever, holding the model's memory.

The file is run by itself, so it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic

MARK = "SPARRING_VLLM"
"""The environment variable that holds the mark."""

_PAUSE = 0.1
_QUIET = 5
_LIMIT = 60.0
"""Seconds between two looks for marked processes, looks without one after which there are none, seconds after which one that
does not end is left."""


class Reaper:
    """Starts the process, for what has this mark. `watch` tells it what there is now besides, in place of what it was told
    before; `close` ends it."""

    def __init__(self, mark: str) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._mark = mark
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def watch(self, processes: Iterable[int], folder: Path | None) -> None:
        """From now on these are ended, and the folder is removed."""
        self._tell(self._mark, [(number, began(number)) for number in processes], str(folder) if folder else "")

    def close(self) -> None:
        """Nothing is left to be ended."""
        self._tell("", [], "")
        self._process.communicate()

    def _tell(self, mark: str, processes: list[tuple[int, str]], folder: str) -> None:
        stream = self._process.stdin
        assert stream is not None
        print(json.dumps({"mark": mark, "processes": processes, "folder": folder}), file=stream, flush=True)


def began(number: int) -> str:
    """When a process began, in the kernel's ticks: with the number, what tells it from a later one. '' where there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def marked(mark: str) -> list[int]:
    """The processes, but for this one, that began with this mark in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            given = (folder / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is another user's
        if wanted in given.split(b"\0"):
            found.append(int(folder.name))
    return [number for number in found if number != os.getpid()]


def main() -> None:
    """Wait, then act."""
    last = '{"mark": "", "processes": [], "folder": ""}'
    for line in sys.stdin:
        last = line
    told = json.loads(last)
    for number, start in told["processes"]:
        if start and began(number) == start:
            _end(number)
    if told["mark"]:
        _end_marked(told["mark"])
    if told["folder"]:
        shutil.rmtree(told["folder"], ignore_errors=True)


def _end_marked(mark: str) -> None:
    """One that has just been made shows its mark a moment later, so there must be none for a while."""
    until, quiet = monotonic() + _LIMIT, 0
    while quiet < _QUIET and monotonic() < until:
        found = marked(mark)
        for number in found:
            _end(number)
        quiet = 0 if found else quiet + 1
        Event().wait(_PAUSE)


def _end(number: int) -> None:
    with suppress(ProcessLookupError):  # it ended meanwhile
        os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    main()
