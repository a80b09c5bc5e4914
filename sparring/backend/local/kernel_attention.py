"""Attention within the rows of a micro-batch by torch's own kernels: on CUDA, and for rows that are too long for
`row_attention`.

Rows without branches need no mask, for which torch has its fastest kernel. Others get one that is made once a pass, in the form
that the kernel adds to the scores: given as truth values, torch would convert it in every layer.

Letters: `R` rows, `H` query heads, `K` key-value heads, `L` tokens, `D` head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from sparring.backend.local.plugged import refuse_unknown

NAME = "sparring_kernel"

_ALIGNED = 8
"""The kernel copies a mask whose rows begin at other places than multiples of this."""

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which are faster once they are there, but are made anew for each number of rows and tokens: in a training run,
where no two micro-batches are alike, that takes longer than the rest of the pass."""

KernelBias = Tensor | None
"""What is added to the scores, 0 or minus infinity, [R or 1, 1, L, L]; None where rows are causal and nothing else."""


def kernels() -> AbstractContextManager[object]:
    """Which of torch's kernels may be taken inside the block."""
    return sdpa_kernel(_KERNELS)


def kernel_bias(seen: Bool[Tensor, "R L L"], dtype: torch.dtype) -> Tensor:
    """From who sees whom; one row stands for all if R is 1."""
    rows, length, _ = seen.shape
    whole = -(-length // _ALIGNED) * _ALIGNED
    bias = torch.zeros((rows, 1, length, whole), dtype=dtype, device=seen.device)[..., :length]
    return bias.masked_fill_(~seen[:, None], -torch.inf)


def _kernel_attention(
    module: nn.Module,
    query: Float[Tensor, "R H L D"],
    key: Float[Tensor, "R K L D"],
    value: Float[Tensor, "R K L D"],
    attention_mask: Tensor | None,
    *,
    sparring_bias: Mapping[int | None, KernelBias],
    scaling: float,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **unknown: Any,
) -> tuple[Float[Tensor, "R L H D"], None]:
    """What transformers' attention modules call, in the form it prescribes; the layer's window chooses its bias."""
    refuse_unknown(unknown)
    bias = sparring_bias[sliding_window]
    groups = query.shape[1] // key.shape[1]
    if bias is not None:  # the kernel that takes a bias has no grouped heads
        key, value = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (key, value))
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=bias is None, scale=scaling, enable_gqa=bias is None and groups > 1
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _kernel_attention)
