"""Attention of our own in transformers' models: how it is plugged in for one pass at a time, and the products of one without
gradients.

Query heads that share a key-value head are laid out as further queries of it, so that keys and values are never repeated, and
the products are plain batched ones: on a CPU, and at a few hundred tokens, several times as fast as torch's own kernel.

Letters: `R` rows, `H` query heads, `K` key-value heads, `T` queries, `W` tokens that are looked at, `D` head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sparring.errors import UnsupportedError

_HARMLESS = frozenset({"position_ids", "use_cache", "is_causal"})


@contextmanager
def plugged(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Let the model's layers use the attention registered as `name` inside the block; training and sampling take turns with
    the same layers, on the same thread."""
    before = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    config._attn_implementation = name  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        config._attn_implementation = before  # pyright: ignore[reportPrivateUsage]


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` for what a layer asks of its attention beyond queries, keys, values, scale and window."""
    extra = sorted(name for name, given in arguments.items() if given is not None and name not in _HARMLESS)
    if extra:
        raise UnsupportedError(f"attention with {extra!r}: only plain causal attention is computed here")


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """[R, H, T, D] from queries [R, H, T, D], keys and values [R, K, W, D] and what is added to the scores,
    [R * K or 1, H / K * T or 1, W]."""
    rows, heads, tokens, width = query.shape
    kv_heads = keys.shape[1]
    asked = query.reshape(rows * kv_heads, heads // kv_heads * tokens, width)
    if tokens == 1:  # of a few queries and many keys, the keys are faster as the first of the two
        scores = torch.bmm(keys.flatten(0, 1), asked.transpose(1, 2)).transpose(1, 2).contiguous()
        scores = torch.add(bias, scores, alpha=scaling)
    else:
        scores = torch.baddbmm(bias, asked, keys.flatten(0, 1).transpose(1, 2), alpha=scaling)
    out = torch.bmm(torch.softmax(scores, dim=-1), values.flatten(0, 1))
    return out.view(rows, heads, tokens, width)
