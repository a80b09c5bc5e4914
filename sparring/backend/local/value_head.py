"""A critic's output layer: one number for each hidden state.

Letters: `N` states, `D` hidden.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparring.backend.local.lora import Trained


class ValueHead:
    """v = w . h + b in fp32, of the last D + 1 numbers that are trained: w, then b."""

    def __init__(self, trained: Trained) -> None:
        size = trained.tail
        assert size > 1, f"a value head of {size} numbers"
        self._weight, self._bias = trained.master[-size:-1], trained.master[-1:]
        self._weight_grad, self._bias_grad = trained.grad[-size:-1], trained.grad[-1:]

    def values(self, states: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """Of states in compute dtype; without gradients."""
        return torch.addmv(self._bias, states.detach().float(), self._weight)

    def backward(self, states: Float[Tensor, "N D"], slopes: Float[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Adds the gradient of w and b to their buffers and returns that of the states; `slopes` are d loss / d v."""
        self._weight_grad.addmv_(states.detach().float().T, slopes)
        self._bias_grad.add_(slopes.sum())
        return torch.outer(slopes, self._weight).to(states.dtype)
