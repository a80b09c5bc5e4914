"""Attention within the rows of a micro-batch by plain batched products over whole rows: on a CPU, and in fp32 on CUDA.

On a CPU, at a few hundred tokens a row, this is several times as fast, forwards and backwards, as torch's own kernel; on CUDA
that kernel rounds fp32 products. It holds about half of [R, H, L, L] probabilities, so longer rows take torch's.

Letters: `R` rows, `H` query heads, `K` key-value heads, `G` = H / K, `L` tokens, `D` head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import Function
from transformers import AttentionInterface, PreTrainedConfig

from sparring.backend.local.plugged import refuse_unknown

LONGEST = 1024
"""Tokens of the longest row that is computed this way."""

BLOCK = 128
"""Tokens whose queries are computed together. They look at nothing that stands behind them in the row, so that nearly half of
the products of a long row fall away."""

NAME = "sparring_rows"

RowBias = tuple[Tensor, ...]
"""What is added to the scores of each block of queries, 0 or minus infinity, as the products have them: [R * K or 1, G * B, E],
for B tokens that end at token E of the row."""


def row_bias(seen: Bool[Tensor, "R L L"], config: PreTrainedConfig, dtype: torch.dtype) -> RowBias:
    """From who sees whom; one row stands for all if R is 1."""
    heads = config.num_key_value_heads
    groups = config.num_attention_heads // heads
    whole = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    parts = [whole[:, start:end, :end].repeat(1, groups, 1) for start, end in _blocks(seen.shape[1])]
    return tuple(part if len(seen) == 1 else part.repeat_interleave(heads, dim=0) for part in parts)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


class _Rows(Function):
    """softmax(scaling q k^T + bias) v, a block of queries after the other. Query heads that share a key-value head are further
    queries of it, so that keys and values are never repeated. `N` = R * K."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: RowBias, scaling: float) -> Tensor:
        rows, heads, length, width = query.shape
        kv_heads = key.shape[1]
        queries = query.reshape(rows * kv_heads, heads // kv_heads, length, width)  # [N, G, L, D]
        keys, values = (t.reshape(rows * kv_heads, length, width) for t in (key, value))
        out = torch.empty_like(queries)
        weights = []
        for (start, end), added in zip(_blocks(length), bias, strict=True):
            asked = queries[:, :, start:end].flatten(1, 2)  # [N, G * B, D]
            scores = torch.baddbmm(added, asked, keys[:, :end].transpose(1, 2), alpha=scaling)
            weights.append(torch.softmax(scores, dim=-1))
            out[:, :, start:end] = torch.bmm(weights[-1], values[:, :end]).view_as(out[:, :, start:end])
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.scaling, ctx.shapes = scaling, (query.shape, key.shape)
        return out.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *weights = ctx.saved_tensors
        grad = grads[0].reshape(queries.shape)
        grad_queries, grad_keys, grad_values = (
            torch.empty_like(queries),
            torch.zeros_like(keys),
            torch.zeros_like(values),
        )
        for (start, end), seen in zip(_blocks(queries.shape[2]), weights, strict=True):
            asked, wanted = (t[:, :, start:end].flatten(1, 2) for t in (queries, grad))
            grad_values[:, :end].baddbmm_(seen.transpose(1, 2), wanted)
            slopes = torch.bmm(wanted, values[:, :end].transpose(1, 2))
            slopes = torch._softmax_backward_data(slopes, seen, -1, seen.dtype)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            grad_asked = torch.bmm(slopes, keys[:, :end]).mul_(ctx.scaling)
            grad_queries[:, :, start:end] = grad_asked.view_as(grad_queries[:, :, start:end])
            grad_keys[:, :end].baddbmm_(slopes.transpose(1, 2), asked, alpha=ctx.scaling)
        asked_shape, key_shape = ctx.shapes
        return grad_queries.view(asked_shape), grad_keys.view(key_shape), grad_values.view(key_shape), None, None


def _row_attention(
    module: nn.Module,
    query: Float[Tensor, "R H L D"],
    key: Float[Tensor, "R K L D"],
    value: Float[Tensor, "R K L D"],
    attention_mask: Tensor | None,
    *,
    sparring_bias: Mapping[int | None, RowBias],
    scaling: float,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **unknown: Any,
) -> tuple[Float[Tensor, "R L H D"], None]:
    """What transformers' attention modules call, in the form it prescribes; the layer's window chooses its bias."""
    refuse_unknown(unknown)
    out = _Rows.apply(query, key, value, sparring_bias[sliding_window], scaling)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _row_attention)
