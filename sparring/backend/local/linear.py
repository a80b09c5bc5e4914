"""The linear layers of a base with adapters on them: which adapter a token goes through is the running `AdapterCall`'s say.

Letters: `B` rows of the call (dimension 0 of what a layer gets), `D` inputs, `O` outputs, `r` rank, `k` layers of one input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from sparring.backend.local.lora import AdapterCall, AdapterWeights


class _Part(NamedTuple):
    """Neighbouring tokens, `start` to `end` of the flattened input, that go through one adapter: its `place`-th layer."""

    adapter: AdapterWeights
    place: int
    start: int
    end: int


class Term(NamedTuple):
    """scale * low @ right, for the rows from `start` to `end` of a product."""

    start: int
    end: int
    low: Tensor
    right: Tensor
    scale: float


def base_first(flat: Tensor, matrix: Tensor, bias: Tensor | None, terms: Sequence[Term]) -> Tensor:
    """flat @ matrix + bias, and the terms on top."""
    out = flat @ matrix if bias is None else torch.addmm(bias, flat, matrix)
    for start, end, low, right, scale in terms:
        out[start:end].addmm_(low, right, alpha=scale)
    return out


def base_last(flat: Tensor, matrix: Tensor, bias: Tensor | None, terms: Sequence[Term]) -> Tensor:
    """The same for CUDA: a term takes as long as its result takes to be read and written, and what the large product adds to is
    read while that computes."""
    covered = sum(term.end - term.start for term in terms)
    shape = (len(flat), matrix.shape[1])
    out = flat.new_empty(shape) if covered == len(flat) else flat.new_zeros(shape)
    for start, end, low, right, scale in terms:
        out[start:end].addmm_(low, right, beta=0, alpha=scale)
    out.addmm_(flat, matrix)
    return out if bias is None else out.add_(bias)


def _product(flat: Tensor, matrix: Tensor, bias: Tensor | None, terms: Sequence[Term]) -> Tensor:
    return (base_last if flat.is_cuda else base_first)(flat, matrix, bias, terms)


def _terms(flat: Tensor, parts: Sequence[_Part]) -> tuple[list[Term], list[Tensor | None]]:
    """What each adapter adds for its own tokens, and its mask of dropout."""
    terms, masks = list[Term](), list[Tensor | None]()
    for adapter, place, start, end in parts:
        rows = flat[start:end]
        kept = None if adapter.dropout is None else adapter.dropout.mask(rows)
        low = (rows if kept is None else rows * kept) @ adapter.a[place].T
        terms.append(Term(start, end, low, adapter.b[place].T, adapter.scale))
        masks.append(kept)
    return terms, masks


class _LoraFunction(Function):
    """The layer with adapters. Their gradients are added to fp32 buffers in place: no cast nodes, no copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: Sequence[_Part]) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        terms, masks = _terms(flat, parts)
        y = _product(flat, weight.T, bias, terms)
        ctx.save_for_backward(flat, weight, *(term.low for term in terms), *masks)
        ctx.parts, ctx.shape = parts, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, *kept_ones = ctx.saved_tensors
        lows, masks = kept_ones[: len(ctx.parts)], kept_ones[len(ctx.parts) :]
        whole = grads[0].reshape(-1, grads[0].shape[-1])
        terms, masked = list[Term](), list[tuple[Term, Tensor]]()
        for (adapter, place, start, end), low, kept in zip(ctx.parts, lows, masks, strict=True):
            grad, rows = whole[start:end], flat[start:end]
            grad_low = grad @ adapter.b[place]  # but for the scale
            if adapter.trains:
                adapter.grad_b[place].add_(grad.T @ low, alpha=adapter.scale)
                adapter.grad_a[place].add_(grad_low.T @ (rows if kept is None else rows * kept), alpha=adapter.scale)
            term = Term(start, end, grad_low, adapter.a[place], adapter.scale)
            if kept is None:
                terms.append(term)
            else:
                masked.append((term, kept))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        grad_x = _product(whole, weight, None, terms)
        for term, kept in masked:
            grad_x[term.start : term.end].add_((term.low @ term.right).mul_(kept), alpha=term.scale)
        return grad_x.view(ctx.shape), None, None, None


class LoraLinear(nn.Module):
    """A frozen linear layer [O, D] that adds the adapters of the running `AdapterCall`; the `index`-th of the targets."""

    def __init__(self, linear: nn.Linear, call: AdapterCall, index: int) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        self.bias = None if linear.bias is None else linear.bias.requires_grad_(False)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._call, self._index = call, index
        self.joint: tuple[Joint, int] | None = None

    def forward(self, x: Float[Tensor, "B *T D"]) -> Float[Tensor, "B *T O"]:
        """One pass through base and adapters; gradients flow to `x` and to the buffers of adapters that train."""
        if self.joint is not None and self._call.joins:
            joint, part = self.joint
            return joint.part(part, x)
        parts = [
            _Part(adapter, place, start, end)
            for adapter, start, end in self._call.spans(x)
            if (place := adapter.places[self._index]) is not None
        ]
        if parts and torch.is_grad_enabled():
            return _LoraFunction.apply(x, self.weight, self.bias, parts)  # type: ignore[no-any-return, no-untyped-call]
        flat = x.reshape(-1, x.shape[-1])
        y = _product(flat, self.weight.T, self.bias, _terms(flat, parts)[0])
        return y.view(*x.shape[:-1], y.shape[-1])


class Joint:
    """Layers that read the same, as one product with a matrix [O of all, D], of which their weights are parts. The first that
    is asked with an input computes it for all, and each takes its part."""

    def __init__(self, layers: Sequence[LoraLinear], call: AdapterCall, first: int) -> None:
        self._call, self._first = call, first
        self._sizes = [layer.out_features for layer in layers]
        self._weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._input: Tensor | None = None
        self._left: dict[int, Tensor] = {}
        for place, (layer, part) in enumerate(zip(layers, self._weight.split(self._sizes), strict=True)):
            layer.weight = nn.Parameter(part, requires_grad=False)
            layer.joint = self, place
        if self._bias is not None:
            for layer, part in zip(layers, self._bias.split(self._sizes), strict=True):
                layer.bias = nn.Parameter(part, requires_grad=False)

    def part(self, place: int, x: Tensor) -> Tensor:
        """The output of one of the layers, by its place among them."""
        if x is not self._input or place not in self._left:
            self._input, self._left = x, dict(enumerate(self._outputs(x).split(self._sizes, dim=-1)))
        found = self._left.pop(place)
        if not self._left:
            self._input = None
        return found

    def _outputs(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        terms = list[Term]()
        for adapter, start, end in self._call.spans(x):
            assert adapter.joint is not None
            if self._first in adapter.joint:
                a, b = adapter.joint[self._first]
                terms.append(Term(start, end, flat[start:end] @ a.T, b.T, adapter.scale))
        y = _product(flat, self._weight.T, self._bias, terms)
        return y.view(*x.shape[:-1], y.shape[-1])
