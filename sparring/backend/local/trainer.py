"""One model's training state, and the operations on it. Everything here runs on the engine thread."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.custom import decide, slopes_at
from sparring.backend.local.head import HeadInput, HeadOutput, score
from sparring.backend.local.lora import Adapter
from sparring.backend.local.measures import measures
from sparring.backend.local.objectives import moves, objective
from sparring.backend.local.packing import MicroBatch, plan
from sparring.backend.local.scored import scored_tokens, targets_of
from sparring.backend.losses import Custom, Loss
from sparring.backend.training import Adam, ForwardOutput, OptimOutput
from sparring.errors import BackendError, NonFinite, SparringError

SlopesOf = Callable[[MicroBatch, HeadOutput], Tensor]
"""d loss / d value, f32[N], of a micro-batch that is scored."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What was asked, and what it has come to so far: log-probs by datum, f32[T_i], and sums of metrics."""

    data: Sequence[Datum]
    entropy: bool
    logprobs: list[F32]
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def count(self, metrics: Mapping[str, float]) -> None:
        """Add metrics."""
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value


class Trainer:
    """Adapter, optimizer moments and gradient buffer on a shared base. `between` is called between two micro-batches.

    `mean` and `square` are AdamW's moments, f32[P] in the layout of the adapter; `steps` counts optimizer steps. `broken` is
    what left the gradient buffer half-filled; until `discard_gradients` no step is taken.
    """

    def __init__(self, base: BaseModel, adapter: Adapter, *, token_budget: int, between: Callable[[], None]) -> None:
        self.base, self.adapter = base, adapter
        self.mean, self.square = torch.zeros_like(adapter.master), torch.zeros_like(adapter.master)
        self.steps = 0
        self.broken: BaseException | None = None
        self._token_budget, self._between = token_budget, between

    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> ForwardOutput:
        """Log-probs and metrics."""
        return self._run(data, loss, train=False, entropy=entropy)

    def forward_backward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> ForwardOutput:
        """The same, and adds gradients. Any failure marks the buffer broken."""
        try:
            return self._run(data, loss, train=True, entropy=entropy)
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

    def _run(self, data: Sequence[Datum], loss: Loss, *, train: bool, entropy: bool) -> ForwardOutput:
        call = _Call(data, entropy, [np.zeros(len(datum.tokens), np.float32) for datum in data])
        moving = [train and moves(loss, datum) for datum in data]
        batches = [(batch, True) for batch in self._planned(data, moving, wanted=True)]
        batches += [(batch, False) for batch in self._planned(data, moving, wanted=False)]
        if isinstance(loss, Custom):
            self._run_custom(call, loss, batches)
        else:
            self._each(call, batches, lambda batch, output: self._slopes(call, loss, batch, output))
        return ForwardOutput(logprobs=tuple(call.logprobs), metrics=call.metrics)

    def _run_custom(self, call: _Call, loss: Custom, batches: Sequence[tuple[MicroBatch, bool]]) -> None:
        """One pass where all data are in one micro-batch; else one for the log-probs and one for the gradient."""
        slopes: list[F32] = []

        def call_it() -> None:
            decided = decide(loss, call.data, call.logprobs)
            call.count(decided.metrics)
            slopes.extend(decided.slopes)

        def at_once(batch: MicroBatch, output: HeadOutput) -> Tensor:
            call_it()
            return slopes_at(slopes, batch).to(output.values.device)

        if len(batches) == 1:
            self._each(call, batches, at_once)
            return
        train = any(moved for _, moved in batches)
        self._each(call, [(batch, False) for batch, _ in batches], lambda _, output: torch.zeros_like(output.values))
        call_it()
        moving = [train and bool(slope.any()) for slope in slopes]
        again = replace(call, entropy=False, logprobs=[lp.copy() for lp in call.logprobs], metrics={})
        sloped = [(batch, True) for batch in self._planned(call.data, moving, wanted=True)]
        self._each(again, sloped, lambda batch, output: slopes_at(slopes, batch).to(output.values.device))

    def _planned(self, data: Sequence[Datum], moving: Sequence[bool], *, wanted: bool) -> list[MicroBatch]:
        """Micro-batches of the data that have a gradient, or of the rest, which is scored without the work of one."""
        chosen = np.array([index for index, moves_it in enumerate(moving) if moves_it is wanted], np.int64)
        if not len(chosen):
            return []
        part = [data[index] for index in chosen]
        batches = plan(part, token_budget=self._token_budget, share=self.base.shares_prefixes)
        return [replace(batch, datum=chosen[batch.datum]) for batch in batches]

    def _each(self, call: _Call, batches: Sequence[tuple[MicroBatch, bool]], slopes_of: SlopesOf) -> None:
        """Score micro-batches, and go backward through those that are marked."""
        for number, (batch, moved) in enumerate(batches):
            if number > 0:
                self._between()
            with torch.set_grad_enabled(moved):
                self._micro_batch(call, batch, slopes_of, train=moved)

    def _micro_batch(self, call: _Call, batch: MicroBatch, slopes_of: SlopesOf, *, train: bool) -> None:
        device = self.base.device
        with self.base.call.rows([(self.adapter.weights, len(batch.tokens))]):
            hidden = self.base.hidden_states(batch, train=train)
            states = hidden.flatten(0, 1)[torch.from_numpy(batch.source).to(device)]
            targets = targets_of(call.data, batch, device)
            given = HeadInput(
                hidden=states.detach(),
                targets=targets.tokens,
                weights=targets.weights,
                temperature=torch.from_numpy(batch.temperature).to(device),
            )
            output = score(self.base.head, given, gradient=train, entropy=call.entropy)
            _keep(call, batch, output)
            slopes = slopes_of(batch, output)
            _assert_finite(slopes, batch, call.logprobs)
            if output.gradient is not None and len(batch.source):
                states.backward(output.gradient.mul_(slopes[:, None]))

    def _slopes(self, call: _Call, loss: Loss, batch: MicroBatch, output: HeadOutput) -> Tensor:
        """By autograd through the loss; counts its metrics."""
        scored = scored_tokens(call.data, batch, loss, self.base.device)
        with torch.enable_grad():
            values = output.values.detach().requires_grad_(True)
            result = objective(loss, values, scored)
            (slopes,) = torch.autograd.grad(result.loss, values)
        call.count(measures(loss, output.logprobs, scored.q, result))
        return slopes


