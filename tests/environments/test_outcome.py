"""The reward rules: every seat's return, or an error that says which seat, which value and what to do."""

from __future__ import annotations

from math import inf, isclose, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.environments import Outcome, Rewards, Score, Seat, settle
from sparring.errors import RewardError
from tests.environments.conftest import Scripted, saying, seat

NUMBERS = st.floats(-1e6, 1e6)


def two() -> tuple[Seat, Seat]:
    running = Scripted(script=lambda conversation, request: "yes")
    return Seat("pro", running), Seat("con", running)


# ------------------------------------------------------------------------------------------------- what is returned


@pytest.mark.parametrize("returned", [1, 1.0, True, np.float32(1), np.array(1.0), Score(1.0), Outcome(1.0)])
async def test_one_number_for_the_one_seat(returned: Any) -> None:
    solver = seat("a")
    await solver.ask("one")
    settled = settle(returned, [solver], trained=["solver"])
    assert settled.returns == {solver: 1.0}
    assert type(settled.returns[solver]) is float
    assert not settled.unjudged


@pytest.mark.parametrize("returned", [1.0, Score(1.0), Score(error="x"), Outcome(0.0), True])
def test_one_number_for_two_seats_is_refused(returned: Rewards) -> None:
    with pytest.raises(RewardError, match=r"for 2 seats \(pro, con\): return a mapping \{seat: reward\}"):
        settle(returned, two())


@pytest.mark.parametrize("returned", ["1", [1.0], ((1.0,),), 1j, object()])
def test_what_is_no_reward_is_refused(returned: Any) -> None:
    with pytest.raises(RewardError, match="return a number, a Score, a mapping from seats, an Outcome or None"):
        settle(returned, [seat()])


@pytest.mark.parametrize("value", [nan, inf, -inf, np.float64("nan"), 10**400, np.array([1.0, 2.0])])
def test_what_is_not_finite_is_refused(value: Any) -> None:
    solver = seat()
    for returned in (value, {solver: value}, Outcome({solver: value})):
        with pytest.raises(
            RewardError, match=r"the reward of Seat\('solver'\) is .*: must be .*; return Score\(error="
        ):
            settle(returned, [solver])


def test_a_mapping_gives_each_seat_its_own() -> None:
    pro, con = two()
    settled = settle({con: -1, pro: Score(0.5)}, [pro, con])
    assert settled.returns == {pro: 0.5, con: -1.0}
    assert list(settled.returns) == [pro, con]


def test_unknown_seats_are_refused() -> None:
    pro, con = two()
    for unknown in ("pro", seat(), 0):
        with pytest.raises(
            RewardError, match=r"which is no seat of this episode: the seats are Seat\('pro'\), Seat\('con'\)"
        ):
            settle({unknown: 1.0}, [pro, con])  # type: ignore[dict-item]


def test_none_is_no_reward() -> None:
    pro, con = two()
    with pytest.raises(RewardError, match=r"the reward of Seat\('pro'\) is None: must be a number"):
        settle({pro: None, con: 1.0}, [pro, con])  # type: ignore[dict-item]


# ------------------------------------------------------------------------------------------------- who must be rewarded


async def test_a_trained_seat_that_spoke_needs_a_reward() -> None:
    pro, con = two()
    await pro.ask("?")
    for returned in (None, {con: 1.0}, {}, Outcome(metrics={"x": 1.0})):
        with pytest.raises(RewardError, match=r"Seat\('pro'\) is trained and spoke, but got no reward"):
            settle(returned, [pro, con], trained=["pro", "con"])
        assert pro not in settle(returned, [pro, con], trained=["con"]).returns


async def test_a_fork_that_spoke_needs_a_reward_of_its_own() -> None:
    pro, con = two()
    fork = pro.fork("bold").fork()
    await fork.ask("?")
    with pytest.raises(RewardError, match=r"Seat\('pro/1.1'\) is trained and spoke"):
        settle({pro: 1.0}, [pro, con], trained=["pro"])
    settled = settle({pro: 1.0, fork: 0.5}, [pro, con], trained=["pro"])
    assert settled.returns == {pro: 1.0, fork: 0.5}
    assert list(settled.returns) == [pro, fork]


async def test_one_number_is_the_seats_and_not_its_forks() -> None:
    solver = seat("a")
    fork = solver.fork()
    await fork.ask("?")
    with pytest.raises(RewardError, match=r"Seat\('solver/1'\) is trained and spoke"):
        settle(1.0, [solver], trained=["solver"])


async def test_a_seat_that_inherited_its_words_did_not_speak() -> None:
    solver = seat("a")
    await solver.ask("?")
    solver.fork()
    assert len(settle(1.0, [solver], trained=["solver"]).returns) == 1


def test_a_reward_for_who_never_spoke_is_kept() -> None:
    pro, con = two()
    assert settle({con: 1.0}, [pro, con], trained=["pro", "con"]).returns == {con: 1.0}


async def test_turn_rewards_alone_are_a_reward() -> None:
    solver = seat("a", "b")
    await solver.ask("one")
    solver.reward(0.25)
    await solver.ask("two")
    solver.reward(0.5)
    assert settle(None, [solver], trained=["solver"]).returns == {solver: 0.75}
    assert settle(1.0, [solver], trained=["solver"]).returns == {solver: 1.75}


