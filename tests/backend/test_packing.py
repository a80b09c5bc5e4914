"""The layout of micro-batches: every scored token once, predicted from the right state, prefixes once per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.datum import Datum
from sparring.backend.local.base import seen_by
from sparring.backend.local.packing import MicroBatch, plan


def _datum(tokens: Sequence[int], scored: Sequence[int], seed: int = 0) -> Datum:
    random = np.random.default_rng(seed)
    mask = np.isin(np.arange(len(tokens)), scored)
    values = [np.where(mask, random.normal(size=len(tokens)), 0).astype(np.float32) for _ in range(3)]
    return Datum(
        tokens=np.asarray(tokens, np.int32),
        mask=mask,
        logprobs=values[0],
        advantages=values[1],
        weights=values[2],
        temperature=0.5 + random.random(),
    )


@st.composite
def _calls(draw: st.DrawFn) -> list[Datum]:
    """Data that begin alike, up to anywhere, are alike, or continue each other; any of their tokens are scored.
    Padding is 0."""
    data: list[Datum] = []
    for seed in range(draw(st.integers(1, 10))):
        known: list[int] = draw(st.sampled_from(data)).tokens.tolist() if data else []
        begin = known[: draw(st.integers(0, len(known)))]
        tokens = begin + draw(st.lists(st.integers(1, 4), min_size=max(0, 2 - len(begin)), max_size=7))
        scored = draw(st.lists(st.sampled_from(range(1, len(tokens)))))
        data.append(_datum(tokens, scored, seed=seed // 2))
    return draw(st.permutations(data))


def _seen(batch: MicroBatch, row: int, column: int) -> list[int]:
    """The tokens that the state at a place may depend on, in order: what attention and positions make of a row."""
    end, positions = (torch.from_numpy(field[row : row + 1]) for field in (batch.rows.end, batch.rows.positions))
    (seen,) = seen_by(end, positions, None)
    places = np.flatnonzero(seen[column].numpy())
    assert batch.rows.positions[row, places].tolist() == list(range(len(places)))
    return [int(token) for token in batch.rows.tokens[row, places]]


@given(_calls(), st.integers(1, 64), st.sampled_from([1, 24, 1024]))
def test_every_scored_token_is_predicted_once_from_what_precedes_it(
    data: list[Datum], budget: int, longest: int
) -> None:
    met: set[tuple[int, int]] = set()
    for batch in plan(data, token_budget=budget, longest_tree=longest):
        width = batch.rows.tokens.shape[1]
        for n in range(len(batch.source)):
            index, place = int(batch.datum[n]), int(batch.token[n])
            datum = data[index]
            assert (index, place) not in met
            met.add((index, place))
            row, column = divmod(int(batch.source[n]), width)
            assert _seen(batch, row, column) == datum.tokens[:place].tolist()
            assert batch.targets[n] == datum.tokens[place]
            got = (batch.q[n], batch.advantages[n], batch.weights[n], batch.temperature[n])
            want = (datum.logprobs[place], datum.advantages[place], datum.weights[place], np.float32(datum.temperature))
            assert got == want
    assert met == {(i, int(t)) for i, datum in enumerate(data) for t in np.flatnonzero(datum.mask)}


@given(_calls(), st.integers(1, 64))
def test_tokens_are_like_one_another_where_state_and_token_and_temperature_are(data: list[Datum], budget: int) -> None:
    for batch in plan(data, token_budget=budget):
        keys = list(zip(batch.source.tolist(), batch.targets.tolist(), batch.temperature.tolist(), strict=True))
        assert [keys[batch.distinct[like]] for like in batch.like] == keys
        assert len(batch.distinct) == len(set(keys))


@given(_calls(), st.integers(1, 64))
def test_a_row_computes_what_its_data_begin_with_once(data: list[Datum], budget: int) -> None:
    for batch in plan(data, token_budget=budget):
        for row, tokens in enumerate(batch.rows.tokens):
            seen = [tuple(_seen(batch, row, int(column))) for column in np.flatnonzero(tokens)]
            assert len(set(seen)) == len(seen)


@given(_calls(), st.integers(1, 64), st.sampled_from([1, 24, 1024]))
def test_micro_batches_keep_the_budget_unless_one_row_exceeds_it(data: list[Datum], budget: int, longest: int) -> None:
    for batch in plan(data, token_budget=budget, longest_tree=longest):
        assert batch.rows.tokens.size <= budget or len(batch.rows.tokens) == 1
        assert batch.rows.tokens.shape[1] <= max(min(longest, budget), *(len(datum.tokens) for datum in data))


@given(_calls(), st.integers(1, 64))
def test_a_batch_is_plain_if_every_token_sees_all_before_it(data: list[Datum], budget: int) -> None:
    for batch in plan(data, token_budget=budget):
        causal = True
        for row, tokens in enumerate(batch.rows.tokens):
            length = np.count_nonzero(tokens)
            causal = causal and all(len(_seen(batch, row, column)) == column + 1 for column in range(length))
        assert batch.rows.plain == causal


@given(_calls())
def test_the_plan_is_a_function_of_the_data(data: list[Datum]) -> None:
    one, two = plan(data, token_budget=32), plan(data, token_budget=32)
    assert all(
        np.array_equal(a.rows.tokens, b.rows.tokens) and np.array_equal(a.source, b.source)
        for a, b in zip(one, two, strict=True)
    )


def test_a_prompt_is_computed_once_for_its_group() -> None:
    data = [_datum([1, 2, 3, 4, tail], [4]) for tail in range(8)]
    (batch,) = plan(data, token_budget=1000)
    assert batch.rows.tokens.tolist() == [[1, 2, 3, 4, *range(8)]]
    assert batch.source.tolist() == [3] * 8
    assert not batch.rows.plain
    (apart,) = plan(data, token_budget=1000, longest_tree=5)
    assert apart.rows.tokens.shape == (8, 5)
    assert apart.rows.plain


def test_turns_and_forks_are_a_tree() -> None:
    turns = [1, 2, 3, 4, 5, 6]
    data = [
        _datum(turns[:4], [2, 3]),
        _datum(turns, [4, 5]),
        _datum([*turns[:5], 9, 9], [5, 6]),
        _datum([*turns[:2], 8], [2]),
        _datum(turns, [1, 5]),
    ]
    (batch,) = plan(data, token_budget=1000)
    assert batch.rows.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 9, 9, 8]]
    assert batch.rows.positions.tolist() == [[0, 1, 2, 3, 4, 5, 5, 6, 2]]
    assert batch.rows.end.tolist() == [[9, 9, 8, 8, 8, 6, 8, 8, 9]]


def test_a_conversation_that_goes_on_is_plain() -> None:
    (batch,) = plan([_datum([1, 2, 3], [2]), _datum([1, 2, 3, 4, 5], [4])], token_budget=4)
    assert batch.rows.tokens.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.rows.plain


def test_a_long_group_becomes_several_rows() -> None:
    data = [_datum([1, 2, 3, *[tail] * 5], [3, 4]) for tail in range(4, 11)]
    batches = plan(data, token_budget=1000, longest_tree=14)
    rows = [row for batch in batches for row in batch.rows.tokens.tolist()]
    assert sorted(len({*row[3:]} - {0}) for row in rows) == [1, 2, 2, 2]  # 3 + 2 * 5 <= 14; the last one shares nothing


def test_data_that_share_little_stay_apart() -> None:
    data = [_datum([1, *[tail] * 400], [400]) for tail in range(2)]
    (batch,) = plan(data, token_budget=1000)
    assert len(batch.rows.tokens) == 2  # attention over 801 tokens costs more than the token that they share


def test_padding_is_small_for_lengths_that_differ() -> None:
    random = np.random.default_rng(0)
    data = [_datum(random.integers(0, 99, n).tolist(), [n - 1]) for n in random.integers(10, 200, 300)]
    batches = plan(data, token_budget=2048)
    computed, real = sum(batch.rows.tokens.size for batch in batches), sum(len(datum.tokens) for datum in data)
    assert computed < 1.1 * real


@pytest.mark.parametrize("longest", [1, 1024])
def test_data_without_scored_tokens_are_computed_and_give_nothing(longest: int) -> None:
    (batch,) = plan([_datum([1, 2, 3], []), _datum([1, 2, 3], [])], token_budget=100, longest_tree=longest)
    assert len(batch.source) == 0
