"""Draws: the right distribution, one row at a time whatever stands beside it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.backend.local.draw import Shape, cut, draw, draw_key, philox, uniforms

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12)
SHAPES = st.builds(
    Shape,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    top_k=st.sampled_from([-1, 1, 2, 5, 100]),
)


def log_distribution(logits: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The slow reference: the whole distribution of one row, f32[V]."""
    if shape.temperature == 0:
        return torch.where(torch.arange(len(logits)) == logits.argmax(), 0.0, -torch.inf)
    tempered = logits / shape.temperature
    return torch.log_softmax(cut(tempered, shape) if shape.cuts else tempered, dim=-1)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_numbers(counter: str, key: str, expected: str) -> None:
    """The known answers that the authors publish with their code (Random123, `kat_vectors`)."""
    found = philox(np.array([words(counter)], np.uint64).T, np.array([words(key)], np.uint64).T)
    assert found[:, 0].tolist() == words(expected)


def test_uniforms_are_uniform_and_depend_on_key_and_position_alone() -> None:
    keys = [draw_key(seed, 0) for seed in range(200)]
    numbers = np.stack([uniforms(keys, [position] * 200) for position in range(200)])
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, 100, (0, 1))
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert 60 < chi_squared < 150  # 99 degrees of freedom: both ends are beyond 3 standard deviations
    alone = [uniforms([keys[7]], [position])[0] for position in range(200)]
    np.testing.assert_array_equal(numbers[:, 7], alone)
    assert len(np.unique(numbers)) > 39_900
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02


@given(a=st.integers(), b=st.integers(), i=st.integers(0, 100), j=st.integers(0, 100))
def test_keys_differ_for_seeds_and_sequences(a: int, b: int, i: int, j: int) -> None:
    assert (draw_key(a, i) == draw_key(b, j)) == ((a, i) == (b, j))
    assert 0 <= draw_key(a, i) < 2**64


@given(logits=LOGITS, shape=SHAPES)
def test_the_distribution_sums_to_one_and_keeps_the_likeliest(logits: list[float], shape: Shape) -> None:
    row = torch.tensor([logits], dtype=torch.float32)
    logprobs = log_distribution(row[0], shape).double().numpy()
    probabilities = np.exp(logprobs)
    assert math.isclose(probabilities.sum(), 1, rel_tol=1e-5)
    kept = np.isfinite(logprobs)
    assert kept[int(np.argmax(logits))]
    if shape.temperature == 0:
        assert kept.sum() == 1
        return
    if shape.top_k > 0:
        assert kept.sum() <= shape.top_k
    left_out = [value for value, keep in zip(logits, kept, strict=True) if not keep]
    assert max(left_out, default=-math.inf) <= min(value for value, keep in zip(logits, kept, strict=True) if keep)
    tempered = np.exp(np.array(logits) / shape.temperature - max(logits) / shape.temperature)
    np.testing.assert_allclose(probabilities[kept], tempered[kept] / tempered[kept].sum(), rtol=1e-4)


@given(logits=LOGITS, top_p=st.floats(0.01, 0.99), top_k=st.sampled_from([-1, 3]))
def test_top_p_keeps_the_fewest_that_suffice(logits: list[float], top_p: float, top_k: int) -> None:
    row = torch.tensor([logits], dtype=torch.float32)
    kept = int(torch.isfinite(log_distribution(row[0], Shape(temperature=1.0, top_p=top_p, top_k=top_k))).sum())
    ordered = np.sort(np.array(logits))[::-1][: top_k if top_k > 0 else None]
    cumulative = np.exp(ordered - ordered[0]).cumsum() / np.exp(ordered - ordered[0]).sum()
    assert cumulative[kept - 1] >= top_p - 1e-4
    assert kept == 1 or cumulative[kept - 2] < top_p + 1e-4


@given(logits=LOGITS, shape=SHAPES, u=st.floats(0, 1, width=32, exclude_max=True))
def test_what_is_drawn_has_mass_and_the_log_prob_of_the_distribution(
    logits: list[float], shape: Shape, u: float
) -> None:
    row = torch.tensor([logits], dtype=torch.float32)
    expected = log_distribution(row[0], shape)
    (token,), logprob = draw(row.clone(), [shape], np.array([u], np.float32))
    assert torch.isfinite(expected[token])
    np.testing.assert_allclose(logprob[0], expected[token], atol=1e-5, rtol=1e-5)
    if shape.temperature == 0:
        assert token == int(row.argmax())
        assert logprob[0] == 0


def test_every_token_is_drawn_as_often_as_it_should_be() -> None:
    """The interval of uniform numbers that lead to a token is as long as its probability."""
    row = torch.tensor([[2.0, -1.0, 0.5, -30.0, 1.0]])
    shape = Shape(temperature=0.7)
    numbers = np.linspace(0, 1, 10_001, dtype=np.float32)[:-1]
    tokens, _ = draw(row.expand(10_000, -1).clone(), [shape] * 10_000, numbers)
    shares = np.bincount(tokens, minlength=5) / 10_000
    np.testing.assert_allclose(shares, log_distribution(row[0], shape).exp().numpy(), atol=2e-4)
    assert all(a <= b for a, b in pairwise(tokens))


@pytest.mark.parametrize("u", [0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("only", [0, 3, 999])
def test_the_edges_of_the_unit_interval_do_not_lead_to_tokens_without_mass(u: float, only: int) -> None:
    row = torch.full((1, 1000), -torch.inf)
    row[0, only] = 4.0
    (token,), logprob = draw(row, [Shape(temperature=1.0)], np.array([u], np.float32))
    assert (token, logprob[0]) == (only, 0.0)


@given(data=st.data(), count=st.integers(1, 6))
def test_a_row_is_drawn_alike_beside_any_others(data: st.DataObject, count: int) -> None:
    """Mixed temperatures, cuts and greedy rows in one call give what each gives alone."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(count, 50, generator=generator) * 3
    shapes = data.draw(st.lists(SHAPES, min_size=count, max_size=count))
    numbers = np.array(data.draw(st.lists(st.floats(0, 0.875, width=32), min_size=count, max_size=count)), np.float32)
    tokens, logprobs = draw(logits.clone(), shapes, numbers)
    for i in range(count):
        (token,), logprob = draw(logits[i : i + 1].clone(), shapes[i : i + 1], numbers[i : i + 1])
        assert token == tokens[i]
        np.testing.assert_allclose(logprob[0], logprobs[i], atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-8, 1e-37, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    row = torch.tensor([[-20.0, 3.0, 2.9999, 1.0]])
    (token,), logprob = draw(row, [Shape(temperature=temperature)], np.array([0.999], np.float32))
    assert (token, logprob[0]) == (1, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        draw(torch.tensor([[0.0, bad]]), [Shape(temperature=1.0)], np.zeros(1, np.float32))
