"""`sparring eval`: the held-out evaluations that a run has made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sparring.cli.load import found
from sparring.cli.usage import Parser
from sparring.errors import SettingError
from sparring.learner.history import History, estimate_mean, headline_name, history, read_events
from sparring.learner.run import Run

ABOUT = """\
Show the held-out evaluations in a run's journal: a line for each held-out set and version, with its 95 % interval.
Evaluating other models or tasks, or a run's checkpoints anew, is not there yet.

examples:
  sparring eval runs/addition
  sparring eval examples/addition.py           the folder of the run that the file defines"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("eval", usage="RUN_FOLDER | FILE[:NAME]", about=ABOUT)
    parser.add_argument(
        "target", metavar="RUN_FOLDER | FILE[:NAME]", help="a run's folder, or the file that defines it"
    )
    target = parser.parse_args(words).target
    folder = Path(target) if Path(target).is_dir() or ".py" not in target else found(target, Run).path
    told = history(read_events(folder))
    if not told.evaluations:
        raise SettingError(
            f"run folder {str(folder)!r} holds no evaluations yet: has it held-out tasks, and was it started?"
        )
    print("\n".join(table(told)))
    return 0


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
