"""The output layer with an adapter on it, unmerged: logits = h W^T + s (h A^T) B^T.

In training it is one product, [h, s h A^T] @ [W, B]^T, so that log-probs and gradients go through the head as they do without
an adapter. Letters: `N` rows, `D` hidden, `V` vocabulary, `r` rank, `C` = D + r columns, or D without an adapter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from sparring.backend.local.full import FullWeights
from sparring.backend.local.head import rows_at_once
from sparring.backend.local.lora import AdapterWeights, Segment, Weights, merged


def read_out(head: Float[Tensor, "V D"], hidden: Float[Tensor, "N D"], segments: Sequence[Segment]) -> Tensor:
    """Logits [N, V] of rows that went through these weights, in compute dtype. Without gradients."""
    first = segments[0][0]
    logits = hidden @ (first.matrix if isinstance(first, FullWeights) else head).T
    start = 0
    for adapter, count in merged(segments):
        place = adapter.places[-1] if isinstance(adapter, AdapterWeights) else None
        if isinstance(adapter, AdapterWeights) and place is not None:
            low = hidden[start : start + count] @ adapter.a[place].T
            logits[start : start + count].addmm_(low, adapter.b[place].T, alpha=adapter.scale)
        start += count
    return logits


class Readout:
    """The output layer of a model in training, or of the base alone. `matrix` [V, C] is W, or a copy of it with the adapter's B
    beside it; `buffer` the gradient of what is trained of it, its last columns: B's, all of W's, or None."""

    def __init__(self, head: Float[Tensor, "V D"], weights: Weights | None) -> None:
        self._low: tuple[AdapterWeights, int] | None = None
        self._hidden = head.shape[1]
        self.matrix, self.buffer = head.detach(), None
        if isinstance(weights, FullWeights):
            self.matrix, self.buffer = weights.matrix, weights.grads[weights.head]
        elif weights is not None and (place := weights.places[-1]) is not None:
            self._low = weights, place
            self.matrix, self.buffer = torch.cat([self.matrix, weights.b[place]], dim=1), weights.grad_b[place]

    def refresh(self) -> None:
        """Take the adapter's weights as they are now."""
        if self._low is not None:
            weights, place = self._low
            self.matrix[:, self._hidden :] = weights.b[place]

    def states(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """What the matrix is multiplied with. Gradients flow to `hidden` and to the buffer of A."""
        if self._low is None:
            return hidden
        return torch.cat([hidden, _Low.apply(hidden, *self._low)], dim=1)  # type: ignore[no-untyped-call]

    def add_gradient(
        self,
        states: Float[Tensor, "N C"],
        targets: Int[Tensor, "N K"],
        scale: Float[Tensor, "N K"],
        temperature: Float[Tensor, " N"],
    ) -> None:
        """Add to the buffer; `scale` is d loss / d log-prob of each of K targets, divided by the temperature."""
        if self.buffer is not None:
            add_matrix_gradient(self.buffer, self.matrix, states, targets=targets, scale=scale, temperature=temperature)


def add_matrix_gradient(
    buffer: Float[Tensor, "V X"],
    matrix: Float[Tensor, "V C"],
    states: Float[Tensor, "N C"],
    *,
    targets: Int[Tensor, "N K"],
    scale: Float[Tensor, "N K"],
    temperature: Float[Tensor, " N"],
) -> None:
    """Add d loss / d matrix of its last X columns: G^T states, G = d loss / d logits = onehot(scale) - softmax sum(scale)."""
    columns = states[:, states.shape[1] - buffer.shape[1] :]
    chunk = rows_at_once(matrix.device, 4 * matrix.shape[0])
    for start in range(0, states.shape[0], chunk):
        rows = slice(start, start + chunk)
        logits = (states[rows] @ matrix.T).float().div_(temperature[rows, None])
        slopes = torch.softmax(logits, dim=-1).mul_(-scale[rows].sum(-1, keepdim=True))
        slopes.scatter_add_(1, targets[rows], scale[rows])
        buffer.add_(slopes.to(states.dtype).T @ columns[rows])


class _Low(Function):
    """s h A^T; the gradient of A is added to its fp32 buffer in place, as in the other layers."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weights: AdapterWeights, place: int) -> Tensor:
        kept = None if weights.dropout is None else weights.dropout.mask(hidden)
        ctx.save_for_backward(hidden, kept)
        ctx.weights, ctx.place = weights, place
        return ((hidden if kept is None else hidden * kept) @ weights.a[place].T).mul_(weights.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        hidden, kept = ctx.saved_tensors
        weights, place = ctx.weights, ctx.place
        grad = grads[0] * weights.scale
        weights.grad_a[place].add_(grad.T @ (hidden if kept is None else hidden * kept))
        grad_hidden = grad @ weights.a[place]
        return grad_hidden if kept is None else grad_hidden.mul_(kept), None, None
