"""`sparring fit FILE[:NAME]`: makes a fit, and shows it as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.cli.load import found
from sparring.cli.train import listed_fields
from sparring.cli.usage import Parser, UsageError, field_pairs
from sparring.errors import SettingError
from sparring.learner.fit import Fit
from sparring.learner.fitting import fit
from sparring.learner.overrides import override

ABOUT = """\
Train a model on what is given, as FILE defines it: a Python file with a sparring.Fit at its top level (NAME, where it defines
several). With SFT() it imitates lines of a file, scripted play, or the best episodes of a run; with DPO() it learns from pairs.
Every field of the fit can be set by its dotted name; FILE --help lists them all with their types and values.
Running the same command again goes on from the last checkpoint. A run begins with what came of it:
Policy(..., start="runs/NAME/final").

examples:
  sparring fit examples/warm_start.py
  sparring fit examples/warm_start.py --epochs 3 --learning_rate 3e-4 --name slower"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("fit", usage="FILE[:NAME] [--field value ...]", about=ABOUT)
    parser.add_argument("file", metavar="FILE[:NAME]", help="the Python file that defines the fit")
    if words and words[0].startswith("--") and words[0] != "--help":
        raise UsageError(f"{words[0]!r} comes before the file: write FILE first")
    if len(words) > 1 and not words[0].startswith("-") and {"-h", "--help"} & set(words):
        print(parser.format_help())
        print(listed_fields(found(words[0], Fit), "fit"))
        return 0
    arguments, rest = parser.parse_known_args(words)
    made = found(arguments.file, Fit)
    try:
        made = override(made, field_pairs(rest))
    except SettingError as error:
        raise UsageError(str(error)) from error
    done = fit(made, tell=_show)
    print(f"weights: {done.final}")
    print(f'a run begins with them: Policy({made.model!r}, start="{done.final}")')
    return 0


def _show(line: Mapping[str, float]) -> None:
    shown = [f"{name} {value:.4g}" for name, value in line.items() if name not in ("step", "tokens", "gradient_norm")]
    print(f"step {int(line['step']):>5}  {'  '.join(shown)}", flush=True)
