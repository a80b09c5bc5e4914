"""examples/prover_verifier.py: what each of the four gets, and a short run in which both policies learn."""

from pathlib import Path
from random import Random

import pytest

from sparring import Lineup, Scripted, play
from sparring.environments import Conversation, Message
from tests.examples.short import evaluations_of, example, shortened, steps_of, trained

pvg = example("prover_verifier")
TASK = pvg.Problem("What is 10 + 20?", "30")


def by_role(conversation: Conversation) -> str:
    """Right where it is to help, wrong where it is to mislead."""
    asked = conversation.entries[-1]
    assert isinstance(asked, Message)
    return "so it is 30" if asked.text.startswith("Solve it.") else "so it is 31"


@pytest.mark.parametrize(
    ("said", "rewards", "metrics"),
    [
        ("yes", {"prover/1": 1, "prover/2": 1, "verifier/1": 1, "verifier/2": 0}, (0.5, 1)),
        ("no", {"prover/1": 0, "prover/2": 0, "verifier/1": 0, "verifier/2": 1}, (0.5, 0)),
    ],
)
async def test_who_gets_what(said: str, rewards: dict[str, int], metrics: tuple[float, float]) -> None:
    lineup = Lineup({"prover": Scripted(by_role), "verifier": Scripted(lambda conversation: said)})
    done = await play(pvg.game, TASK, lineup)
    assert done.rewards == rewards
    assert (done.metrics["verifier_accuracy"], done.metrics["fooled"]) == metrics
    seen = done.transcripts["verifier/2"][0][1]
    assert seen.startswith("What is 10 + 20?\nso it is 31\nCorrect?") and "WRONG" not in seen


async def test_a_short_run(tmp_path: Path) -> None:
    def reply(prompt: str, rng: Random) -> str:
        return rng.choice(("yes", "no")) if "Reply with exactly one of" in prompt else str(rng.randint(20, 99))

    events = await trained(shortened(pvg.run, reply, tmp_path, groups_per_step=2, group_size=2))
    steps = [(step.policy, step.step, step.metrics["trajectories"]) for step in steps_of(events)]
    assert sorted(steps) == [(name, step, 8.0) for name in ("prover", "verifier") for step in (0, 1)]
    assert {name for name, _ in evaluations_of(events)} == {"now", "old verifier"}
