"""The attention layer of the Llama family with a rotation of its own: the same numbers as transformers' in fewer passes over
memory, and on a device in fewer calls, which cost more than the arithmetic there.

Letters: `B` rows, `T` tokens, `H` heads, `D` head width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

_SAME_FORMULA = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)
"""Modules that project, norm the heads (Qwen3), rotate both halves of each head and attend; others stay as they are."""


class AttentionLayer(nn.Module):
    """Holds the projections and norms of the layer in whose place it stands, under the same names and in the same order."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        for name, child in theirs.named_children():
            self.register_module(name, child)
        config: Any = theirs.config
        self.config, self.layer_idx = config, theirs.layer_idx
        self.head_dim, self.scaling = theirs.head_dim, theirs.scaling
        self.num_key_value_groups, self.is_causal = theirs.num_key_value_groups, True
        self.normed = isinstance(theirs, Qwen3Attention)
        window = config.sliding_window if isinstance(theirs, MistralAttention) else None
        self.window: int | None = getattr(theirs, "sliding_window", window)

    def forward(
        self,
        hidden_states: Float[Tensor, "B T C"],
        position_embeddings: tuple[Float[Tensor, "#B T D"], Float[Tensor, "#B T D"]],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **given: Any,
    ) -> tuple[Float[Tensor, "B T C"], None]:
        """As transformers' layers are called; `given` goes to the attention that is chosen."""
        assert past_key_values is None, "keys and values are kept by samplers, not here"
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (project(hidden_states).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.normed:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (part[..., None, :] for part in position_embeddings)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]  # pyright: ignore[reportPrivateUsage]
        out, _ = attend(
            self,
            *(one.transpose(1, 2) for one in (query, key, value)),
            attention_mask,
            scaling=self.scaling,
            sliding_window=self.window,
            **given,
        )
        return self.o_proj(out.flatten(2)), None


def rotated(
    x: Float[Tensor, "B T H D"], cos: Float[Tensor, "#B T 1 D"], sin: Float[Tensor, "#B T 1 D"]
) -> Float[Tensor, "B T H D"]:
    """x cos + (-second half, first half) sin (arXiv 2104.09864, in the halves of Llama). Gradients flow to `x` alone."""
    if torch.is_grad_enabled():
        return _Rotation.apply(x, cos, _signed(sin))  # type: ignore[no-any-return, no-untyped-call]
    return _turn(x, cos, _signed(sin))


class _Rotation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed)
        return _turn(x, cos, signed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, signed = ctx.saved_tensors
        return _turn(grads[0], cos, _swapped(signed)), None, None


def _turn(x: Tensor, cos: Tensor, signed: Tensor) -> Tensor:
    """x cos, and to each half the other one times `signed`."""
    return torch.addcmul(x * cos, _swapped(x), signed)


def _signed(sin: Tensor) -> Tensor:
    """The sine, its first half negated."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def _swapped(x: Tensor) -> Tensor:
    """The second half of the last dimension, then the first."""
    return x.roll(x.shape[-1] // 2, -1)


def install_attention(model: nn.Module) -> int:
    """Replace the attention layers of a model that have this formula; returns how many."""
    found = [(name, module) for name, module in model.named_modules() if type(module) in _SAME_FORMULA]
    for name, module in found:
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent).register_module(child, AttentionLayer(module))
    return len(found)
