"""Estimators against their closed forms, their invariances, and what is refused of those that people write."""

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from sparring import Comparable, F, rae
from sparring.errors import SettingError
from sparring.learner import GroupMean, RoleBaseline, advantages
from sparring.learner.advantages import Advantages, Checked, estimate, plain_state
from tests.learner.sets import comparable, f32

ILL_TYPED = (SettingError, TypeCheckError)
"""The run of these tests that checks shapes checks types too, and is the first to see them."""

REWARDS = st.floats(-100, 100, width=32)
SETS = st.lists(REWARDS, min_size=2, max_size=12)


def of(estimator: Advantages, group: Comparable, state: Mapping[str, Any] | None = None) -> list[float]:
    """The one value of each trajectory."""
    rows = estimate(estimator, group, state or {}).values
    assert all((row == row[0]).all() for row in rows)
    return [float(row[0]) for row in rows]


# ------------------------------------------------------------------------------------------------------------ group mean


def test_the_group_mean_by_hand() -> None:
    assert of(GroupMean(), comparable([1, 0, 0, 1])) == [0.5, -0.5, -0.5, 0.5]
    assert of(GroupMean(), comparable([3, 0, 0])) == [2, -1, -1]


def test_the_deviation_by_hand_is_that_of_the_rewards_themselves() -> None:
    assert of(GroupMean(deviation=True), comparable([1, 0, 0, 1])) == [1, -1, -1, 1]
    found = of(GroupMean(deviation=True), comparable([4, 0, 2]))
    spread = math.sqrt(8 / 3)  # the mean of 4, 4, 0; the sample deviation would be 2
    assert found == pytest.approx([2 / spread, -2 / spread, 0], rel=1e-6)


@given(SETS)
def test_the_group_mean_is_exact(rewards: list[float]) -> None:
    exact = [Fraction(float(np.float32(reward))) for reward in rewards]
    mean = sum(exact, Fraction(0)) / len(exact)
    found = of(GroupMean(), comparable(rewards))
    for value, reward in zip(found, exact, strict=True):
        assert value == pytest.approx(float(reward - mean), rel=1e-6, abs=1e-12)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12), st.integers(-1000, 1000))
def test_a_reward_for_all_changes_no_advantage(rewards: list[int], shift: int) -> None:
    for estimator in (GroupMean(), GroupMean(deviation=True)):
        shifted = of(estimator, comparable([reward + shift for reward in rewards]))
        assert shifted == of(estimator, comparable(rewards)), (
            "the numbers are small whole ones: nothing is rounded away"
        )


