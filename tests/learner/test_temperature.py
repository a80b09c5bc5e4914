"""Temperatures that change over a run: what replies are drawn at, what is trained at, and what a crash does not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparring import Policy, Run, Sampling, grpo
from sparring.errors import SettingError
from sparring.learner.checked import schedule_of
from sparring.rollout import Coordinator
from sparring.rollout.events import Acted, Planned
from tests.learner.moods import WELL, run_of, trained
from tests.learner.worlds import crash_at_every_commit


def cooling(folder: Path) -> Run:
    policy = Policy("model", grpo(), sampling=Sampling(temperature=1.5), final_temperature=0.5)
    return run_of(folder, WELL, policies=policy, deterministic=True)


def test_where_it_is() -> None:
    policy = Policy("m", sampling=Sampling(temperature=1.5, max_tokens=7), final_temperature=0.5)
    assert [policy.sampling_at(step, 5).temperature for step in range(6)] == [1.5, 1.25, 1.0, 0.75, 0.5, 0.5]
    assert policy.sampling_at(2, 5).max_tokens == 7
    assert policy.sampling_at(0, 1).temperature == 1.5, "a run of one step has no way to go"
    assert replace(policy, final_temperature=None).sampling_at(3, 5) == policy.sampling
    rising = Policy("m", final_temperature=2.0)
    assert [rising.sampling_at(step, 3).temperature for step in range(3)] == [1.0, 1.5, 2.0]


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan"), True, "cold"])
def test_a_temperature_that_is_none(wrong: object) -> None:
    with pytest.raises(SettingError, match=r"final_temperature=.*must be None or a finite number above 0"):
        Policy("m", final_temperature=wrong)  # type: ignore[arg-type]


async def test_replies_are_drawn_at_it_and_trained_at_what_they_were_drawn_at(tmp_path: Path) -> None:
    """Three steps of two groups: 1.5, 1.0, 0.5."""
    run = cooling(tmp_path)
    events = await trained(run)
    drawn = {
        (event.group, event.sample.unpacked().temperature)
        for event in events
        if isinstance(event, Acted) and event.sample
    }
    assert drawn == {(group, (1.5, 1.0, 0.5)[group // 2]) for group in range(6)}
    state, scored = Coordinator(schedule_of(run)), {}
    for event in events:
        state.apply(event)
        if isinstance(event, Planned):
            units = state.batches["policy"].units
            scored[event.step] = {c.temperature for unit in units for t in unit.trajectories for c in t.contexts}
    assert scored == {0: {1.5}, 1: {1.0}, 2: {0.5}}


async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path) -> None:
    assert await crash_at_every_commit(cooling, tmp_path, after=True) > 6
