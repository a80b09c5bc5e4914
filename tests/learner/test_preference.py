"""The loss of DPO and its slope: by hand, by finite differences, and what it does not depend on."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring import DPO
from sparring.errors import SettingError

MARGINS = st.lists(st.floats(-40, 40), min_size=1, max_size=5).map(np.array)
OBJECTIVES = st.builds(DPO, beta=st.floats(0.01, 3), smoothing=st.floats(0, 0.49))


def test_by_hand() -> None:
    objective = DPO(beta=0.5)
    margins = objective.margins(np.array([[-1.0, -2.0], [-3.0, -1.0]]), np.array([[-2.0, -2.0], [-3.0, -2.0]]))
    assert margins.tolist() == [1.0, -1.0]
    up = 1 / (1 + np.exp(-0.5))
    assert objective.losses(margins) == pytest.approx([-log(up), -log(1 - up)])
    assert objective.slopes(margins) == pytest.approx([-0.5 * (1 - up), -0.5 * up])
    assert DPO().losses(np.zeros(1)) == pytest.approx([log(2)]), "what has not learned yet"


@given(MARGINS, OBJECTIVES)
def test_the_slope_is_the_derivative(margins: np.ndarray, objective: DPO) -> None:
    step = 1e-5
    found = (objective.losses(margins + step) - objective.losses(margins - step)) / (2 * step)
    assert objective.slopes(margins) == pytest.approx(found, abs=1e-6, rel=1e-4)


@given(MARGINS)
def test_pairs_the_wrong_way_round_cost_the_same_where_half_are_thought_to_be(margins: np.ndarray) -> None:
    nearly = DPO(smoothing=0.5 - 1e-9)
    assert nearly.losses(margins) == pytest.approx(nearly.losses(-margins), abs=1e-6)


def test_huge_margins_are_finite() -> None:
    huge = np.array([1e6, -1e6])
    assert np.isfinite(DPO(beta=3.0).losses(huge)).all()
    assert DPO(beta=3.0).slopes(huge) == pytest.approx([0, -3])


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf")])
def test_a_beta_that_is_none(wrong: float) -> None:
    with pytest.raises(SettingError, match=r"DPO\(beta=.*must be a finite number above 0"):
        DPO(beta=wrong)


@pytest.mark.parametrize("wrong", [-0.1, 0.5, 1.0])
def test_a_smoothing_that_is_none(wrong: float) -> None:
    with pytest.raises(SettingError, match=r"DPO\(smoothing=.*at least 0 and below 0.5"):
        DPO(smoothing=wrong)
