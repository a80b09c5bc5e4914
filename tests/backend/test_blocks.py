"""Names of the blocks that contexts begin with."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.blocks import names_of


def names(tokens: list[int], weights: bytes = b"w", size: int = 4) -> list[bytes]:
    return list(names_of(np.array(tokens, np.int32), weights, size))


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20), st.integers(1, 5))
def test_two_contexts_share_the_names_of_what_they_share(one: list[int], other: list[int], size: int) -> None:
    equal = 0
    while equal < min(len(one), len(other)) and one[equal] == other[equal]:
        equal += 1
    first, second = names(one, size=size), names(other, size=size)
    assert len(first) == len(one) // size
    shared = [a == b for a, b in zip(first, second, strict=False)]
    assert shared == [place < equal // size for place in range(len(shared))]


def test_other_weights_give_other_names() -> None:
    assert not set(names([1, 2, 3, 4], b"w")) & set(names([1, 2, 3, 4], b"v"))


def test_equal_blocks_at_other_places_have_other_names() -> None:
    assert len(set(names([1, 2, 3, 4] * 3))) == 3
