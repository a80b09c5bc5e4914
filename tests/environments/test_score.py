"""A score is a number or a reason, and is never taken for one by accident."""

from decimal import Decimal
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.environments import Score
from sparring.environments.score import finite
from sparring.errors import RewardError, Unjudged


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_score_is_its_number(value: float) -> None:
    assert float(Score(value)) == value


@given(error=st.text(min_size=1))
def test_an_error_is_no_number(error: str) -> None:
    score = Score(error=error)
    with pytest.raises(Unjudged) as raised:
        float(score)
    assert error in str(raised.value)
    with pytest.raises(Unjudged):
        sum([float(score)])


def test_zero_is_a_value() -> None:
    assert float(Score(0.0)) == float(Score(0)) == float(Score(False)) == 0.0


@pytest.mark.parametrize("value, error", [(None, ""), (1.0, "timed out"), (0.0, "x")])
def test_exactly_one_of_value_and_error(value: float | None, error: str) -> None:
    with pytest.raises(RewardError, match="exactly one of value and error"):
        Score(value, error)


@pytest.mark.parametrize("value", [nan, inf, -inf, np.float32("nan"), 10**400, "1", [1.0], np.array([1.0, 2.0]), 1j])
def test_only_a_finite_number_is_a_value(value: float) -> None:
    with pytest.raises(RewardError, match=r"a Score's value is .*: must be (finite|a number); use error="):
        Score(value)
    with pytest.raises(RewardError, match=r"a Score's part 'a' is .*: must be (finite|a number); leave it out"):
        Score(1.0, parts={"a": value})


@pytest.mark.parametrize("score", [Score(1.0), Score(0.0), Score(error="x")])
def test_a_score_is_no_condition(score: Score) -> None:
    """`if await verify(...)` would hold for a wrong answer too."""
    with pytest.raises(RewardError, match="used as a condition: compare its number"):
        bool(score)
    with pytest.raises(RewardError):
        assert not score


@pytest.mark.parametrize(
    "number", [1, True, np.float32(1), np.int64(1), np.array(1.0), Decimal(1), Fraction(1), Score(1.0)]
)
def test_anything_that_is_a_number_is_taken_as_one(number: object) -> None:
    found = finite("x", number, "")
    assert found == 1.0
    assert type(found) is float


def test_a_missing_value_is_not_a_wrong_one() -> None:
    with pytest.raises(Unjudged, match="nobody home"):
        finite("x", Score(error="nobody home"), "")