@given(SETS, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_a_group_is_nothing_to_it(rewards: list[float], rng: Any, deviation: bool) -> None:
    order = rng.sample(range(len(rewards)), len(rewards))
    found = of(GroupMean(deviation=deviation), comparable(rewards))
    turned = of(GroupMean(deviation=deviation), comparable([rewards[index] for index in order]))
    assert turned == [found[index] for index in order], "to the last bit, whatever the order of summation"


def test_nor_is_it_where_numbers_of_other_sizes_cancel() -> None:
    for rewards in ([1e20, 1, -1e20], [1e20, -1e20, 1], [1, 1e20, -1e20]):
        assert of(GroupMean(), comparable(rewards))[rewards.index(1)] == np.float32(2 / 3)


@given(SETS)
def test_with_the_deviation_the_scale_of_rewards_is_nothing_to_it(rewards: list[float]) -> None:
    found = of(GroupMean(deviation=True), comparable(rewards))
    assert of(GroupMean(deviation=True), comparable([4 * reward for reward in rewards])) == found
    if any(found):
        assert np.mean(np.square(found)) == pytest.approx(1, rel=1e-4)


@given(REWARDS, st.integers(2, 40), st.booleans())
def test_equal_rewards_teach_nothing(reward: float, count: int, deviation: bool) -> None:
    assert of(GroupMean(deviation=deviation), comparable([reward] * count)) == [0.0] * count, "not even by rounding"


@given(SETS, st.lists(st.integers(1, 20), min_size=12, max_size=12))
def test_lengths_do_not_enter_the_group_mean(rewards: list[float], lengths: list[int]) -> None:
    found = of(GroupMean(), comparable(rewards))
    assert of(GroupMean(), comparable(rewards, lengths[: len(rewards)])) == found


# --------------------------------------------------------------------------------------------------------- role baseline


def test_the_role_baseline_is_read_before_it_moves() -> None:
    checked = estimate(RoleBaseline(decay=0.5), comparable([1, 1, 1]), {})
    assert [float(row[0]) for row in checked.values] == [1, 0.5, 0.25]
    assert checked.state == {"game/solver/": 0.875}


def test_the_order_of_play_enters_the_role_baseline() -> None:
    one = of(RoleBaseline(decay=0.5), comparable([1, 0]))
    other = of(RoleBaseline(decay=0.5), comparable([0, 1]))
    assert (one, other) == ([1, -0.5], [0, 1])


def test_each_environment_seat_and_label_has_a_baseline() -> None:
    estimator, state = RoleBaseline(decay=0.5), {"game/solver/": 8.0}
    for other in (
        comparable([1], environment="other"),
        comparable([1], seat="prover"),
        comparable([1], label="sneaky"),
    ):
        checked = estimate(estimator, other, state)
        assert checked.values[0][0] == 1, "a new baseline starts at 0"
        assert checked.state["game/solver/"] == 8.0, "the others stay"
        assert len(checked.state) == 2
    assert estimate(estimator, comparable([1]), state).values[0][0] == -7


@given(st.lists(REWARDS, min_size=1, max_size=10), st.lists(REWARDS, min_size=1, max_size=10), st.floats(0, 0.99))
def test_two_sets_in_a_row_are_one_long_one(first: list[float], second: list[float], decay: float) -> None:
    estimator = RoleBaseline(decay=decay)
    one = estimate(estimator, comparable(first), {})
    two = estimate(estimator, comparable(second), plain_state(estimator, one.state))
    both = estimate(estimator, comparable(first + second), {})
    assert [float(row[0]) for row in one.values + two.values] == [float(row[0]) for row in both.values]
    assert two.state == both.state, "through JSON and back: not a bit is lost"


@given(st.lists(REWARDS, min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_role_baseline_is_the_weighted_sum(rewards: list[float], decay: float) -> None:
    state = estimate(RoleBaseline(decay=decay), comparable(rewards), {}).state
    last = len(rewards) - 1
    closed = sum((1 - decay) * decay ** (last - i) * float(np.float32(reward)) for i, reward in enumerate(rewards))
    assert state["game/solver/"] == pytest.approx(closed, rel=1e-9, abs=1e-9)


def test_the_state_that_is_given_is_left_alone() -> None:
    state = {"game/solver/": 1.0}
    estimate(RoleBaseline(), comparable([5, 5]), state)
    assert state == {"game/solver/": 1.0}


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, math.nan])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(SettingError, match=r"rae\(decay=.*at least 0 and less than 1"):
        rae(decay=decay)


# ------------------------------------------------------------------------------------------------------ estimators lifted


@advantages
def opo(group: Comparable) -> F:
    return group.rewards - (group.lengths * group.rewards).sum() / group.lengths.sum()  # type: ignore[no-any-return]


def test_a_function_is_lifted() -> None:
    group = comparable([1, 0, 0], [2, 4, 4])
    assert of(opo, group) == pytest.approx([0.8, -0.2, -0.2])
    assert (opo.name, opo.minimum) == ("opo", 2)
    assert estimate(opo, group, {"kept": 1}).state == {"kept": 1}


def test_a_function_that_makes_sense_of_one_trajectory() -> None:
    @advantages(minimum=1)
    def plain(group: Comparable) -> F:
        return group.rewards

    assert (plain.name, plain.minimum) == ("plain", 1)
    assert of(plain, comparable([7])) == [7]


def test_partials_and_objects_have_a_name_too() -> None:
    def scaled(group: Comparable, by: float) -> F:
        return group.rewards * np.float32(by)

    class Halved:
        def __call__(self, group: Comparable) -> F:
            return group.rewards / np.float32(2)

    assert advantages(partial(scaled, by=2)).name == "scaled"
    assert of(advantages(partial(scaled, by=2)), comparable([1, 2])) == [2, 4]
    assert advantages(Halved()).name == "Halved"


@pytest.mark.parametrize("minimum", [0, -1])
def test_a_minimum_that_is_none(minimum: int) -> None:
    with pytest.raises(SettingError, match="at least 1"):
        advantages(minimum=minimum)


@pytest.mark.parametrize("minimum", [1.5, "2"])
def test_a_minimum_that_is_no_number(minimum: Any) -> None:
    with pytest.raises(ILL_TYPED, match="minimum"):
        advantages(minimum=minimum)


def test_what_is_no_function_is_not_lifted() -> None:
    with pytest.raises(ILL_TYPED, match="function"):
        advantages(3)  # type: ignore[call-overload]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_one_value_is_laid_over_all_tokens(lengths: list[int]) -> None:
    group = comparable(list(range(len(lengths))), lengths)
    rows = estimate(advantages(lambda one: one.rewards), group, {}).values
    assert [len(row) for row in rows] == lengths
    assert [row.tolist() for row in rows] == [[float(index)] * length for index, length in enumerate(lengths)]


def test_values_for_each_token_are_kept() -> None:
    rows = [f32(1, 2, 3), f32(4)]
    checked = estimate(advantages(lambda group: rows), comparable([0, 0], [3, 1]), {})
    assert [row.tolist() for row in checked.values] == [[1, 2, 3], [4]]
    rows[0][0] = 9
    assert checked.values[0][0] == 1, "the estimator's own arrays are copied"


@pytest.mark.parametrize(
    "returned", [[1.0, 2.0], [1, 2], [np.float64(1), np.float32(2)], np.array([1, 2]), np.array([1.0, 2.0]), (1, 2)]
)
def test_one_number_each_in_any_form(returned: Any) -> None:
    assert of(advantages(lambda group: returned), comparable([0, 0])) == [1, 2]


# ------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (f32(1), r"the shape \(1,\): must be \(2,\)"),
        (f32(1, 2, 3), r"the shape \(3,\): must be \(2,\)"),
        (np.zeros((2, 1), np.float32), r"the shape \(2, 1\)"),
        (np.float32(1), r"the shape \(\)"),
        ([1.0], r"the shape \(1,\)"),
        ([f32(1, 1, 1)], r"shapes \[\(3,\)\] for lengths \[3, 3\]"),
        ([f32(1, 1, 1), f32(1)], r"shapes \[\(3,\), \(1,\)\] for lengths \[3, 3\]"),
        ([f32(1, 1, 1), 1.0], r"shapes \[\(3,\), \(\)\]"),
        (f32(1, math.nan), "nan: must be finite; rewards"),
        (f32(math.inf, 1), "inf: must be finite"),
        (np.array([1e300, 0.0]), "inf: must be finite"),
        ([f32(1, 1, 1), f32(1, math.nan, 1)], "nan: must be finite"),
        (None, "None: must be numbers.*is a return missing"),
        ("ab", "must be numbers"),
        (["a", "b"], "must be numbers"),
        ([{}, {}], "must be numbers"),
    ],
)
def test_bad_advantages_are_refused(returned: Any, said: str) -> None:
    def mine(group: Comparable) -> Any:
        return returned

    with pytest.raises(SettingError, match=said) as refused:
        estimate(advantages(mine), comparable([1, 0], seat="prover", label="sneaky"), {})
    for part in ("'mine'", "2 trajectories of seat 'prover'", "label 'sneaky'"):
        assert part in str(refused.value), "who returned it, and on what"