def _keep(call: _Call, batch: MicroBatch, output: HeadOutput) -> None:
    """Take a micro-batch's log-probs and entropies. Raises `NonFinite` naming the data whose log-probs cannot be used."""
    values = output.logprobs.cpu().numpy()
    if not np.isfinite(values).all():
        data = sorted({int(index) for index in batch.datum[~np.isfinite(values)]})
        raise NonFinite(f"the log-probs of data {data} are not finite: the weights have diverged")
    for place in range(len(values)):
        call.logprobs[batch.datum[place]][batch.token[place]] = values[place]
    if output.entropy is not None:
        call.count({"entropy_sum": output.entropy.sum().item(), "entropy_tokens": float(len(values))})


def _assert_finite(slopes: Tensor, batch: MicroBatch, logprobs: Sequence[F32]) -> None:
    """Raises `NonFinite` naming the data whose gradients cannot be used."""
    bad = ~torch.isfinite(slopes.cpu()).numpy()
    if bad.any():
        places = zip(batch.datum[bad], batch.token[bad], batch.q[bad], strict=True)
        furthest = max(float(logprobs[datum][token] - q) for datum, token, q in places)
        data = sorted({int(index) for index in batch.datum[bad]})
        raise NonFinite(
            f"the gradient of data {data} is not finite: the trainer finds their tokens up to exp({furthest:.0f}) times "
            "as likely as the sampler did; were these the sampler's log-probs?"
        )
