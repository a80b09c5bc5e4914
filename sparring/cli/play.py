"""`sparring play FILE[:NAME]`: one episode, without a model and without a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import anyio
import msgspec

from sparring.agents import Human, Lineup, Player, Scripted
from sparring.agents.stand_in import last_told, scripted_reply
from sparring.cli.load import found
from sparring.cli.usage import Parser, UsageError
from sparring.environments import Conversation, Environment, FunctionEnvironment, gold_reply, size
from sparring.learner.described import task_at
from sparring.learner.run import Episodes, Run
from sparring.rollout import Finished, play

ABOUT = """\
Play one episode of what FILE defines (a Run, an Episodes or an Environment; NAME, where it defines several) and print what
every seat saw and said, and its reward. Seats are played by a script (a legal option, the gold reply, or letters) or by you.

examples:
  sparring play examples/addition.py
  sparring play examples/addition.py --seat solver=human --task 7
  sparring play rules.py:debate --seat pro=human --task '{"question": "Tea or coffee?", "answers": ["tea", "coffee"]}'"""

PLAYERS = ("human", "script")


def command(words: Sequence[str]) -> int:
    """Run it; returns the exit code."""
    parser = Parser("play", usage="FILE[:NAME] [--seat NAME=human|script] [--task N|JSON] [--seed N]", about=ABOUT)
    parser.add_argument("file", metavar="FILE[:NAME]", help="the Python file that defines what is played")
    parser.add_argument(
        "--seat", metavar="NAME=PLAYER", action="append", default=[], help="human or script; repeatable"
    )
    parser.add_argument(
        "--task", metavar="N|JSON", default="0", help="a task's number in the run, or the task itself as JSON"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the script and the environment's own chance")
    arguments = parser.parse_args(words)
    kinds: tuple[type[Any], ...] = (Run, Episodes, Environment)
    environment, tasks = _parts(found(arguments.file, *kinds))
    task = chosen_task(environment, tasks, arguments.task)
    lineup = lineup_of(environment, task, arguments.seat, arguments.seed)
    finished = anyio.run(lambda: play(environment, task, lineup, seed=arguments.seed))
    print("\n".join(told(task, finished)))
    return 0


def _parts(target: Run | Episodes | Environment[Any]) -> tuple[Environment[Any], Episodes | None]:
    if isinstance(target, Environment):
        return target, None
    episodes = target if isinstance(target, Episodes) else target.sources[0]
    return episodes.environment, episodes


def chosen_task(environment: Environment[Any], episodes: Episodes | None, text: str) -> Any:
    """The task of that number, or the one that the text is as JSON, as the environment's task type."""
    if episodes is not None and text.isdecimal():
        count = size(episodes.tasks)
        if count is not None and int(text) >= count:
            raise UsageError(f"--task {text}: there are {count} tasks, numbered from 0")
        return task_at(episodes, int(text), environment.name)
    type_ = environment.task_type if isinstance(environment, FunctionEnvironment) else Any
    try:
        return msgspec.json.decode(text, type=Any if isinstance(type_, str) else type_)
    except msgspec.MsgspecError as error:
        remedy = (
            "give a number of the run's tasks, or a task as JSON" if episodes is not None else "give a task as JSON"
        )
        raise UsageError(f"--task {text!r}: {error}; {remedy}") from error


def lineup_of(environment: Environment[Any], task: Any, seats: Sequence[str], seed: int) -> Lineup:
    """A script at every seat but those that a person takes. Raises `UsageError` for an unknown seat or player."""
    gold = gold_reply(environment, task)
    players: dict[str, Player] = {seat: Scripted(script(Random(f"{seed}/{seat}"), gold)) for seat in environment.seats}
    for given in seats:
        seat, _, player = given.partition("=")
        if seat not in environment.seats:
            raise UsageError(f"--seat {given!r}: the seats are {', '.join(environment.seats)}; write NAME=human")
        if player not in PLAYERS:
            raise UsageError(f"--seat {given!r}: {player!r} cannot play here; it is one of {', '.join(PLAYERS)}")
        if player == "human":
            players[seat] = Human()
    return Lineup(players)


def script(rng: Random, gold: str | None) -> Callable[[Conversation], str]:
    """The scripted player of one seat."""

    def reply(conversation: Conversation) -> str:
        return scripted_reply(last_told(conversation), rng, gold)

    return reply


def told(task: Any, finished: Finished) -> Iterator[str]:
    """The episode as text: the task, every seat's conversation, what it was worth."""
    yield f"task: {msgspec.json.encode(task).decode()}"
    for seat, lines in finished.transcripts.items():
        yield f"--- {seat}"
        width = max((len(who) for who, _ in lines), default=0)
        for who, text in lines:
            yield f"{who:<{width}}  " + text.replace("\n", "\n" + " " * (width + 2))
    yield "---"
    for seat, value in finished.rewards.items():
        yield f"reward of {seat}: {value:g}"
    for seat, reason in finished.unjudged.items():
        yield f"reward of {seat}: not judged ({reason})"
    for name, value in finished.metrics.items():
        yield f"{name}: {value:g}"
    for name, note in finished.notes.items():
        yield f"{name}: {note}"
