"""`sparring rescore RUN FILE`: scores a run's stored episodes with changed code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sparring.cli.load import found
from sparring.cli.train import overridden
from sparring.cli.usage import Parser, UsageError
from sparring.errors import SettingError
from sparring.learner.rescore import rescore
from sparring.learner.rescored import Row
from sparring.learner.run import Episodes, Run

ABOUT = """\
Score the training episodes in a run's journal with the environments and tasks that FILE defines now, and report what would
have changed: rewards by seat, the tasks with the largest changes, faults, and the steps whose batches would have had other
advantages. Nothing is sampled and no model is loaded: an episode is played again from the replies in the journal, and one that
asks for anything else is reported. Effects (verifiers, tools, services) are computed anew. Exit code 0, whatever changed.

examples:
  sparring rescore runs/addition examples/addition.py
  sparring rescore runs/mine mine.py --train.environment.strict true
  sparring rescore runs/mine mine.py --effects journal --json changes.jsonl"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser(
        "rescore",
        usage="RUN_FOLDER FILE[:NAME] [--field value ...] [--effects anew|journal] [--json FILE]",
        about=ABOUT,
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="the run's folder, as in runs/addition")
    parser.add_argument(
        "file", metavar="FILE[:NAME]", help="the Python file with the Run, or its Episodes, as it is now"
    )
    parser.add_argument(
        "--effects",
        choices=("anew", "journal"),
        default="anew",
        help="compute effects anew (default), or take their results from the journal where it holds them",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write a line of JSON for each seat of each episode")
    arguments, rest = parser.parse_known_args(words)
    kinds: tuple[type[Any], ...] = (Run, Episodes)
    changed: Run | Episodes = found(arguments.file, *kinds)
    if isinstance(changed, Run):
        changed = overridden(changed, rest)
    elif rest:
        raise UsageError(f"{rest[0]!r}: {arguments.file} gives Episodes; fields are set where it gives a Run")
    scored = rescore(arguments.folder, changed, effects=arguments.effects)
    print("\n".join(scored.lines))
    if arguments.json:
        write_rows(arguments.json, scored.rows)
    return 0


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line. Raises `SettingError` where the file cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(msgspec.json.encode(row).decode() + "\n" for row in rows)
    except OSError as error:
        raise SettingError(f"--json {str(path)!r} cannot be written: {error.strerror}") from error
