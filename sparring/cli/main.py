"""`sparring COMMAND ...`: finds the command's module, runs it, and turns what ends it into an exit code.

0 it went well; 1 the run failed, with one line on stderr; 2 wrong usage; 75 a call held the event loop for too long, its stack
is on stderr; 130 interrupted; 141 nobody reads the output any more
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from sparring.backend.waiting import bound_spinning
from sparring.cli.usage import UsageError
from sparring.errors import SparringError

COMMANDS = {
    "demo": "train a small language model on small arithmetic, on this machine",
    "train": "train the Run that a Python file defines; running the same command again resumes it",
    "fit": "train on texts, scripted play, a run's best episodes or preferences, as a Python file defines",
    "play": "play one episode of an environment, with a person or a script at each seat",
    "check": "say whether an environment keeps its contract: replay, hidden fields, rewards, hostile replies",
    "eval": "show the held-out evaluations of a run, or measure a checkpoint, a model or an endpoint anew",
    "replay": "recompute a run's batches, advantages and metrics from its journal, and compare",
    "rescore": "score a run's stored episodes with a changed environment or verifier, and report what would have changed",
    "doctor": "say what this machine has of what sparring can use, and what to install for the rest",
    "export": "write a run's episodes to a file, one JSON object a line",
}

EXAMPLES = """\
examples:
  sparring demo
  sparring demo --steps 20 --seed 1
  sparring train examples/addition.py --policies.learning_rate 3e-4 --name second
  sparring train examples/addition.py --dry-run
  sparring fit examples/warm_start.py
  sparring play examples/addition.py --seat solver=human
  sparring check examples/addition.py
  sparring eval runs/addition
  sparring eval runs/addition@40 examples/addition.py --attempts 8 --temperature 1
  sparring replay runs/addition
  sparring rescore runs/addition examples/addition.py
  sparring export examples/addition.py addition.jsonl
  sparring doctor

Each command explains itself: sparring train --help"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What is no `SparringError` keeps its traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"sparring {installed_version()}")
        return 0
    bound_spinning()
    name = words[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
        return failed("sparring", f"no command {name!r}; {meant}", 2)
    command: Callable[[Sequence[str]], int] = import_module(f"sparring.cli.{name}").command
    return guarded(f"sparring {name}", command, words[1:])


def guarded(name: str, command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """The command's exit code, or the one of what ended it."""
    try:
        return command(words)
    except UsageError as error:
        return failed(name, f"{error}\n{name} --help tells more", 2)
    except SparringError as error:
        return failed(name, str(error), 1)
    except KeyboardInterrupt:
        return failed(name, "interrupted", 130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter fails again when it flushes
        full = "no space left on the device: free some and run the same command again"
        return 141 if error.errno == errno.EPIPE else failed(name, full, 1)


def failed(name: str, message: str, code: int) -> int:
    """Say on stderr what is wrong; returns the exit code."""
    print(f"{name}: {message}", file=sys.stderr)
    return code


def overview() -> str:
    """What `sparring --help` prints."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    head = "usage: sparring COMMAND ...\n\nAsynchronous reinforcement learning for language models."
    return f"{head}\n\ncommands:\n{listed}\n\n{EXAMPLES}"


def installed_version() -> str:
    """The version of the installed package; "unknown" where it runs from a bare folder."""
    try:
        return version("sparring")
    except PackageNotFoundError:
        return "unknown"
