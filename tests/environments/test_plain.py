"""One JSON text for equal data, in every process, and none for what is no data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from enum import Enum
from math import inf, nan
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.environments.plain import canonical

ROOT = Path(__file__).parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(value=JSON)
def test_data_is_its_own_json(value: Any) -> None:
    assert json.loads(canonical(value)) == value
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(value=st.dictionaries(TEXT, JSON))
def test_order_does_not_count(value: dict[str, Any]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@dataclass
class Card:
    rank: str
    suit: str = "spades"


class Point(msgspec.Struct):
    y: int
    x: int


class Side(Enum):
    PRO = "pro"


@pytest.mark.parametrize(
    "value, text",
    [
        (Card("J"), '{"rank":"J","suit":"spades"}'),
        (Point(y=1, x=2), '{"x":2,"y":1}'),
        ((1, 2.0, None), "[1,2.0,null]"),
        ({3, 1, 2}, "[1,2,3]"),
        ({2: "b", 1: "a"}, '{"1":"a","2":"b"}'),
        (Side.PRO, '"pro"'),
        (date(2020, 1, 2), '"2020-01-02"'),
        ("caf\u00e9", '"caf\u00e9"'),
        (2**70, str(2**70)),
        (-0.0, "-0.0"),
    ],
)
def test_what_is_data(value: object, text: str) -> None:
    assert canonical(value) == text.encode()


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value", [object(), print, Card, nan, inf, [1, {"a": -inf}], "\ud800", {"\udfff": 1}, {(1, 2): 3}, 1j, CIRCLE]
)
def test_what_is_none(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical(value)


def test_sets_of_text_do_not_depend_on_the_hash_seed() -> None:
    program = "from sparring.environments.plain import canonical; print(canonical({'a', 'b', 'c', 'd', 'e'}))"
    shown = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(shown) == 1
