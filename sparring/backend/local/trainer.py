"""One model's training state, and the operations on it. Everything here runs on the engine thread."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.custom import decide, slopes_at
from sparring.backend.local.full import FullModel
from sparring.backend.local.head import HeadInput, TokenScores, score
from sparring.backend.local.lora import Trained
from sparring.backend.local.measures import measures
from sparring.backend.local.objectives import moves, objective
from sparring.backend.local.packing import MicroBatch, plan
from sparring.backend.local.passes import Wanted, Work, run
from sparring.backend.local.readout import Readout
from sparring.backend.local.scored import scored_tokens, targets_of
from sparring.backend.losses import Custom, Loss
from sparring.backend.training import Adam, ForwardOutput, OptimOutput
from sparring.errors import BackendError, NonFinite, SettingError, SparringError

SlopesOf = Callable[[MicroBatch, TokenScores], Tensor]
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
        self._micro_batches = 0
        self.token_budget, self.between = token_budget, between
        self._readout = Readout(base.head, adapter.weights)

    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> ForwardOutput:
        """Log-probs and metrics."""
        work = self.work(data, loss, train=False, entropy=entropy)
        (result,) = run([work], self.base, token_budget=self.token_budget, between=self.between)
        if isinstance(result, SparringError):
            raise result
        return result

    def forward_backward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> ForwardOutput:
        """The same, and adds gradients. Any failure marks the buffer broken."""
        return forward_backward_together([Share(self, data, loss, entropy)])[0]

    def work(self, data: Sequence[Datum], loss: Loss, *, train: bool, entropy: bool = False, among: int = 1) -> Work:
        """A call, for `run`; its micro-batches take the token budget's share of one `among` so many calls."""
        call = _Call(data, entropy, [np.zeros(len(datum.tokens), np.float32) for datum in data])
        budget = max(1, self.token_budget // among)
        return Work(weights=self.adapter.weights, wanted=self._wanted(call, loss, train=train, budget=budget))

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
        self._micro_batches = 0
        return OptimOutput(metrics={"gradient_norm": norm})

    def discard_gradients(self) -> None:
        """Empty the gradient buffer."""
        self.adapter.grad.zero_()
        self.broken, self._micro_batches = None, 0

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

    def _wanted(self, call: _Call, loss: Loss, *, train: bool, budget: int) -> Generator[Wanted, None, ForwardOutput]:
        self._readout.refresh()
        moving = [train and moves(loss, datum) for datum in call.data]
        batches = [(batch, True) for batch in _planned(call.data, moving, wanted=True, token_budget=budget)]
        batches += [(batch, False) for batch in _planned(call.data, moving, wanted=False, token_budget=budget)]
        if isinstance(loss, Custom):
            yield from self._custom(call, loss, batches, budget)
        else:
            yield from self._each(call, batches, lambda batch, output: self._slopes(call, loss, batch, output))
        return ForwardOutput(logprobs=tuple(call.logprobs), metrics=call.metrics)

    def _custom(
        self, call: _Call, loss: Custom, batches: Sequence[tuple[MicroBatch, bool]], budget: int
    ) -> Iterator[Wanted]:
        """One pass where all data are in one micro-batch; else one for the log-probs and one for the gradient."""
        slopes: list[F32] = []

        def call_it() -> None:
            decided = decide(loss, call.data, call.logprobs)
            call.count(decided.metrics)
            slopes.extend(decided.slopes)

        def at_once(batch: MicroBatch, output: TokenScores) -> Tensor:
            call_it()
            return slopes_at(slopes, batch).to(output.values.device)

        if len(batches) == 1:
            yield from self._each(call, batches, at_once)
            return
        train = any(moved for _, moved in batches)
        lora = self.adapter.lora
        if train and lora is not None and lora.dropout:
            raise SettingError(
                f"a custom loss over {len(batches)} micro-batches with {lora!r}: its two passes would leave out different "
                f"inputs; set dropout=0, or raise token_budget so that the call is one micro-batch"
            )
        unmoved = [(batch, False) for batch, _ in batches]
        yield from self._each(call, unmoved, lambda _, output: torch.zeros_like(output.values))
        call_it()
        moving = [train and bool(slope.any()) for slope in slopes]
        again = replace(call, entropy=False, logprobs=[lp.copy() for lp in call.logprobs], metrics={})
        sloped = [(batch, True) for batch in _planned(call.data, moving, wanted=True, token_budget=budget)]
        yield from self._each(again, sloped, lambda batch, output: slopes_at(slopes, batch).to(output.values.device))

    def _each(self, call: _Call, batches: Sequence[tuple[MicroBatch, bool]], slopes_of: SlopesOf) -> Iterator[Wanted]:
        """Micro-batches to score, those that are marked with gradients."""
        dropout = None if isinstance(self.adapter, FullModel) else self.adapter.weights.dropout
        for batch, moved in batches:
            if dropout is not None and moved:
                dropout.begin(self.steps, self._micro_batches)
            elif dropout is not None:
                dropout.end()
            self._micro_batches += moved
            yield Wanted(batch=batch, train=moved, score=self._scoring(call, batch, slopes_of, train=moved))

    def _scoring(
        self, call: _Call, batch: MicroBatch, slopes_of: SlopesOf, *, train: bool
    ) -> Callable[[Tensor], tuple[Tensor, Tensor] | None]:
        """What is done with a micro-batch's hidden states."""

        def scoring(hidden: Tensor) -> tuple[Tensor, Tensor] | None:
            device = self.base.device
            distinct, like = (torch.from_numpy(places).to(device) for places in (batch.distinct, batch.like))
            source = torch.from_numpy(batch.source).to(device)[distinct]
            states = self._readout.states(hidden.flatten(0, 1)[source])
            targets = targets_of(call.data, batch, device)
            given = HeadInput(
                hidden=states.detach(),
                targets=targets.tokens[distinct],
                weights=targets.weights[distinct],
                temperature=torch.from_numpy(batch.temperature).to(device)[distinct],
            )
            output = score(self._readout.matrix, given, gradient=train, entropy=call.entropy)
            each = output.at(like)
            _keep(call, batch, each)
            slopes = slopes_of(batch, each)
            _assert_finite(slopes, batch, call.logprobs)
            if output.gradient is None or not len(source):
                return None
            summed = torch.zeros_like(output.values).index_add_(0, like, slopes)
            scale = given.weights * (summed / given.temperature)[:, None]
            self._readout.add_gradient(given.hidden, given.targets, scale, given.temperature)
            return states, output.gradient.mul_(summed[:, None])

        return scoring

    def _slopes(self, call: _Call, loss: Loss, batch: MicroBatch, output: TokenScores) -> Tensor:
        """By autograd through the loss; counts its metrics."""
        scored = scored_tokens(call.data, batch, loss, self.base.device)
        with torch.enable_grad():
            values = output.values.detach().requires_grad_(True)
            result = objective(loss, values, scored)
            (slopes,) = torch.autograd.grad(result.loss, values)
        call.count(measures(loss, output.logprobs, scored.q, result))
        return slopes


@dataclass(frozen=True, slots=True)
class Share:
    """One model's part of a call that several make together."""

    trainer: Trainer
    data: Sequence[Datum]
    loss: Loss
    entropy: bool = False


def forward_backward_together(shares: Sequence[Share]) -> list[ForwardOutput]:
    """`forward_backward` of several models on one base, in as few passes as the token budget allows.

    A model whose data fail leaves the others' gradients whole; its failure is raised when all are done. Any other failure
    breaks the buffers of all.
    """
    first = shares[0].trainer
    works = [one.trainer.work(one.data, one.loss, train=True, entropy=one.entropy, among=len(shares)) for one in shares]
    try:
        results = run(works, first.base, token_budget=first.token_budget, between=first.between)
    except SparringError as error:
        _mark_broken(shares, error)
        raise
    except Exception as error:
        broken = BackendError(f"forward_backward failed: {error}")
        _mark_broken(shares, broken)
        raise broken from error
    outputs: list[ForwardOutput] = []
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


def _mark_broken(shares: Sequence[Share], error: BaseException) -> None:
    for one in shares:
        one.trainer.broken = error


def _planned(data: Sequence[Datum], moving: Sequence[bool], *, wanted: bool, token_budget: int) -> list[MicroBatch]:
    """Micro-batches of the data that have a gradient, or of the rest, which is scored without the work of one."""
    chosen = np.array([index for index, moves_it in enumerate(moving) if moves_it is wanted], np.int64)
    if not len(chosen):
        return []
    batches = plan([data[index] for index in chosen], token_budget=token_budget)
    return [replace(batch, datum=chosen[batch.datum]) for batch in batches]


def _keep(call: _Call, batch: MicroBatch, output: TokenScores) -> None:
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
