"""`sparring check FILE[:NAME]`: does an environment keep its contract?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import anyio

from sparring.cli.load import found
from sparring.cli.play import chosen_task
from sparring.cli.usage import Parser, UsageError
from sparring.environments import Environment
from sparring.learner.run import Episodes, Run
from sparring.rollout.check import Checked, check_environment

ABOUT = """\
Play every environment of what FILE defines (a Run, an Episodes or an Environment; NAME, where it defines several) with
stand-ins, in processes of its own, and print what its contract asks, a line for each check: it asks and is worth the same in
another process and beside other episodes; hidden fields change nothing; rewards keep the rules; the gold reply scores 1, and
empty, garbage and hostile replies do not, and hold up nothing. No model is needed. Exit code 1 where a check failed.

examples:
  sparring check examples/addition.py
  sparring check examples/kuhn.py --count 6 --seed 1
  sparring check rules.py:debate --task '{"question": "Tea or coffee?", "answers": ["tea", "coffee"]}'"""


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    usage = "FILE[:NAME] [--task JSON] [--count N] [--deadline SECONDS] [--seed N]"
    parser = Parser("check", usage=usage, about=ABOUT)
    parser.add_argument("file", metavar="FILE[:NAME]", help="the Python file that defines what is checked")
    parser.add_argument(
        "--task", metavar="JSON", action="append", default=[], help="a task, where FILE gives none; repeatable"
    )
    parser.add_argument("--count", type=int, default=8, help="so many tasks are played (default 8)")
    parser.add_argument(
        "--deadline", type=float, default=30.0, help="seconds for an episode, and for any call (default 30)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the stand-ins and the environment's own chance")
    arguments = parser.parse_args(words)
    kinds: tuple[type[Any], ...] = (Run, Episodes, Environment)
    target: Run | Episodes | Environment[Any] = found(arguments.file, *kinds)
    checked: list[Checked] = []
    for environment, tasks, trained in _parts(target, arguments.task):
        one: Callable[[], Any] = partial(
            check_environment,
            environment,
            tasks,
            count=arguments.count,
            trained=trained,
            deadline=arguments.deadline,
            seed=arguments.seed,
        )
        checked.append(anyio.run(one))
        print(f"{checked[-1]}\n")
    return int(not all(one.passed for one in checked))


Part = tuple[Environment[Any], Any, tuple[str, ...] | None]
"""An environment, its tasks, and the seats that are trained: all of them where it is None."""


def _parts(target: Run | Episodes | Environment[Any], given: Sequence[str]) -> Iterator[Part]:
    """What is checked: each environment once, with the settings that it has."""
    if isinstance(target, Environment):
        if not given:
            raise UsageError(
                f"{target.name} comes without tasks: give them as --task JSON, or name a Run or an Episodes"
            )
        yield target, [chosen_task(target, None, text) for text in given], None
        return
    if given:
        raise UsageError(f"--task {given[0]!r}: tasks are given for an Environment; this has its own")
    every = [target] if isinstance(target, Episodes) else [*target.sources, *target.named_held_out.values()]
    seen: list[Environment[Any]] = []
    for episodes in every:
        if episodes.environment not in seen:
            seen.append(episodes.environment)
            yield episodes.environment, episodes.tasks, _trained(episodes)


def _trained(episodes: Episodes) -> tuple[str, ...]:
    """The seats that a policy of the run may play."""
    seats = episodes.environment.seats
    return tuple(
        seat for seat in seats if any(isinstance(lineup.players.get(seat, ""), str) for lineup in episodes.lineups)
    )
