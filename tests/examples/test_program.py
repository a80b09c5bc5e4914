"""examples/program.py: OpenAI's own client against a seat, trained; a run that goes on as if never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sparring import Lineup, Sampling, Scripted, play
from sparring.backend.bytes_renderer import ByteRenderer
from sparring.rollout.events import Acted, Ended
from sparring.rollout.trajectory import trajectories
from tests.examples.short import example, shortened, steps_of, trained
from tests.learner.worlds import crash_at_every_commit

program = example("program")
TASK = program.Problem("What is 6 * 7?", "42")


async def test_a_program_is_a_player() -> None:
    lineup = Lineup({"agent": Scripted(lambda conversation: "\\boxed{42}")})
    finished = await play(program.program, TASK, lineup)
    assert finished.rewards == {"agent": 1.0}
    said = [text for who, text in finished.transcripts["agent"] if who == "user"]
    assert said.count("What is 6 * 7?") == 2
    assert any("Attempt by estimating first:\n\\boxed{42}" in text for text in said)


def says(prompt: str, rng: Random) -> str:
    return rng.choice(["\\boxed{42}", "\\boxed{41}", "I do not know."])


def short(folder: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "train": replace(program.run.train, tasks=[TASK] * 8),
        "held_out": None,
        "policies": replace(program.run.policies, sampling=Sampling(max_tokens=100)),
        "groups_per_step": 1,
        "group_size": 4,
        "deterministic": True,
    }
    return shortened(program.run, says, folder, **settings | changes)


async def test_a_short_run_trains_on_what_was_sampled(tmp_path: Path) -> None:
    events = await trained(short(tmp_path, steps=3))
    assert len(steps_of(events)) == 3
    assert {step.metrics["contexts"] for step in steps_of(events)} == {12.0}, "three in each episode"
    for ended in (event for event in events if isinstance(event, Ended)):
        mine = [
            one for one in events if isinstance(one, Acted) and (one.group, one.member) == (ended.group, ended.member)
        ]
        (made,) = trajectories(mine, ended, {"agent": "policy"})
        assert sorted({int(turn) for context in made.contexts for turn in context.turn}) == list(range(-1, len(mine)))
        sampled = sorted(one.reply.text for one in mine if one.reply is not None)
        recorded = [
            ByteRenderer().text(context.tokens[context.turn == turn])
            for context in made.contexts
            for turn in set(context.turn.tolist()) - {-1}
        ]
        assert sorted(recorded) == sampled
        asked_again = [one for one in made.contexts if "Put it in" in ByteRenderer().text(one.tokens)]
        assert len(asked_again) == len(mine) - 3, "a conversation that goes on is one context"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_run_that_crashes_at_any_commit_ends_as_if_nothing_had_happened(tmp_path: Path, after: bool) -> None:
    """Byte for byte, with the same weights, though two of the requests are made at once."""
    assert await crash_at_every_commit(lambda folder: short(folder, steps=1), tmp_path, after=after) > 5
