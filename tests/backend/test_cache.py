"""The memory of keys and values: what is in use is kept, and the bound holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.local.cache import STEP, KeyValueCache


def cache(slots: int = 8, max_tokens: int = 8 * STEP) -> KeyValueCache:
    return KeyValueCache(
        layers=2, heads=3, width=4, slots=slots, max_tokens=max_tokens, dtype=torch.float32, device=torch.device("cpu")
    )


def write(memory: KeyValueCache, slot: int, tokens: int, value: float) -> None:
    for index in range(2):
        keys, values = memory.layer(index)
        keys[slot, :, :tokens] = value + index
        values[slot, :, :tokens] = -value - index


def holds(memory: KeyValueCache, slot: int, tokens: int, value: float) -> bool:
    found = True
    for index in range(2):
        keys, values = memory.layer(index)
        assert keys.shape[1::2] == values.shape[1::2] == (3, 4)
        found &= bool(
            (keys[slot, :, :tokens] == value + index).all() & (values[slot, :, :tokens] == -value - index).all()
        )
    return found


def test_nothing_is_allocated_before_it_is_needed_and_nothing_after_release() -> None:
    memory = cache()
    assert (memory.bytes, memory.capacity) == (0, (0, 0))
    memory.reserve(2, 5)
    assert memory.capacity == (2, STEP)
    assert memory.bytes == 2 * 2 * 2 * 3 * 4 * STEP * 4
    memory.release()
    assert (memory.bytes, memory.capacity) == (0, (0, 0))


@given(steps=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4 * STEP)), min_size=1, max_size=8))
def test_growing_keeps_what_is_in_use_and_stays_within_the_bound(steps: list[tuple[int, int]]) -> None:
    """Whatever rows and lengths come, as long as `fits` allows them: what was written in the rows in use stays."""
    memory = cache(max_tokens=10 * STEP)
    held_rows, held_tokens, mark = 0, 0, 0.0
    for at, (rows, tokens) in enumerate(steps):
        wide = -(-tokens // STEP) * STEP
        if not memory.fits(rows, wide):
            assert rows > 1
            assert rows * wide > 10 * STEP
            continue
        memory.reserve(rows, tokens)
        have_rows, have_tokens = memory.capacity
        assert have_rows >= rows
        assert have_tokens >= tokens
        assert have_rows <= 8
        assert have_rows * have_tokens <= max(10 * STEP, have_tokens)
        for slot in range(min(rows, held_rows)):
            assert holds(memory, slot, min(tokens, held_tokens), mark + slot * 100)
        for slot in range(rows):
            write(memory, slot, tokens, at + 1 + slot * 100)
        held_rows, held_tokens, mark = rows, tokens, at + 1.0


def test_a_long_sequence_takes_slots_away_and_gives_them_back() -> None:
    memory = cache(max_tokens=8 * STEP)
    memory.reserve(8, STEP)
    memory.reserve(1, 8 * STEP)
    assert memory.capacity == (1, 8 * STEP)
    memory.reserve(8, STEP)
    assert memory.capacity == (8, STEP)
    memory.reserve(1, 20 * STEP)  # one sequence is always held, however long
    assert memory.capacity == (1, 20 * STEP)


@pytest.mark.parametrize(
    ("rows", "tokens", "fits"),
    [(8, STEP, True), (9, 1, False), (2, 4 * STEP, True), (2, 4 * STEP + 1, False), (1, 10**6, True)],
)
def test_what_fits(rows: int, tokens: int, *, fits: bool) -> None:
    assert cache().fits(rows, tokens) is fits


def test_copies_go_to_all_layers_of_all_targets_and_nowhere_else() -> None:
    memory = cache()
    memory.reserve(5, STEP)
    write(memory, 1, STEP, 7.0)
    memory.copy(1, [3, 4], 10)
    memory.copy(1, [], 10)
    for slot in (3, 4):
        assert holds(memory, slot, 10, 7.0)
        keys, values = memory.layer(0)
        assert not keys[slot, :, 10:].any()
        assert not values[slot, :, 10:].any()
    assert holds(memory, 1, STEP, 7.0)
    for slot in (0, 2):
        assert not memory.layer(0)[0][slot].any()
