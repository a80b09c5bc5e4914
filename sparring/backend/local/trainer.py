"""One model's training state, and the operations on it. Everything here runs on the engine thread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sparring.backend.local.adamw import adamw, clipped_norm
from sparring.backend.local.base import BaseModel
from sparring.backend.local.lora import AdapterWeights, Trained
from sparring.backend.local.passes import Passes, Work
from sparring.backend.training import Adam, OptimOutput
from sparring.errors import BackendError, SparringError

T = TypeVar("T")


class Trainer:
    """What is trained (an adapter, or all weights; with a critic's value head), its optimizer's moments and gradient buffer, on
    a shared base. What a call computes with them, its `Work` says.

    `mean` and `square` are AdamW's moments, f32[P] in the layout of the adapter; `steps` counts optimizer steps. `broken` is
    what left the gradient buffer half-filled; until `discard_gradients` no step is taken.
    """

    def __init__(self, passes: Passes, adapter: Trained) -> None:
        self.passes, self.adapter = passes, adapter
        self.mean, self.square = torch.zeros_like(adapter.master), torch.zeros_like(adapter.master)
        self.steps = 0
        self.broken: BaseException | None = None
        self._micro_batches = 0

    @property
    def base(self) -> BaseModel:
        """What it stands on."""
        return self.passes.base

    def forward(self, work: Work[T]) -> T:
        """A call without gradients."""
        return self.passes.result(replace(work, before=self.before))

    def forward_backward(self, work: Work[T]) -> T:
        """A call that adds gradients. Any failure marks the buffer broken."""
        return forward_backward_together([Share(self, work)])[0]

    def optim_step(self, adam: Adam) -> OptimOutput:
        """One AdamW step on the masters (arXiv 1711.05101, as torch has it), after clipping by the whole gradient's norm."""
        if self.broken is not None:
            raise BackendError(
                f"optim_step refused: the gradient is incomplete ({self.broken}); call discard_gradients() first"
            ) from self.broken
        grad = self.adapter.grad
        norm = clipped_norm(grad, adam, self.steps + 1)
        self.steps += 1
        adamw(self.adapter.master, self.mean, self.square, grad, adam, self.steps)
        grad.zero_()
        self.adapter.refresh()
        self._micro_batches = 0
        return OptimOutput(metrics={"gradient_norm": norm})

    def discard_gradients(self) -> None:
        """Empty the gradient buffer."""
        self.adapter.grad.zero_()
        self.broken, self._micro_batches = None, 0

    def before(self, train: bool) -> None:
        """What the next pass leaves out, where there is dropout: it depends on the step and the number of the pass in it."""
        weights = self.adapter.weights
        dropout = weights.dropout if isinstance(weights, AdapterWeights) else None
        if dropout is not None and train:
            dropout.begin(self.steps, self._micro_batches)
        elif dropout is not None:
            dropout.end()
        self._micro_batches += train

    def digest(self) -> str:
        """Hex sha256 over masters, moments and the number of steps."""
        digest = hashlib.sha256(self.steps.to_bytes(8, "little"))
        for values in (self.adapter.master, self.mean, self.square):
            digest.update(values.cpu().numpy().tobytes())
        return digest.hexdigest()

    def restore(self, master: Tensor, mean: Tensor, square: Tensor, steps: int) -> None:
        """Take weights and optimizer state, f32[P] each; drops gradients."""
        self.adapter.master.copy_(master)
        self.mean.copy_(mean)
        self.square.copy_(square)
        self.steps = steps
        self.adapter.refresh()
        self.discard_gradients()


@dataclass(frozen=True, slots=True)
class Share(Generic[T]):
    """One model's part of a call that several make together."""

    trainer: Trainer
    work: Work[T]


def forward_backward_together(shares: Sequence[Share[T]]) -> list[T]:
    """`forward_backward` of several models on one base, in as few passes as the token budget allows.

    A model whose data fail leaves the others' gradients whole; its failure is raised when all are done. Any other failure
    breaks the buffers of all.
    """
    try:
        results = shares[0].trainer.passes.run([replace(one.work, before=one.trainer.before) for one in shares])
    except SparringError as error:
        _mark_broken(shares, error)
        raise
    except Exception as error:
        broken = BackendError(f"forward_backward failed: {error}")
        _mark_broken(shares, broken)
        raise broken from error
    outputs: list[T] = []
    failures: list[SparringError] = []
    for one, result in zip(shares, results, strict=True):
        if isinstance(result, SparringError):
            one.trainer.broken = result
            failures.append(result)
        else:
            outputs.append(result)
    if failures:
        raise failures[0]
    return outputs


def _mark_broken(shares: Sequence[Share[Any]], error: BaseException) -> None:
    for one in shares:
        one.trainer.broken = error