async def test_rewards_that_add_up_to_infinity_are_refused() -> None:
    solver = seat("a")
    await solver.ask("one")
    solver.reward(1.7e308)
    with pytest.raises(RewardError, match=r"the return of Seat\('solver'\) is inf: must be finite"):
        settle(1.7e308, [solver])


async def test_who_could_not_be_judged_is_named_with_the_reason() -> None:
    pro, con = two()
    await pro.ask("?")
    await con.ask("?")
    pro.reward(1.0)
    settled = settle({pro: Score(error="judge died"), con: 1.0}, [pro, con], trained=["pro", "con"])
    assert settled.unjudged == {pro: "judge died"}
    assert settled.returns == {con: 1.0}
    alone = seat("a")
    await alone.ask("?")
    assert settle(Score(error="judge died"), [alone], trained=["solver"]).unjudged == {alone: "judge died"}


# ------------------------------------------------------------------------------------------------------------- zero sum


@given(value=NUMBERS, credit=NUMBERS)
async def test_zero_sum_counts_everything_that_a_seat_got(value: float, credit: float) -> None:
    pro, con = two()
    await pro.ask("?")
    pro.reward(credit)
    returned = {pro: value, con: -value - credit}
    settled = settle(returned, [pro, con], zero_sum=["pro", "con"])
    assert isclose(sum(settled.returns.values()), 0.0, abs_tol=1e-6)
    with pytest.raises(RewardError, match=r"zero_sum seats got pro: .*, con: .*, which add up to .*: must be 0"):
        settle(returned | {con: 1.0 - value - credit}, [pro, con], zero_sum=["pro", "con"])


def test_zero_sum_counts_forks_and_leaves_others_out() -> None:
    pro, con = two()
    judge = Seat("judge", saying())
    one, other = pro.fork(), pro.fork()
    rewards: dict[Seat, float | Score] = {one: 1.0, other: 0.5, con: -1.5, judge: 7.0}
    everybody = [pro, con, judge]
    assert settle(rewards, everybody, zero_sum=["pro", "con"]).returns == rewards
    with pytest.raises(RewardError, match=r"add up to 7\.0"):
        settle(rewards, everybody, zero_sum=["pro", "con", "judge"])


def test_half_of_a_zero_sum_is_refused() -> None:
    pro, con = two()
    with pytest.raises(RewardError, match=r"zero_sum seats got pro: 1\.0, which add up to 1.0"):
        settle({pro: 1.0}, [pro, con], zero_sum=["pro", "con"])
    assert settle(None, [pro, con], zero_sum=["pro", "con"]).returns == {}


def test_a_zero_sum_with_an_unjudged_side_cannot_be_checked() -> None:
    pro, con = two()
    settled = settle({pro: Score(error="?"), con: 1.0}, [pro, con], zero_sum=["pro", "con"])
    assert settled.returns == {con: 1.0}


# ---------------------------------------------------------------------------------------------------- metrics and notes


def test_metrics_and_the_parts_of_scores() -> None:
    pro, con = two()
    fork = con.fork()
    rewards = {pro: Score(1.0, parts={"right": 1}), fork: Score(error="?", parts={"length": 3})}
    settled = settle(Outcome(rewards, metrics={"rounds": 2}, notes={"winner": "pro"}), [pro, con])
    assert settled.metrics == {"rounds": 2.0, "pro/right": 1.0, "con/1/length": 3.0}
    assert all(type(value) is float for value in settled.metrics.values())
    assert settled.notes == {"winner": "pro"}


@pytest.mark.parametrize("value", [nan, inf, "1", None, [1]])
def test_a_metric_is_a_finite_number(value: Any) -> None:
    with pytest.raises(RewardError, match=r"metric 'm' is .*: must be .*; leave it out"):
        settle(Outcome(1.0, metrics={"m": value}), [seat()])


def test_a_note_is_text() -> None:
    with pytest.raises(RewardError, match="note 'n' is 3: must be text; numbers are metrics"):
        settle(Outcome(1.0, notes={"n": 3}), [seat()])  # type: ignore[dict-item]


async def test_refused_picks_are_counted_over_all_seats_and_forks() -> None:
    running = saying("x", "yes", "x", "x", "no")
    pro, con = Seat("pro", running), Seat("con", running)
    assert "illegal" not in settle({pro: 0.0}, [pro, con]).metrics
    await pro.pick("?", ("yes", "no"))
    await con.fork().pick("?", ("yes", "no"))
    assert settle({pro: 0.0}, [pro, con]).metrics["illegal"] == 3.0
    await con.pick("?", ("yes", "no"))
    assert settle({pro: 0.0}, [pro, con]).metrics["illegal"] == 3.0


async def test_no_metric_is_given_twice() -> None:
    solver = seat("yes")
    score = Score(1.0, parts={"right": 1.0})
    with pytest.raises(RewardError, match="metric 'solver/right' is given by the environment and by sparring"):
        settle(Outcome(score, metrics={"solver/right": 0.0}), [solver])
    await solver.pick("?", ("yes", "no"))
    with pytest.raises(RewardError, match="metric 'illegal' is given by the environment and by sparring"):
        settle(Outcome(1.0, metrics={"illegal": 0.0}), [solver])