class Whatever:
    """An estimator that returns what it is given, whole."""

    name = "whatever"
    minimum = 1

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, group: Comparable, state: Mapping[str, Any]) -> Any:
        return self._answer


@pytest.mark.parametrize(
    "answer", [f32(1, 2), [f32(1), f32(2)], (f32(1, 2),), (f32(1, 2), None), (f32(1, 2), [1]), None]
)
def test_an_estimator_must_return_its_state_too(answer: Any) -> None:
    """Two numbers would unpack into advantages and state without a word."""
    with pytest.raises(SettingError, match=r"'whatever'.*must be \(advantages, state\)"):
        estimate(Whatever(answer), comparable([1, 2]), {})


@pytest.mark.parametrize(
    "state",
    [
        {"a": np.zeros(2)},
        {"a": np.float32(1)},
        {"a": math.nan},
        {"a": object()},
        {"a": {1j: 2}},
        {"a": 1 << 64},
        {"a": "\ud800"},
    ],
)
def test_a_state_that_is_no_json_is_refused(state: Mapping[str, Any]) -> None:
    with pytest.raises(SettingError, match="'whatever': its state must be JSON data"):
        plain_state(Whatever(None), state)


def test_the_state_is_what_the_journal_gives_back() -> None:
    given_state = {"b": (1, 2), "a": {3: 0.1}, "c": {"z", "y"}}
    plain = plain_state(Whatever(None), given_state)
    assert plain == {"a": {"3": 0.1}, "b": [1, 2], "c": ["y", "z"]}
    assert plain_state(Whatever(None), plain) == plain


def test_the_state_is_a_copy() -> None:
    inner: dict[str, Any] = {"a": [1]}
    plain_state(Whatever(None), inner)["a"].append(2)
    assert inner == {"a": [1]}


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_come_back_to_the_last_bit(state: dict[str, float]) -> None:
    assert plain_state(Whatever(None), state) == state


def test_checked_values_are_float32() -> None:
    checked: Checked = estimate(Whatever(([np.zeros(3), np.ones(3)], {})), comparable([1, 2]), {})
    assert [row.dtype for row in checked.values] == [np.float32, np.float32]
