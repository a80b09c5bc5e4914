"""Credit by token and by turn: closed forms, slow references, and what changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring import GAE, Comparable, RewardToGo, TurnMean, reinforce_pp
from sparring.learner import GroupMean
from sparring.learner.advantages import Advantages, estimate
from sparring.learner.by_token import to_go, token_rewards
from sparring.learner.credit import Credit, Origin, Played, credited
from tests.learner.sets import context, f32, trajectory


def turned(
    rewards: Sequence[float],
    turns: Sequence[Sequence[int]],
    turn_rewards: Sequence[Sequence[float]],
    *,
    penalties: Sequence[Sequence[float]] = (),
    values: Sequence[Sequence[float]] = (),
) -> Comparable:
    """`turns` are each token's turn."""
    return Comparable(
        environment="game",
        seat="solver",
        label="",
        rewards=f32(*rewards),
        lengths=np.array([len(row) for row in turns], np.int32),
        turn_rewards=tuple(f32(*row) for row in turn_rewards),
        turns=tuple(np.array(row, np.int32) for row in turns),
        episodes=np.arange(len(rewards), dtype=np.int32),
        penalties=tuple(f32(*row) for row in penalties),
        values=tuple(f32(*row) for row in values),
    )


def of(estimator: Advantages, group: Comparable) -> list[list[float]]:
    return [row.tolist() for row in estimate(estimator, group, {}).values]


# -------------------------------------------------------------------------------------------------- what a return consists of


def test_where_rewards_are() -> None:
    """Of 6 in all, 1 for the first turn, 2 for the second; the rest came at the end."""
    group = turned([6], [[0, 0, 1, 1, 1]], [[1, 2]])
    assert token_rewards(group, 0).tolist() == [0, 1, 0, 0, 5]
    assert to_go(group, 0).tolist() == [6, 6, 5, 5, 5]
    assert of(RewardToGo(), group) == [[6, 6, 5, 5, 5]]


def test_penalties_are_where_they_were_given() -> None:
    """Of -0.5 + 1: 1 for the outcome, and half a point lost on the way."""
    group = turned([0.5], [[0, 0, 0]], [[0]], penalties=[[-0.25, 0, -0.25]])
    assert token_rewards(group, 0).tolist() == [-0.25, 0, 0.75]
    assert of(RewardToGo(), group) == [[0.5, 0.75, 0.75]]


def test_a_turn_without_tokens_gives_its_reward_at_the_end() -> None:
    """It was not sampled, or the reply was empty: the return stays what it is."""
    group = turned([3], [[1, 1]], [[2, 0]])
    assert token_rewards(group, 0).tolist() == [0, 3]


SETS = st.lists(
    st.tuples(st.integers(-5, 5), st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 2)), min_size=1, max_size=4)),
    min_size=2,
    max_size=5,
)


def drawn(made: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> Comparable:
    """(outcome, [(tokens, reward) of each turn]) of each trajectory."""
    turns = [[number for number, (count, _) in enumerate(row) for _ in range(count)] for _, row in made]
    given_ = [[reward for _, reward in row] for _, row in made]
    return turned([end + sum(r) for (end, _), r in zip(made, given_, strict=True)], turns, given_)


@given(SETS)
def test_a_return_is_the_sum_of_its_parts(made: list[tuple[int, list[tuple[int, int]]]]) -> None:
    group = drawn(made)
    for index, reward in enumerate(group.rewards.tolist()):
        assert token_rewards(group, index).sum() == pytest.approx(reward, abs=1e-6)
        assert to_go(group, index)[0] == pytest.approx(reward, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------------ by turn


def test_turns_are_compared_by_hand() -> None:
    """From turn 0 on: 3 and 1, from turn 1 on: 2 and 1; only the first has a turn 2."""
    group = turned([3, 1], [[0, 1, 1, 2], [0, 1]], [[1, 1, 1], [0, 1]])
    assert of(TurnMean(), group) == [[1, 0.5, 0.5, 0], [-1, -0.5]]


@given(SETS, st.integers(-50, 50))
def test_an_outcome_for_all_changes_no_turn(made: list[tuple[int, list[tuple[int, int]]]], shift: int) -> None:
    shifted = [(end + shift, row) for end, row in made]
    for one, other in zip(of(TurnMean(), drawn(made)), of(TurnMean(), drawn(shifted)), strict=True):
        assert other == pytest.approx(one, abs=1e-4)


@given(SETS)
def test_each_turn_s_advantages_sum_to_nothing(made: list[tuple[int, list[tuple[int, int]]]]) -> None:
    group = drawn(made)
    rows = of(TurnMean(), group)
    for turn in range(4):
        firsts = [
            row[at] for row, turns in zip(rows, group.turns, strict=True) for at in np.flatnonzero(turns == turn)[:1]
        ]
        assert sum(firsts) == pytest.approx(0, abs=1e-4)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=6))
