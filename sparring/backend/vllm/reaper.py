"""What vLLM's processes and the folder of weights are ended and removed by where this process is killed: another, tiny process.

It waits until its standard input ends, which happens however this process ends, and then acts on the last line that it was
told. Without it vLLM's processes would wait for requests for ever, holding the model's memory.

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
from pathlib import Path


class Reaper:
    """Starts the process. `watch` tells it what there is now, in place of what it was told before; `close` ends it."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)

    def watch(self, processes: Iterable[int], folder: Path | None) -> None:
        """From now on these are ended, and the folder is removed."""
        told = {"processes": [(n, began(n)) for n in processes], "folder": str(folder) if folder else ""}
        stream = self._process.stdin
        assert stream is not None
        print(json.dumps(told), file=stream, flush=True)

    def close(self) -> None:
        """Nothing is left to be ended."""
        self.watch((), None)
        self._process.communicate()


def began(number: int) -> str:
    """When a process began, in the kernel's ticks: with the number, what tells it from a later one. '' where there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def main() -> None:
    """Wait, then act."""
    last = '{"processes": [], "folder": ""}'
    for line in sys.stdin:
        last = line
    told = json.loads(last)
    for number, start in told["processes"]:
        if start and began(number) == start:
            os.kill(number, signal.SIGKILL)
    if told["folder"]:
        shutil.rmtree(told["folder"], ignore_errors=True)


if __name__ == "__main__":
    main()
