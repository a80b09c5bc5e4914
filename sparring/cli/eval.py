"""`sparring eval`: the held-out evaluations that a run has made; or new ones, of a run's checkpoint, a model or an endpoint."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from sparring.backend import Local
from sparring.cli.load import found
from sparring.cli.usage import Parser, UsageError
from sparring.errors import SettingError
from sparring.learner.cast import Cast, Endpoint, Subject, Weights, for_all, of_run, policies_of
from sparring.learner.evaluation import Evaluation, Score, evaluate_apart, scores
from sparring.learner.history import Estimate, History, estimate_mean, headline_name, history, read_events
from sparring.learner.run import Episodes, Run

ABOUT = """\
With one argument, show the held-out evaluations in a run's journal: a line for each held-out set and version, with its 95 %
interval.

With two, play the held-out episodes of FILE (a Run, or Episodes) anew: WHO takes the place of the policies. It is a run's
folder, RUN@STEP for another checkpoint than the newest, the folder or name of a model, or the URL of an OpenAI-compatible
endpoint with --model. Every episode is a line of a file (--out); running the same command again plays what it lacks. Shown
are, for each set and seat, the mean reward and how often at least one of k attempts reaches --success, unbiased, with 95 %
intervals over tasks.

examples:
  sparring eval runs/addition
  sparring eval examples/addition.py           the folder of the run that the file defines
  sparring eval runs/addition@40 examples/addition.py --attempts 8 --k 1,8 --temperature 1
  sparring eval smollm2-135m-instruct examples/addition.py --tasks 100
  sparring eval http://localhost:8000/v1 examples/addition.py --model qwen3 --key-variable API_KEY"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.file is not None:
        return _anew(arguments)
    for name, value in vars(arguments).items():
        if name not in ("who", "file") and value != parser.get_default(name):
            raise UsageError(f"--{name.replace('_', '-')} {value}: it belongs to an evaluation anew; name the FILE too")
    who = arguments.who
    folder = Path(who) if Path(who).is_dir() or ".py" not in who else found(who, Run).path
    told = history(read_events(folder))
    if not told.evaluations:
        raise SettingError(
            f"run folder {str(folder)!r} holds no evaluations yet: has it held-out tasks, and was it started?"
        )
    print("\n".join(table(told)))
    return 0


def _parser() -> Parser:
    parser = Parser("eval", usage="RUN_FOLDER | FILE | WHO FILE[:NAME] [options]", about=ABOUT)
    parser.add_argument(
        "who", metavar="WHO", help="a run's folder, RUN@STEP, a model, a URL; alone also the run's file"
    )
    parser.add_argument("file", metavar="FILE[:NAME]", nargs="?", help="the file with the Run or the Episodes")
    parser.add_argument("--attempts", type=int, default=1, help="attempts at each task (1)")
    parser.add_argument("--k", default="", metavar="K,...", help="which pass@k (1 and the number of attempts)")
    parser.add_argument("--success", type=float, default=1.0, help="the value from which on a task is solved (1)")
    parser.add_argument("--tasks", type=int, help="the first so many of each set (all)")
    parser.add_argument("--temperature", type=float, help="of the policies (theirs; 0 in greedy sets)")
    parser.add_argument("--max-tokens", type=int, help="of a reply (the policies')")
    parser.add_argument("--concurrent", type=int, default=64, help="episodes at once (64)")
    parser.add_argument("--seed", type=int, help="(the run's)")
    parser.add_argument("--out", type=Path, help="the file of episodes (evaluations/NAME.jsonl)")
    parser.add_argument("--model", help="with a URL: the model that it is to use")
    parser.add_argument(
        "--key-variable", metavar="NAME", help="with a URL: the environment variable that holds the key"
    )
    return parser


