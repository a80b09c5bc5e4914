"""One model's training state, and the operations on it. Everything here runs on the engine thread."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.head import HeadInput, HeadOutput, score
from sparring.backend.local.lora import Trained
from sparring.backend.local.objectives import Scored, moves
from sparring.backend.local.packing import MicroBatch, plan
from sparring.backend.local.readout import Readout
from sparring.backend.losses import Loss
from sparring.backend.training import Adam, ForwardOutput, OptimOutput
from sparring.errors import BackendError, NonFinite, SparringError


class Trainer:
    """What is trained (an adapter, or all weights), its optimizer's moments and gradient buffer, on a shared base.

    `between` is called between two micro-batches.

    `mean` and `square` are AdamW's moments, f32[P] in the layout of the adapter; `steps` counts optimizer steps. `broken` is
    what left the gradient buffer half-filled; until `discard_gradients` no step is taken.
    """

    def __init__(self, base: BaseModel, adapter: Trained, *, token_budget: int, between: Callable[[], None]) -> None:
        self.base, self.adapter = base, adapter
        self.mean, self.square = torch.zeros_like(adapter.master), torch.zeros_like(adapter.master)
        self.steps = 0
        self.broken: BaseException | None = None
        self._token_budget, self._between = token_budget, between
        self._readout = Readout(base.head, adapter.weights)

    def forward(self, data: Sequence[Datum], loss: Loss) -> ForwardOutput:
        """Log-probs and metrics."""
        with torch.no_grad():
            return self._run(data, loss, train=False)

    def forward_backward(self, data: Sequence[Datum], loss: Loss) -> ForwardOutput:
        """The same, and adds gradients. Any failure marks the buffer broken."""
        try:
            return self._run(data, loss, train=True)
        except SparringError as error:
            self.broken = error
            raise
        except Exception as error:
            self.broken = BackendError(f"forward_backward failed: {error}")
            raise self.broken from error

    def optim_step(self, adam: Adam) -> OptimOutput:
        """One AdamW step on the masters (arXiv 1711.05101, as torch has it), after clipping by the whole gradient's norm."""
        if self.broken is not None:
            raise BackendError(
                f"optim_step refused: the gradient is incomplete ({self.broken}); call discard_gradients() first"
            ) from self.broken
        grad = self.adapter.grad
        norm = float(grad.norm())
        if not math.isfinite(norm):
            raise NonFinite(f"optim_step {self.steps + 1}: the gradient's norm is {norm!r}; nothing was changed")
        if adam.grad_clip_norm > 0:
            grad.mul_(min(1.0, adam.grad_clip_norm / (norm + 1e-6)))
        self._adamw(adam, grad)
        grad.zero_()
        self.adapter.refresh()
        return OptimOutput(metrics={"gradient_norm": norm})

    def discard_gradients(self) -> None:
        """Empty the gradient buffer."""
        self.adapter.grad.zero_()
        self.broken = None

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

    def _adamw(self, adam: Adam, grad: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(grad, 1 - adam.beta1)
        self.square.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
        root = (self.square / (1 - adam.beta2**self.steps)).sqrt_().add_(adam.eps)
        master = self.adapter.master
        master.mul_(1 - adam.learning_rate * adam.weight_decay)
        master.addcdiv_(self.mean, root, value=-adam.learning_rate / (1 - adam.beta1**self.steps))

    def _run(self, data: Sequence[Datum], loss: Loss, *, train: bool) -> ForwardOutput:
        self._readout.refresh()
        moving = [train and moves(loss, datum) for datum in data]
        batches = [(batch, True) for batch in self._planned(data, moving, wanted=True)]
        batches += [(batch, False) for batch in self._planned(data, moving, wanted=False)]
        logprobs: list[F32] = [np.zeros(len(datum.tokens), np.float32) for datum in data]
        metrics: dict[str, float] = {}
        for number, (batch, moved) in enumerate(batches):
            if number > 0:
                self._between()
            with torch.set_grad_enabled(moved):
                output = self._micro_batch(batch, loss, train=moved)
            values = output.logprobs.cpu().numpy()
            for place in range(len(values)):
                logprobs[batch.datum[place]][batch.token[place]] = values[place]
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return ForwardOutput(logprobs=tuple(logprobs), metrics=metrics)

    def _planned(self, data: Sequence[Datum], moving: Sequence[bool], *, wanted: bool) -> list[MicroBatch]:
        """Micro-batches of the data that have a gradient, or of the rest, which is scored without the work of one."""
        chosen = np.array([index for index, moves_it in enumerate(moving) if moves_it is wanted], np.int64)
        if not len(chosen):
            return []
        part = [data[index] for index in chosen]
        batches = plan(part, token_budget=self._token_budget, share=True)
        return [replace(batch, datum=chosen[batch.datum]) for batch in batches]

    def _micro_batch(self, batch: MicroBatch, loss: Loss, *, train: bool) -> HeadOutput:
        device = self.base.device
        with self.base.call.rows([(self.adapter.weights, len(batch.tokens))]):
            hidden = self.base.hidden_states(batch, train=train)
            states = self._readout.states(hidden.flatten(0, 1)[torch.from_numpy(batch.source).to(device)])
            given = HeadInput(
                hidden=states.detach(),
                targets=torch.from_numpy(batch.targets).to(device),
                temperature=torch.from_numpy(batch.temperature).to(device),
                scored=Scored(
                    q=torch.from_numpy(batch.q).to(device),
                    advantages=torch.from_numpy(batch.advantages).to(device),
                    weights=torch.from_numpy(batch.weights).to(device),
                ),
            )
            output = score(self._readout.matrix, given, loss, gradient=train)
            _assert_finite(output, batch)
            if output.grad_hidden is not None and len(batch.source):
                slopes = (output.slopes / given.temperature)[:, None]
                self._readout.add_gradient(given.hidden, given.targets[:, None], slopes, given.temperature)
                states.backward(output.grad_hidden)
        return output


def _assert_finite(output: HeadOutput, batch: MicroBatch) -> None:
    """Raises `NonFinite` naming the data whose log-probs or gradients cannot be used."""
    bad = ~torch.isfinite(output.logprobs.cpu()).numpy()
    if bad.any():
        data = sorted({int(index) for index in batch.datum[bad]})
        raise NonFinite(f"the log-probs of data {data} are not finite: the weights have diverged")
    bad = ~torch.isfinite(output.slopes.cpu()).numpy()
    if bad.any():
        data = sorted({int(index) for index in batch.datum[bad]})
        furthest = (output.logprobs.cpu().numpy() - batch.q)[bad].max()
        raise NonFinite(
            f"the gradient of data {data} is not finite: the trainer finds their tokens up to exp({furthest:.0f}) times "
            "as likely as the sampler did; were these the sampler's log-probs?"
        )