def test_with_one_turn_it_is_the_group_mean(rewards: list[int]) -> None:
    group = turned(rewards, [[0, 0]] * len(rewards), [[reward] for reward in rewards])
    for one, other in zip(of(TurnMean(), group), of(GroupMean(), group), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_good_turn_in_a_lost_game_is_good() -> None:
    """What turn rewards are for: the group mean blames both turns alike."""
    group = turned([0, 0], [[0, 1], [0, 1]], [[1, -1], [-1, 1]])
    assert of(GroupMean(), group) == [[0, 0], [0, 0]]
    assert of(TurnMean(), group) == [[0, -1], [0, 1]]


# ----------------------------------------------------------------------------------------------------------------------- GAE


def slow_gae(rewards: Sequence[float], values: Sequence[float], decay: float, discount: float) -> list[float]:
    """The double sum of the paper."""
    later = [*values[1:], 0.0]
    deltas = [r + discount * after - now for r, after, now in zip(rewards, later, values, strict=True)]
    return [
        sum((discount * decay) ** (at - start) * deltas[at] for at in range(start, len(deltas)))
        for start in range(len(deltas))
    ]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.floats(-2, 2, width=32)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_is_the_paper_s_sum(steps: list[tuple[int, float]], decay: float, discount: float) -> None:
    rewards, values = [[float(x) for x in column] for column in zip(*steps, strict=True)]
    turns, last = list(range(len(steps))), sum(rewards)
    group = turned([last], [turns], [rewards], values=[values])
    (found,) = of(GAE(decay=decay, discount=discount), group)
    assert found == pytest.approx(slow_gae(rewards, values, decay, discount), rel=1e-4, abs=1e-4)


def test_the_two_ends_of_lambda() -> None:
    group = turned([1], [[0, 0, 0]], [[0]], values=[[0.25, 0.5, 0.75]])
    assert of(GAE(decay=1.0), group) == [[0.75, 0.5, 0.25]], "the return minus the value"
    assert of(GAE(decay=0.0), group) == [[0.25, 0.25, 0.25]], "how the value changed, and in the end the reward"


@given(st.integers(1, 8), st.floats(0.1, 1), st.floats(0, 1))
def test_true_values_leave_nothing_to_learn(length: int, discount: float, decay: float) -> None:
    """A chain with one way through it and a reward of 1 at its end: V_t = discount^(what is left)."""
    values = [discount ** (length - 1 - at) for at in range(length)]
    group = turned([1], [[0] * length], [[0]], values=[values])
    assert of(GAE(decay=decay, discount=discount), group)[0] == pytest.approx([0] * length, abs=1e-5)


def test_the_better_branch_of_a_small_mdp_has_the_advantage() -> None:
    """Left pays 1 and leads to 3, right pays 2 and nothing more; values are those of the policy that tosses a coin."""
    v0 = 0.5 * (1 + 3) + 0.5 * 2
    group = turned([4, 2], [[0, 1], [0]], [[1, 3], [2]], values=[[v0, 3.0], [v0]])
    for decay in (0.0, 0.5, 1.0):
        assert of(GAE(decay=decay), group) == [pytest.approx([4 - v0, 0.0]), pytest.approx([2 - v0])]


def test_returns_have_a_lambda_of_their_own() -> None:
    """What the critic is to become: with lambda 1 the rewards to come, whatever it says now; with 0 its own next value."""
    one = trajectory(1, context([3]), turn_rewards=[0])
    played = [Played(trajectory=one, values=f32(0.25, 0.5, 0.75))]
    for decay, wanted in ((1.0, [1, 1, 1]), (0.0, [0.5, 0.75, 1])):
        credit = Credit(advantages=GAE(decay=0.0), returns=GAE(decay=decay))
        found = credited(played, credit, {}, {0: Origin(environment="game")})
        assert [row.tolist() for row in found.returns] == [wanted]
        assert [row.tolist() for row in found.values] == [[0.25, 0.25, 0.25]]


def test_the_reward_to_go_is_whitened_over_tokens() -> None:
    """reinforce_pp with turn rewards: what was earned before a token is none of its merit."""
    one = trajectory(2, context([1, 1]), turn_rewards=[2, 0])
    other = trajectory(0, context([1, 1]), episode=1, turn_rewards=[0, 0])
    algorithm = reinforce_pp()
    played = [Played(trajectory=t) for t in (one, other)]
    found = credited(played, algorithm.credit, {}, {0: Origin(environment="game")})
    assert [row.tolist() for row in found.values] == [
        pytest.approx([3**0.5, -1 / 3**0.5]), pytest.approx([-1 / 3**0.5] * 2)
    ]  # fmt: skip
