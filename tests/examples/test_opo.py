"""examples/opo.py: the baseline is the optimal one, and a short run that a replay can only make again with the file."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring import Lineup, Scripted, play
from sparring.errors import SettingError
from sparring.learner import GroupMean
from sparring.learner.advantages import Advantages, estimate
from sparring.learner.replay import compare
from tests.examples.short import evaluations_of, example, shortened, steps_of, trained
from tests.learner.sets import comparable

opo = example("opo")
GROUPS = st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 50)), min_size=2, max_size=8)


def of(estimator: Advantages, group: list[tuple[int, int]]) -> list[float]:
    rewards, lengths = zip(*group, strict=True)
    return [float(row[0]) for row in estimate(estimator, comparable(rewards, lengths), {}).values]


def test_by_hand() -> None:
    assert of(opo.opo, [(1, 10), (0, 30)]) == [0.75, -0.25]


@given(GROUPS)
def test_it_makes_the_gradient_s_variance_least(group: list[tuple[int, int]]) -> None:
    """With gradients of squared norm l, the second moment of (r - b) times the gradient is the mean of l (r - b)^2."""
    rewards, lengths = (np.array(column, np.float64) for column in zip(*group, strict=True))
    baseline = rewards[0] - of(opo.opo, group)[0]

    def moment(b: float) -> float:
        return float((lengths * (rewards - b) ** 2).mean())

    for other in (baseline - 0.1, baseline + 0.1, rewards.mean()):
        assert moment(baseline) <= moment(other) + 1e-4


@given(GROUPS, st.integers(-100, 100))
def test_a_reward_for_all_changes_nothing(group: list[tuple[int, int]], shift: int) -> None:
    shifted = of(opo.opo, [(reward + shift, length) for reward, length in group])
    assert shifted == pytest.approx(of(opo.opo, group), abs=1e-4)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8), st.integers(1, 50))
def test_with_equal_lengths_it_is_the_group_mean(rewards: list[int], length: int) -> None:
    group = [(reward, length) for reward in rewards]
    assert of(opo.opo, group) == pytest.approx(of(GroupMean(), group), abs=1e-6)


async def test_the_sums() -> None:
    lineup = Lineup({"solver": Scripted(lambda conversation: "3 and 4 is 7.\nAnswer: 12")})
    finished = await play(opo.sums, opo.Question((3, 4, 5)), lineup)
    assert finished.rewards == {"solver": 1}
    assert finished.transcripts["solver"][0][1].startswith("What is 3 + 4 + 5? ")


async def test_a_short_run(tmp_path: Path) -> None:
    def reply(prompt: str, rng: Random) -> str:
        terms = prompt.removeprefix("What is ").partition("?")[0].split(" + ")
        steps = "Let me see. " * rng.randint(0, 3)
        return f"{steps}\nAnswer: {sum(map(int, terms)) + rng.randint(0, 1)}"

    events = await trained(shortened(opo.run, reply, tmp_path, groups_per_step=4))
    assert len(steps_of(events)) == 2
    assert all(step.metrics["mixed"] > 0 for step in steps_of(events))
    assert len(evaluations_of(events)) == 3
    with pytest.raises(SettingError, match=r"advantages of policy 'policy'.*opo:opo.*name the run's file too"):
        compare(events)
