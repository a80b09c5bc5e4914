"""Sizes that come up again and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.local.shapes import rounded


@given(st.integers(1, 100_000))
def test_at_most_a_sixteenth_is_added(count: int) -> None:
    assert count <= rounded(count) <= count + count // 16


@given(st.integers(1, 100_000))
def test_what_is_rounded_stays(count: int) -> None:
    assert rounded(rounded(count)) == rounded(count)


def test_few_sizes_come_up() -> None:
    assert [rounded(count) for count in range(1, 33)] == list(range(1, 33))
    assert len({rounded(count) for count in range(257, 513)}) == 16
    assert len({rounded(count) for count in range(1, 4097)}) == 32 + 7 * 16
