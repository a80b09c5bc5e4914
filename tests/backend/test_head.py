"""Log-probs, values, their gradients and entropies from hidden states, against the plain way with all logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparring.backend.local import head as head_module
from sparring.backend.local.head import HeadInput, score

WIDTH, VOCABULARY = 8, 50


def _input(count: int, targets: int, *, seed: int = 0, hot: bool = True) -> tuple[Tensor, HeadInput]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, targets, generator=generator)
    return torch.randn(VOCABULARY, WIDTH, generator=generator), HeadInput(
        hidden=torch.randn(count, WIDTH, generator=generator),
        targets=torch.randint(0, VOCABULARY, (count, targets), generator=generator),
        weights=torch.ones(count, 1) if targets == 1 else weights,
        temperature=torch.rand(count, generator=generator) + 0.5 if hot else torch.ones(count),
    )


def _plain(head: Tensor, given_: HeadInput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, values, d values / d hidden and entropies in float64."""
    hidden = given_.hidden.double().requires_grad_(True)
    logits = hidden @ head.double().T / given_.temperature.double()[:, None]
    scores = torch.log_softmax(logits, -1)
    lp = scores.gather(1, given_.targets)
    values = (lp * given_.weights.double()).sum(-1)
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    return lp[:, 0].detach(), values.detach(), gradient, -(scores.exp() * scores).sum(-1).detach()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 12) | st.sampled_from([33, 69]),  # the last ones are padded
    st.integers(1, 4),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([1, 3, 100]),
    st.integers(1, 4),
)
def test_scores_equal_the_plain_way(count: int, targets: int, seed: int, hot: bool, rows: int, block: int) -> None:
    head, given_ = _input(count, targets, seed=seed, hot=hot)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "CHUNK_BYTES", rows * 4 * VOCABULARY)
        patch.setattr(head_module, "BLOCK_BYTES", block * 4 * VOCABULARY)
        output = score(head, given_, gradient=True, entropy=True)
    assert output.gradient is not None and output.entropy is not None
    got = (output.logprobs, output.values, output.gradient, output.entropy)
    for one, other in zip(got, _plain(head, given_), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_a_token_may_be_a_target_twice() -> None:
    """The gradients of equal targets add up."""
    head, given_ = _input(1, 3)
    given_ = HeadInput(
        hidden=given_.hidden,
        targets=torch.tensor([[4, 4, 7]]),
        weights=torch.tensor([[0.0, 2.0, 1.0]]),
        temperature=given_.temperature,
    )
    output = score(head, given_, gradient=True)
    assert output.gradient is not None
    torch.testing.assert_close(output.gradient.double(), _plain(head, given_)[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.logprobs.double(), _plain(head, given_)[0], rtol=1e-4, atol=1e-5)


def test_only_what_was_asked_for_is_computed() -> None:
    head, given_ = _input(3, 1)
    output = score(head, given_, gradient=False)
    assert output.gradient is None and output.entropy is None
    torch.testing.assert_close(output.values, output.logprobs)


def test_the_entropy_of_known_distributions() -> None:
    """Uniform: log V. All but certain: 0, without a NaN from 0 log 0."""
    head = torch.zeros(VOCABULARY, WIDTH)
    head[3] = 1e3
    hidden = torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH)])
    given_ = HeadInput(
        hidden=hidden, targets=torch.full((2, 1), 3), weights=torch.ones(2, 1), temperature=torch.ones(2)
    )
    output = score(head, given_, gradient=False, entropy=True)
    assert output.entropy is not None
    assert output.entropy.tolist() == pytest.approx([math.log(VOCABULARY), 0.0], abs=1e-5)
