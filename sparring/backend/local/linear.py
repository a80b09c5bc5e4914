"""The linear layers of a base with adapters on them: which adapter a token goes through is the running `AdapterCall`'s say.

Letters: `B` rows of the call (dimension 0 of what a layer gets), `D` inputs, `O` outputs, `r` rank, `k` layers of one input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from sparring.backend.local.lora import AdapterCall, AdapterWeights


class _Part(NamedTuple):
    """Neighbouring tokens, `start` to `end` of the flattened input, that go through one adapter: its `place`-th layer."""

    adapter: AdapterWeights
    place: int
    start: int
    end: int


def _add(y: Tensor, flat: Tensor, parts: Sequence[_Part]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Add to the base's output for all tokens that of each adapter for its own ones; A x and the mask of each."""
    lows, masks = [], []
    for adapter, place, start, end in parts:
        rows = flat[start:end]
        kept = None if adapter.dropout is None else adapter.dropout.mask(rows)
        low = (rows if kept is None else rows * kept) @ adapter.a[place].T
        y[start:end].addmm_(low, adapter.b[place].T, alpha=adapter.scale)
        lows.append(low)
        masks.append(kept)
    return lows, masks


class _LoraFunction(Function):
    """The layer with adapters. Their gradients are added to fp32 buffers in place: no cast nodes, no copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: Sequence[_Part]) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = functional.linear(flat, weight, bias)
        lows, masks = _add(y, flat, parts)
        ctx.save_for_backward(flat, weight, *lows, *masks)
        ctx.parts, ctx.shape = parts, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, *kept_ones = ctx.saved_tensors
        lows, masks = kept_ones[: len(ctx.parts)], kept_ones[len(ctx.parts) :]
        whole = grads[0].reshape(-1, grads[0].shape[-1])
        grad_x = whole @ weight if ctx.needs_input_grad[0] else None
        for (adapter, place, start, end), low, kept in zip(ctx.parts, lows, masks, strict=True):
            grad, rows = whole[start:end], flat[start:end]
            grad_low = grad @ adapter.b[place]  # but for the scale
            if adapter.trains:
                adapter.grad_b[place].add_(grad.T @ low, alpha=adapter.scale)
                adapter.grad_a[place].add_(grad_low.T @ (rows if kept is None else rows * kept), alpha=adapter.scale)
            if grad_x is not None and kept is None:
                grad_x[start:end].addmm_(grad_low, adapter.a[place], alpha=adapter.scale)
            elif grad_x is not None:
                grad_x[start:end].add_((grad_low @ adapter.a[place]).mul_(kept), alpha=adapter.scale)
        return None if grad_x is None else grad_x.view(ctx.shape), None, None, None


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
        y = functional.linear(flat, self.weight, self.bias)
        _add(y, flat, parts)
        return y.view(*x.shape[:-1], y.shape[-1])


class Joint:
    """Layers that read the same, as one product with a matrix [O of all, D], of which their weights are parts. The first that
    is asked with an input computes it for all, and each takes its part.

    Where all rows go through one adapter, its A stands below the matrix, so that A x is a part of the same product.
    """

    def __init__(self, layers: Sequence[LoraLinear], call: AdapterCall, first: int) -> None:
        self._layers, self._call, self._first = layers, call, first
        self._sizes = [layer.out_features for layer in layers]
        self._size = sum(self._sizes)
        self._weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._below: ref[Tensor] | None = None
        self._input: Tensor | None = None
        self._left: dict[int, Tensor] = {}
        for place, layer in enumerate(layers):
            layer.joint = self, place
        self._share()

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
        alone = self._call.alone
        if alone is not None and self._first in _pairs(alone):
            a, b = _pairs(alone)[self._first]
            y, low = functional.linear(flat, *self._matrix(a)).split([self._size, len(a)], dim=-1)
            y.addmm_(low, b.T, alpha=alone.scale)
        else:
            y = functional.linear(flat, *self._matrix())
            for adapter, start, end in self._call.spans(x):
                if self._first in _pairs(adapter):
                    a, b = _pairs(adapter)[self._first]
                    y[start:end].addmm_(flat[start:end] @ a.T, b.T, alpha=adapter.scale)
        outputs: Tensor = y.view(*x.shape[:-1], self._size)
        return outputs

    def _matrix(self, a: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The matrix with this A below it, and the bias, zero there."""
        end = self._size + (0 if a is None else len(a))
        if a is not None and (self._below is None or self._below() is not a):
            if len(self._weight) < end:
                self._make_room(len(a))
            self._weight[self._size : end] = a
            self._below = ref(a)
        return self._weight[:end], None if self._bias is None else self._bias[:end]

    def _make_room(self, rows: int) -> None:
        """So many below the matrix, which the layers' weights are parts of from now on."""
        with torch.inference_mode(False):  # training, too, computes with these
            self._weight = functional.pad(self._weight[: self._size], (0, 0, 0, rows))
            self._bias = None if self._bias is None else functional.pad(self._bias[: self._size], (0, rows))
        self._share()

    def _share(self) -> None:
        for layer, part in zip(self._layers, self._weight[: self._size].split(self._sizes), strict=True):
            layer.weight.data = part
        if self._bias is not None:
            for layer, part in zip(self._layers, self._bias[: self._size].split(self._sizes), strict=True):
                assert layer.bias is not None
                layer.bias.data = part


def _pairs(adapter: AdapterWeights) -> Mapping[int, tuple[Tensor, Tensor]]:
    """A and B of a snapshot for layers that are computed as one."""
    assert adapter.joint is not None
    return adapter.joint
