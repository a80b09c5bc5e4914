"""examples/humaneval.py: repair turns on the public examples, the verdict by the hidden tests, and a short run."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from sparring import Lineup, Sampling, Scripted, human_eval, play
from tests.examples.short import evaluations_of, example, shortened, steps_of, trained

humaneval = example("humaneval")
TASK = humaneval.CodeTask("Write double.", "double", ["assert double(3) == 6"], ["assert double(1) == 2"])
RIGHT, WRONG = "def double(x):\n    return 2 * x", "def double(x):\n    return x"


async def played(*replies: str, repairs: int = 2) -> tuple[float, list[tuple[str, str]]]:
    rest = iter(replies)
    lineup = Lineup({"coder": Scripted(lambda conversation: next(rest))})
    finished = await play(humaneval.humaneval(repairs=repairs), TASK, lineup)
    return finished.rewards["coder"], list(finished.transcripts["coder"])


async def test_who_is_right_at_once_is_not_asked_again() -> None:
    reward, told = await played(RIGHT)
    assert (reward, len(told)) == (1.0, 2)


async def test_who_repairs_it_is_right_and_never_saw_a_hidden_test() -> None:
    reward, told = await played(WRONG, RIGHT)
    assert reward == 1.0
    assert "assert double(1) == 2" in told[2][1]
    assert "double(3)" not in str(told)


async def test_who_fits_the_examples_alone_is_wrong() -> None:
    assert (await played("def double(x): return 2"))[0] == 0.0
    assert (await played(WRONG, repairs=0))[0] == 0.0


async def test_a_short_run(tmp_path: Path) -> None:
    solutions = {task.entry: task.solution for task in human_eval()}

    def reply(prompt: str, rng: Random) -> str:
        known = [code for entry, code in solutions.items() if f"{entry}(" in prompt]
        return rng.choice([*known, *(f"I do not know {n} of it." for n in range(6))])

    policies = replace(humaneval.run.policies, sampling=Sampling(max_tokens=4000))  # a letter is a token here
    settings: dict[str, Any] = {
        "groups_per_step": 2,
        "group_size": 4,
        "steps": 1,
        "held_out": None,
        "policies": policies,
    }
    run = shortened(humaneval.run, reply, tmp_path, **settings)
    events = await trained(run)
    (step,) = steps_of(events)
    assert 0 < step.metrics["reward"] < 1
    assert evaluations_of(events) == {}
