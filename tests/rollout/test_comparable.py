"""Which rewards count as equal."""

from hypothesis import given
from hypothesis import strategies as st

from sparring.rollout.comparable import Scope, all_equal, comparable_sets
from tests.learner.sets import trajectory


def test_one_difference_anywhere_is_enough() -> None:
    same = [trajectory(1.0, episode=0), trajectory(1.0, episode=1)]
    assert all_equal(same, {})
    assert not all_equal([*same, trajectory(0.0, episode=2)], {})
    assert not all_equal([*same, trajectory(2.0, seat="judge"), trajectory(3.0, seat="judge", episode=1)], {})


def test_what_is_not_compared_may_differ() -> None:
    """Other seats, other labels, other episodes of a seat that is compared within each."""
    assert all_equal([trajectory(1.0), trajectory(0.0, seat="judge")], {})
    assert all_equal([trajectory(1.0), trajectory(0.0, label="aside", fork="a")], {})
    apart = [trajectory(1.0, episode=0), trajectory(0.0, episode=1)]
    assert not all_equal(apart, {}) and all_equal(apart, {"solver": "episode"})
    assert not all_equal([*apart, trajectory(5.0, fork="a", episode=1)], {"solver": "episode"})


def test_one_alone_differs_from_nothing() -> None:
    assert all_equal([trajectory(3.0)], {})


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.sampled_from(["", "x"]), st.booleans()), min_size=1
    ),
    st.sampled_from(["group", "episode"]),
)
def test_equal_means_that_no_compared_pair_differs(made: list[tuple[int, str, str, bool]], scope: Scope) -> None:
    drawn = [trajectory(float(won), seat=seat, label=label, episode=at) for at, seat, label, won in made]
    pairs = [
        (one, two)
        for one in drawn
        for two in drawn
        if (one.seat, one.label) == (two.seat, two.label)
        and (one.episode == two.episode or not (one.seat == "a" and scope == "episode"))
    ]
    assert all_equal(drawn, {"a": scope}) == all(one.reward == two.reward for one, two in pairs)
    assert sorted(i for members in comparable_sets(drawn, {"a": scope}) for i in members) == list(range(len(drawn)))
