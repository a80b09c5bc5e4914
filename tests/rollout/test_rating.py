"""Ratings against the formulas of the paper and against the library, and what they mean."""

from __future__ import annotations

from math import exp, isfinite, sqrt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openskill.models import BradleyTerryPart

from sparring.rollout.rating import START, Rating, played

RATINGS = st.builds(Rating, st.floats(-100, 150), st.floats(0.1, 25 / 3))
SCORES = st.sampled_from((1.0, 0.5, 0.0))
TRIED = [(START, START), (Rating(30.0, 2.0), Rating(20.0, 6.0)), (Rating(-4.0, 1.0), Rating(40.0, 0.5))]


def expected(one: Rating, other: Rating) -> float:
    """The score that `one` is expected to get."""
    return 1 / (1 + exp((other.mu - one.mu) / sqrt(one.sigma**2 + other.sigma**2 + 2 * (25 / 6) ** 2)))


def by_hand(one: Rating, other: Rating, score: float) -> Rating:
    """Weng and Lin's algorithm 1 for two players."""
    mine, theirs = (of.sigma**2 + (25 / 300) ** 2 for of in (one, other))
    c = sqrt(mine + theirs + 2 * (25 / 6) ** 2)
    p = 1 / (1 + exp((other.mu - one.mu) / c))
    return Rating(one.mu + mine / c * (score - p), sqrt(mine * (1 - (mine / c**2) ** 1.5 * p * (1 - p))))


@pytest.mark.parametrize(("one", "other"), TRIED)
@pytest.mark.parametrize("score", [1.0, 0.5, 0.0])
def test_a_game_moves_both_as_the_paper_says(one: Rating, other: Rating, score: float) -> None:
    mine, theirs = played(one, other, score)
    assert mine == pytest.approx(by_hand(one, other, score), rel=1e-12)
    assert theirs == pytest.approx(by_hand(other, one, 1 - score), rel=1e-12)


def test_it_is_the_library_as_it_comes() -> None:
    """Bit for bit, over games that go on from each other."""
    model = BradleyTerryPart()
    one, other = model.rating(), model.rating()
    mine, theirs = START, START
    for score in (1.0, 1.0, 0.5, 0.0, 1.0, 0.5):
        (one,), (other,) = model.rate([[one], [other]], scores=[score, 1 - score])
        mine, theirs = played(mine, theirs, score)
        assert (mine, theirs) == ((one.mu, one.sigma), (other.mu, other.sigma))
    assert (mine.ordinal, theirs.ordinal) == (one.ordinal(), other.ordinal())


def test_a_draw_is_half_a_win() -> None:
    """It tells nothing of who is better of two alike, only that less is unknown, and brings two who differ nearer."""
    mine, theirs = played(START, START, 0.5)
    assert mine == theirs and mine.mu == START.mu and mine.sigma < START.sigma
    better, worse = Rating(30.0, 3.0), Rating(20.0, 3.0)
    won, drew, lost = (played(better, worse, score)[0].mu for score in (1.0, 0.5, 0.0))
    assert lost < drew < better.mu < won and drew == pytest.approx((won + lost) / 2)
    assert played(better, worse, 0.5)[1].mu > worse.mu


@given(RATINGS, RATINGS, SCORES)
def test_it_does_not_matter_who_is_named_first(one: Rating, other: Rating, score: float) -> None:
    mine, theirs = played(one, other, score)
    assert played(other, one, 1 - score) == (theirs, mine)
    assert all(isfinite(value) for value in (*mine, *theirs)) and mine.sigma > 0 < theirs.sigma
    assert mine.mu >= one.mu or score < 1


def test_the_difference_says_how_often_one_wins() -> None:
    one, other = START, START
    seen = []
    for game in range(1200):
        seen.append(expected(one, other))
        one, other = played(one, other, 0.0 if game % 4 == 3 else 1.0)
    assert sum(seen[-400:]) / 400 == pytest.approx(0.75, abs=0.01)


def test_a_version_begins_with_its_policys_mean_and_is_less_certain() -> None:
    assert Rating(31.0, 1.5).inherited == Rating(31.0, 3.0)
    assert Rating(31.0, 5.0).inherited == Rating(31.0, START.sigma), (
        "never less certain than one of whom nothing is known"
    )
    assert START.inherited == START


def test_one_lucky_game_ranks_nobody_first() -> None:
    lucky, steady = played(START, START, 1.0)[0], Rating(26.0, 1.0)
    assert lucky.mu > steady.mu and lucky.ordinal < steady.ordinal
    assert steady.ordinal == 23.0


def test_a_rating_is_plain_data() -> None:
    data = msgspec.json.encode({"alice": Rating(1 / 3, 2 / 3)})
    assert data == b'{"alice":[0.3333333333333333,0.6666666666666666]}'
    assert msgspec.json.decode(data, type=dict[str, Rating]) == {"alice": Rating(1 / 3, 2 / 3)}
