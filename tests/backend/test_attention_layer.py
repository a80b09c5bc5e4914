"""Our attention layer in the place of transformers': the same numbers, names and order, where the formula is the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sparring.backend.local.attention_layer import AttentionLayer, install_attention, rotated
from tests.backend.architectures import ARCHITECTURES, SIZES, WINDOW, tiny

OURS = {"llama", "llama-untied", "mistral-window", "qwen2", "qwen2-window", "qwen3", "qwen3-untied"}


def _random(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = tiny(ARCHITECTURES[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    return model


def _hidden(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the last layer gives, and the gradients of a sum of it with weights."""
    model.zero_grad()
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (hidden * weights).sum().backward()
    return hidden.detach(), [p.grad for p in model.get_decoder().parameters() if p.grad is not None]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_model_with_our_layers_is_the_same_model(name: str) -> None:
    """Outputs and gradients of every weight; longer than a window."""
    theirs = _random(name)
    ours = copy.deepcopy(theirs)
    assert install_attention(ours) == (SIZES["num_hidden_layers"] if name in OURS else 0)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    ids = torch.randint(3, 320, (3, 2 * WINDOW + 1), generator=torch.Generator().manual_seed(1))
    (want, slopes), (got, other) = _hidden(theirs, ids), _hidden(ours, ids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert len(slopes) == len(other) > 0
    for one, two in zip(slopes, other, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


def test_rotation_equals_transformers() -> None:
    """In float64, forwards and backwards, with angles that differ between both halves."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64).requires_grad_(True)
    cos, sin, direction = (
        torch.randn(shape, generator=generator).double() for shape in ((2, 5, 8), (2, 5, 8), x.shape)
    )
    want, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    got = rotated(x, cos[:, :, None], sin[:, :, None])
    torch.testing.assert_close(got, want)
    for value in (got, want):
        (slope,) = torch.autograd.grad((value * direction).sum(), x, retain_graph=True)
        torch.testing.assert_close(slope, torch.autograd.grad((want * direction).sum(), x, retain_graph=True)[0])


def test_keys_and_values_are_not_kept_by_the_layer() -> None:
    model = _random("llama")
    install_attention(model)
    assert isinstance(model.get_decoder().layers[0].self_attn, AttentionLayer)
    with pytest.raises(AssertionError, match="kept by samplers"):
        model.get_decoder()(input_ids=torch.tensor([[3, 4]]), use_cache=True)
