"""`sparring demo`: `sparring train` with the recipe of `examples/addition.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sparring
from sparring.cli.load import found
from sparring.cli.train import add_options, chosen, execute
from sparring.cli.usage import Parser, UsageError
from sparring.learner.run import Run

ABOUT = """\
Train SmolLM2-135M-Instruct with LoRA by GRPO on small arithmetic, on this machine, and show it learn questions that it was
never trained on. The recipe is examples/addition.py; every field of its run can be set, as with sparring train.
Running it again goes on where it stopped, or shows the result where it is complete (--name other starts a new run).

fields that are often set:
  --steps N          optimizer steps
  --seed N           another seed is another run: give it another --name
  --deterministic    float32 and a fixed schedule: two runs end in the same weights, slower
  --name NAME        the run's name, and its folder's
  --folder DIR       where run folders lie (runs)"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("demo", usage="[--steps N] [--seed N] [--deterministic] [--field value ...] [options]", about=ABOUT)
    add_options(parser)
    arguments, rest = parser.parse_known_args(words)
    return execute(chosen(found(str(recipe()), Run), arguments, rest), arguments)


def recipe() -> Path:
    """The demo's file: beside the package in a checkout, inside it where it was installed."""
    package = Path(sparring.__file__).parent
    for path in (package.parent / "examples" / "addition.py", package / "examples" / "addition.py"):
        if path.is_file():
            return path
    raise UsageError(
        "the recipe examples/addition.py is not beside this installation: clone the repository and run it there"
    )