# ------------------------------------------------------------------------------------------------------------------- anew


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the words ask for: who is measured, what it is called, and on which sets."""

    subject: Subject
    called: str
    run: Run | None
    sets: Mapping[str, Episodes]


def _anew(arguments: Namespace) -> int:
    kinds: tuple[type[Any], ...] = (Run, Episodes)
    given: Run | Episodes = found(arguments.file, *kinds)
    run = given if isinstance(given, Run) else None
    sets = {"held-out": given} if isinstance(given, Episodes) else given.named_held_out
    if not sets:
        raise SettingError(f"{arguments.file}: its run holds nothing out: give it held_out, or name Episodes")
    subject, called = _subject(arguments, policies_of(run, sets))
    asked = _Asked(subject=subject, called=called, run=run, sets=sets)
    ks = _ks(arguments)
    path = arguments.out or Path("evaluations") / f"{re.sub(r'[^A-Za-z0-9.@-]+', '-', called).strip('-')}.jsonl"

    async def main() -> list[Score]:
        return await _measured(asked, arguments, path, ks)

    print("\n".join(score_table(anyio.run(main), ks)))
    print(f"episodes: {path}")
    return 0


def _subject(arguments: Namespace, policies: Sequence[str]) -> tuple[Subject, str]:
    who: str = arguments.who
    if who.startswith(("http://", "https://")):
        if not arguments.model:
            raise UsageError(f"{who!r}: name the model that the endpoint is to use: --model NAME")
        key = ""
        if arguments.key_variable:
            if arguments.key_variable not in os.environ:
                raise UsageError(
                    f"--key-variable {arguments.key_variable}: there is no such environment variable; set it"
                )
            key = os.environ[arguments.key_variable]
        return Endpoint(url=who, model=arguments.model, key=key), arguments.model
    for name in ("model", "key_variable"):
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')}: it belongs to a URL, and {who!r} is none; leave it out")
    before, at, step = who.rpartition("@")
    folder = Path(before if at and step.isdecimal() else who)
    if (folder / "journal.db").is_file():
        weights, chosen = of_run(folder, int(step) if at and step.isdecimal() else None)
        return weights, f"{folder}@{chosen}"
    return for_all(policies, Weights(model=who)), who


def _ks(arguments: Namespace) -> list[int]:
    if not arguments.k:
        return sorted({1, arguments.attempts})
    try:
        return [int(text) for text in arguments.k.split(",")]
    except ValueError as error:
        raise UsageError(f"--k {arguments.k!r}: whole numbers with commas between them, as in 1,8") from error


async def _measured(asked: _Asked, arguments: Namespace, path: Path, ks: Sequence[int]) -> list[Score]:
    backend = Local() if asked.run is None else asked.run.backend
    seed = arguments.seed if arguments.seed is not None else 0 if asked.run is None else asked.run.seed
    async with backend.open(deterministic=False) as opened:
        cast = Cast(opened, asked.subject, asked.run)
        sittings = {
            name: await cast.sitting(name, episodes, temperature=arguments.temperature, max_tokens=arguments.max_tokens)
            for name, episodes in asked.sets.items()
        }
        evaluation = Evaluation(
            who=cast.who,
            sittings=sittings,
            attempts=arguments.attempts,
            tasks=arguments.tasks,
            seed=seed,
            concurrent=arguments.concurrent,
        )
        told = await evaluate_apart(evaluation, path, tell=_show)
    return scores(evaluation, told, ks, arguments.success)


def _show(done: int, wanted: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {wanted} episodes", end="\n" if done == wanted else "", file=sys.stderr, flush=True)


def score_table(found_scores: Sequence[Score], ks: Sequence[int]) -> Iterator[str]:
    """The scores as aligned lines."""
    header = ["held-out", "seat", "against", "mean", *(f"pass@{k}" for k in ks), "tasks", "failed"]
    rows = [header]
    for one in found_scores:
        tasks = one.mean.count + one.mean.missing if one.mean else 0
        shown = [_shown(one.mean), *(_shown(one.passed[k]) for k in ks)]
        rows.append([one.held_out, one.seat, one.against or "-", *shown, str(tasks), str(one.failed)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _shown(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


# --------------------------------------------------------------------------------------------------------------- the journal


def table(told: History) -> Iterator[str]:
    """The evaluations as aligned lines."""
    names = max(len("held-out"), *map(len, told.held_out))
    measures = max(len("value"), *(len(headline_name(one)) for one in told.evaluations))
    yield f"{'held-out':<{names}}  version  {'value':<{measures}}  mean  95 % interval  tasks"
    for name in told.held_out:
        for one in told.evaluated(name):
            found_mean = estimate_mean(one.values)
            mean = "-" if found_mean is None else f"{found_mean.mean:.2f}"
            ends = "-" if found_mean is None else f"[{found_mean.low:.2f}, {found_mean.high:.2f}]"
            missing = sum(value is None for value in one.values)
            tasks = f"{len(one.values)}" + (f" ({missing} without a value)" if missing else "")
            yield f"{name:<{names}}  {one.version:>7}  {headline_name(one):<{measures}}  {mean:>4}  {ends:<13}  {tasks}"
