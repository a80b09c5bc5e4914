"""Products with a frozen matrix that was laid out once as the processor's matrix units want it.

oneDNN lays a plain bfloat16 matrix out anew for each product, which for the few rows of a decoding step takes as long as the
product itself. Sums and results are the same, bit for bit. Letters: `N` rows, `D` inputs, `O` outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

ROWS = 64
"""How many rows oneDNN is told to expect; another number gives the same bits and is hardly slower."""

MOST_BYTES = 2**32
"""Of all matrices of one model that are kept twice for this."""


def packs(matrices: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether so many bytes of matrices are laid out beforehand: in bfloat16 on a CPU whose oneDNN computes with that."""
    if device.type != "cpu" or dtype != torch.bfloat16 or matrices > MOST_BYTES:
        return False
    return torch.backends.mkldnn.is_available() and bool(_oneDNN()._is_mkldnn_bf16_supported())


class PackedLinear:
    """x W^T + b without gradients, for one matrix W [O, D] that nobody writes to; laid out at the first product."""

    def __init__(self, *, packs: bool) -> None:
        self._packs = packs
        self._packed: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "N D"], weight: Float[Tensor, "O D"], bias: Float[Tensor, " O"] | None
    ) -> Float[Tensor, "N O"]:
        if not self._packs:
            return functional.linear(x, weight, bias)
        if self._packed is None:
            self._packed = _oneDNN()._reorder_linear_weight(weight.detach(), ROWS)
        found: Tensor = _oneDNN()._linear_pointwise(x, self._packed, bias, "none", [], "")
        return found


def _oneDNN() -> Any:
    """The operators that torch's own compiler puts in the place of linear layers."""
    return torch.ops.mkldnn
