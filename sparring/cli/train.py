"""`sparring train FILE[:NAME]`: trains a run, shows it, and leaves a report; `sparring demo` does so with its own file."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import get_args

from sparring.backend.losses import Level
from sparring.cli.load import found
from sparring.cli.usage import Parser, UsageError, field_pairs
from sparring.errors import SettingError
from sparring.learner.display import Display
from sparring.learner.history import history, last_line, read_events
from sparring.learner.overrides import override, settable
from sparring.learner.presets import PRESETS, Correction
from sparring.learner.run import Policy, Run
from sparring.learner.tracker import Watcher
from sparring.learner.train import train

INTERRUPTED = 130

ABOUT = """\
Train the run that FILE defines: a Python file with a sparring.Run at its top level (NAME, where it defines several).
Every field of the run can be set by its dotted name; FILE --help lists them all with their types and values.
The run's folder (runs/NAME) keeps everything. Running the same command again goes on where it stopped.
Ctrl-C once finishes the step and writes a checkpoint; twice ends at once.

examples:
  sparring train examples/addition.py
  sparring train examples/addition.py --steps 20 --policies.learning_rate 3e-4 --policies.lora.rank 16
  sparring train examples/addition.py --algorithm dapo --correction token --name dapo
  sparring train examples/addition.py --train.environment.rounds 3 --backend.threads 2 --deterministic
  sparring train examples/addition.py --dry-run
  sparring train examples/addition.py --wandb offline"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("train", usage="FILE[:NAME] [--field value ...] [options]", about=ABOUT)
    parser.add_argument("file", metavar="FILE[:NAME]", help="the Python file that defines the run")
    add_options(parser)
    if words and words[0].startswith("--") and words[0] != "--help":
        raise UsageError(f"{words[0]!r} comes before the file: write FILE first")
    if len(words) > 1 and not words[0].startswith("-") and {"-h", "--help"} & set(words):
        print(parser.format_help())
        print(listed_fields(found(words[0], Run)))
        return 0
    arguments, rest = parser.parse_known_args(words)
    return execute(chosen(found(arguments.file, Run), arguments, rest), arguments)


def add_options(parser: Parser) -> None:
    """The options that are no fields of a run, and the short names of two that are."""
    parser.add_argument(
        "--algorithm",
        choices=tuple(PRESETS),
        help="how every policy learns: this preset in place of the file's (what is compared with what stays)",
    )
    parser.add_argument(
        "--correction",
        choices=get_args(Level),
        help="with --algorithm: truncated importance sampling for a sampler that is not the trainer, by token or by sequence",
    )
    parser.add_argument(
        "--sampler",
        choices=("torch", "vllm"),
        help="what draws the replies: torch, in this process, or vllm (short for --backend.sampler)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: show the exact tokens of one scripted group, with action mask, advantage and weight",
    )
    parser.add_argument(
        "--wandb", choices=("online", "offline"), help="track with Weights & Biases (metrics.jsonl is always written)"
    )
    parser.add_argument(
        "--accept-changed-code",
        action="store_true",
        help="go on although the environment, the tasks, the renderer or the model changed since the run was started; "
        "unfinished episodes start again",
    )


def chosen(run: Run, arguments: Namespace, words: Sequence[str]) -> Run:
    """The run with the options and the `--field value` words applied. Raises `UsageError` for what does not fit."""
    if arguments.correction and not arguments.algorithm:
        raise UsageError(
            f"--correction {arguments.correction}: it belongs to --algorithm; name one of {', '.join(PRESETS)}"
        )
    more = ["--backend.sampler", arguments.sampler] if arguments.sampler else []
    return overridden(run, [*words, *more], instead=_with_algorithm(run, arguments))


def overridden(run: Run, words: Sequence[str], *, instead: Mapping[str, object] | None = None) -> Run:
    """The run with the `--field value` pairs applied, and with the fields of `instead`. Raises `UsageError` for what does not
    fit."""
    try:
        return override(run, field_pairs(words), instead=instead)
    except SettingError as error:
        raise UsageError(str(error)) from error


def _with_algorithm(run: Run, arguments: Namespace) -> dict[str, object]:
    """The run's policies, each with the preset that was named for its algorithm; nothing where none was."""
    if not arguments.algorithm:
        return {}
    preset = PRESETS[arguments.algorithm]
    correction = Correction(level=arguments.correction) if arguments.correction else None

    def taught(policy: Policy) -> Policy:
        return replace(policy, algorithm=preset(compare=policy.algorithm.compare, correction=correction))

    if isinstance(run.policies, Policy):
        return {"policies": taught(run.policies)}
    return {"policies": {name: taught(policy) for name, policy in run.policies.items()}}


def execute(run: Run, arguments: Namespace) -> int:
    """Train, or show what would be trained; returns the exit code. The last line says what came of it."""
    if arguments.dry_run:
        dry_run: Callable[[Run], str] = import_module("sparring.cli.dry_run").dry_run
        print(dry_run(run))
        return 0
    display = Display(sys.stdout)
    trackers: list[Watcher] = []
    if arguments.wandb:
        tracker = import_module("sparring.learner.wandb_tracker").WandbTracker
        trackers = [tracker(run.path, run.name, mode=arguments.wandb, warn=display.warn)]
    watchers = [*trackers, display]
    complete = train(run, watchers=watchers, accept_changed_code=arguments.accept_changed_code)
    print(f"report: {run.path / 'report.html'}")
    if not complete:
        print("interrupted: the step was finished and written; the same command goes on from it", file=sys.stderr)
        return INTERRUPTED
    print(last_line(history(read_events(run.path))))
    return 0


def listed_fields(value: object, kind: str = "run") -> str:
    """Every field that the command line can set, with its type and what it is."""
    places = list(settable(value))
    names, types = max(len(place.name) for place in places), max(len(place.type_name) for place in places)
    lines = [f"  --{place.name:<{names}}  {place.type_name:<{types}}  {place.value}" for place in places]
    return "\n".join([f"fields of this {kind}, what they take, and what they are:", *lines])
