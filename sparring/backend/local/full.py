"""All weights of a model in training: fp32 masters, compute in the base's precision, the base itself untouched.

The modules of a base are shared by everybody who computes with it, so whose weights they hold is said by the call, as with
adapters: inside `AdapterCall.rows` the base's parameters point to a `FullWeights`, after it to their own numbers again. A pass
through full weights is a pass of one model.

Letters: `P` all parameters of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class FullWeights:
    """`tensors[i]` takes the place of the base's i-th parameter; the `head`-th is the output layer.

    `grads` are fp32 buffers that training adds to; empty in a snapshot, which nothing can train.
    """

    tensors: tuple[Tensor, ...]
    head: int
    grads: tuple[Tensor, ...] = ()

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """All that is computed with."""
        return self.tensors

    @property
    def matrix(self) -> Tensor:
        """The output layer [V, D]."""
        return self.tensors[self.head]


@contextmanager
def installed(parameters: Sequence[nn.Parameter], weights: FullWeights) -> Iterator[None]:
    """Let the parameters hold these weights inside the block; what a backward pass there finds is added to the buffers."""
    before = [parameter.data for parameter in parameters]
    train = bool(weights.grads) and torch.is_grad_enabled()
    try:
        for parameter, values in zip(parameters, weights.tensors, strict=True):
            parameter.data = values
            if train:
                parameter.requires_grad_(True)
        yield
    finally:
        for parameter, values in zip(parameters, before, strict=True):
            parameter.data = values
        if train:
            _collect(parameters, weights.grads)


def _collect(parameters: Sequence[nn.Parameter], buffers: Sequence[Tensor]) -> None:
    for parameter, buffer in zip(parameters, buffers, strict=True):
        parameter.requires_grad_(False)
        if parameter.grad is not None:
            buffer.add_(parameter.grad)
            parameter.grad = None


class FullModel:
    """The trained part of a model is all of it: masters f32[P] that begin as the base's weights, in the parameters' order.

    The same attributes as `Adapter`'s, `tail` included. In fp32 the masters are computed with; else `refresh` casts them.
    """

    lora = None

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, head: Tensor, tail: int = 0) -> None:
        values = list(parameters.values())
        self._names, self._shapes = tuple(parameters), tuple(value.shape for value in values)
        self.tail, zeros = tail, torch.zeros(tail, device=head.device)
        self.master = torch.cat([*(value.detach().reshape(-1).float() for value in values), zeros])
        self.grad = torch.zeros_like(self.master)
        self._compute = self.master if head.dtype == torch.float32 else self.master.to(head.dtype)
        place = next(i for i, value in enumerate(values) if value is head)
        self.weights = FullWeights(tensors=self._views(self._compute), head=place, grads=self._views(self.grad))

    @property
    def parameters(self) -> int:
        """How many numbers are trained, P."""
        return self.master.numel()

    def refresh(self) -> None:
        """Cast the masters to compute dtype, where passes read them."""
        if self._compute is not self.master:
            self._compute.copy_(self.master)

    def snapshot(self) -> FullWeights:
        """An immutable copy in compute dtype, for samplers."""
        return FullWeights(tensors=self._views(self._compute.clone()), head=self.weights.head)

    def named(self) -> dict[str, Tensor]:
        """The masters under the base's names, as copies on the CPU, in the order of the flat layout."""
        return {name: view.cpu().clone() for name, view in zip(self._names, self._views(self.master), strict=True)}

    def computed(self) -> dict[str, Tensor]:
        """What is computed with under the base's names, on the CPU; where it is there anyway, no copies."""
        return {name: values.cpu() for name, values in zip(self._names, self.weights.tensors, strict=True)}

    def _views(self, flat: Tensor) -> tuple[Tensor, ...]:
        parts = flat[: len(flat) - self.tail].split([shape.numel() for shape in self._shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))
