"""examples/gsm8k.py: the verifier, the data's own format, and a short run."""

from pathlib import Path
from random import Random

from sparring import Lineup, MathTask, Scripted, play
from sparring.environments.verifiers import number
from tests.examples.short import evaluations_of, example, shortened, steps_of, trained

gsm8k = example("gsm8k")
PROBLEM = MathTask("How much is 2 + 2?", "4")


async def score(reply: str) -> float:
    return (await play(gsm8k.gsm8k, PROBLEM, Lineup({"solver": Scripted(lambda conversation: reply)}))).rewards[
        "solver"
    ]


async def test_the_boxed_answer_counts() -> None:
    assert await score("It is 2 + 2 = \\boxed{4}") == 1
    assert await score("\\boxed{5}") == 0
    assert await score("It is 4") == 0, "an answer that is not marked is none"


async def test_the_solver_sees_the_question_alone() -> None:
    finished = await play(gsm8k.gsm8k, PROBLEM, Lineup({"solver": Scripted(lambda conversation: "?")}))
    question = ("user", "How much is 2 + 2?\nPut the final answer in \\boxed{}.")
    assert finished.transcripts["solver"] == [question, ("solver", "?")]


def test_every_answer_is_a_number_that_can_be_compared() -> None:
    assert all(number(problem.answer) is not None for problem in [*gsm8k.train, *gsm8k.test])


async def test_a_short_run(tmp_path: Path) -> None:
    answers = {problem.question: problem.answer for problem in gsm8k.few}

    def reply(prompt: str, rng: Random) -> str:
        question = prompt.removesuffix("\nPut the final answer in \\boxed{}.")
        return rng.choice([f"\\boxed{{{answers[question]}}}", "I give up."])

    events = await trained(shortened(gsm8k.run, reply, tmp_path, groups_per_step=4))
    steps = steps_of(events)
    assert [step.step for step in steps] == [0, 1]
    for step in steps:
        assert 0 < step.metrics["reward"] < 1
        assert step.metrics["environment/solver/answered"] == step.metrics["reward"], "what is boxed is right here"
        assert step.metrics["trajectories"] == 32
    assert set(evaluations_of(events)) == {("held-out", version) for version in (0, 1, 2)}
