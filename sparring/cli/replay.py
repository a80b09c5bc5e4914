"""`sparring replay RUN`: decides a run again from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from sparring.cli.load import found
from sparring.cli.train import overridden
from sparring.cli.usage import Parser, UsageError
from sparring.learner.continuity import retrained
from sparring.learner.replay import replay
from sparring.learner.run import Run

ABOUT = """\
Recompute every admission, batch, advantage and deterministic metric of a run from its journal, and compare them with what the
journal says was done; likewise every snapshot that a resume may start from. No model is loaded, but with --weights: then every
step is trained again, from version 0 on, and each version's weights are compared too, which are the same bits where the run was
deterministic. Exit code 0 where all agree, 1 where anything differs.

examples:
  sparring replay runs/addition
  sparring replay runs/mine --run mine.py      where the run's advantages are a function of its own
  sparring replay runs/addition --run examples/addition.py --weights --deterministic true
                                               --field value as the run was started with"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("replay", usage="RUN_FOLDER [--run FILE[:NAME] [--weights] [--field value ...]]", about=ABOUT)
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="the run's folder, as in runs/addition")
    parser.add_argument("--run", metavar="FILE[:NAME]", help="the file that defines the run")
    parser.add_argument("--weights", action="store_true", help="train every step again, and compare the weights")
    arguments, rest = parser.parse_known_args(words)
    if not arguments.run:
        parser.parse_args(words)  # nothing to set fields of: what is left is refused
    if not arguments.run and arguments.weights:
        raise UsageError("--weights: name the file that defines the run too, --run FILE")
    run = overridden(found(arguments.run, Run), rest) if arguments.run else None
    compared = replay(arguments.folder, run)
    print("\n".join(compared.lines))
    if run is None or not arguments.weights:
        return 0 if compared.agrees else 1
    verdict = anyio.run(partial(retrained, arguments.folder, run))
    print(f"{verdict.name}: {verdict.figure}{': all agree' if verdict.holds else ''}")
    print("\n".join(verdict.wrong), end="\n" * bool(verdict.wrong))
    return 0 if compared.agrees and verdict.holds else 1
