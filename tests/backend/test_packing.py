"""The layout of micro-batches: every scored token once, predicted from the right state, prefixes once per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.datum import Datum
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
    """A few prompts, each with a few completions; some tokens of a completion are not scored; some data score nothing."""
    prompts = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4))
    data = []
    for index, prompt in enumerate(prompts):
        for _ in range(draw(st.integers(1, 4))):
            tail = draw(st.lists(st.integers(0, 9), min_size=1, max_size=7))
            places = range(len(prompt), len(prompt) + len(tail))
            data.append(_datum(prompt + tail, draw(st.lists(st.sampled_from(list(places)))), seed=index))
    return draw(st.permutations(data))


def _seen(batch: MicroBatch, row: int, column: int) -> list[int]:
    """The tokens that the state at a place may depend on, in order: what attention and positions make of a row."""
    branch = batch.branch[row]
    places = [j for j in range(column + 1) if branch[j] in (0, branch[column])]
    assert [int(batch.positions[row, j]) for j in places] == list(range(len(places)))
    return [int(batch.tokens[row, j]) for j in places]


@given(_calls(), st.integers(1, 64), st.sampled_from([1, 24, 1024]))
def test_every_scored_token_is_predicted_once_from_what_precedes_it(
    data: list[Datum], budget: int, longest: int
) -> None:
    met: set[tuple[int, int]] = set()
    for batch in plan(data, token_budget=budget, longest_tree=longest):
        width = batch.tokens.shape[1]
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


@given(_calls(), st.integers(1, 64), st.sampled_from([1, 24, 1024]))
def test_micro_batches_keep_the_budget_unless_one_row_exceeds_it(data: list[Datum], budget: int, longest: int) -> None:
    for batch in plan(data, token_budget=budget, longest_tree=longest):
        assert batch.tokens.size <= budget or len(batch.tokens) == 1
        assert (batch.branch[:, -1] >= 0).any()  # no wider than its longest row
        assert batch.plain == (not (batch.branch == 0).any())


@given(_calls())
def test_the_plan_is_a_function_of_the_data(data: list[Datum]) -> None:
    one, two = plan(data, token_budget=32), plan(data, token_budget=32)
    assert all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.source, b.source) for a, b in zip(one, two, strict=True)
    )


def test_a_prompt_is_computed_once_for_its_group() -> None:
    data = [_datum([1, 2, 3, 4, tail], [4]) for tail in range(8)]
    (batch,) = plan(data, token_budget=1000)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, *range(8)]]
    assert batch.source.tolist() == [3] * 8
    assert not batch.plain
    (apart,) = plan(data, token_budget=1000, longest_tree=5)
    assert apart.tokens.shape == (8, 5)
    assert apart.plain


def test_a_long_group_becomes_several_rows() -> None:
    data = [_datum([1, 2, 3, *[tail] * 5], [3, 4]) for tail in range(7)]
    batches = plan(data, token_budget=1000, longest_tree=14)
    rows = [row for batch in batches for row in batch.branch.tolist()]
    assert sorted(max(row) for row in rows) == [1, 2, 2, 2]  # 3 + 2 * 5 <= 14; the last one shares nothing


def test_padding_is_small_for_lengths_that_differ() -> None:
    random = np.random.default_rng(0)
    data = [_datum(random.integers(0, 99, n).tolist(), [n - 1]) for n in random.integers(10, 200, 300)]
    batches = plan(data, token_budget=2048)
    computed, real = sum(batch.tokens.size for batch in batches), sum(len(datum.tokens) for datum in data)
    assert computed < 1.1 * real


@pytest.mark.parametrize("longest", [1, 1024])
def test_data_without_scored_tokens_are_computed_and_give_nothing(longest: int) -> None:
    (batch,) = plan([_datum([1, 2, 3], []), _datum([1, 2, 3], [])], token_budget=100, longest_tree=longest)
    assert len(batch.source) == 0
