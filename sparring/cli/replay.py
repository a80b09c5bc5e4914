"""`sparring replay RUN`: decides a run again from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparring.cli.load import found
from sparring.cli.usage import Parser
from sparring.learner.replay import replay
from sparring.learner.run import Run

ABOUT = """\
Recompute every admission, batch, advantage and deterministic metric of a run from its journal, and compare them with what the
journal says was done; likewise every snapshot that a resume may start from. No model is loaded. Exit code 0 where all agree,
1 where anything differs.

examples:
  sparring replay runs/addition
  sparring replay runs/mine --run mine.py      where the run's advantages are a function of its own"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("replay", usage="RUN_FOLDER [--run FILE[:NAME]]", about=ABOUT)
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="the run's folder, as in runs/addition")
    parser.add_argument("--run", metavar="FILE[:NAME]", help="the file that defines the run")
    arguments = parser.parse_args(words)
    compared = replay(arguments.folder, found(arguments.run, Run) if arguments.run else None)
    print("\n".join(compared.lines))
    return 0 if compared.agrees else 1
