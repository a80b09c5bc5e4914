"""From hidden states to log-probs, loss and the loss's gradient, without ever holding the logits of all tokens.

A loss here is a sum of terms of one token each, so a chunk of tokens can go all the way: logits, log-softmax in fp32, loss, and
the gradient back to the hidden states, before the next chunk begins. Nothing is kept and nothing is computed twice.
Letters: `N` scored tokens, `D` hidden, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparring.backend.local.objectives import Scored, objective
from sparring.backend.losses import Loss

CHUNK_BYTES = 16 * 2**20
"""How much the fp32 logits of one chunk take: enough rows for fast products, and little enough to
stay in a cache and to come from memory that was used before (fresh pages cost more than the arithmetic)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInput:
    """What is scored: the states that predict, the tokens that came, and what the loss needs."""

    hidden: Float[Tensor, "N D"]
    targets: Int[Tensor, " N"]
    temperature: Float[Tensor, " N"]
    scored: Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput:
    """`slopes` are d loss / d logprobs; `metrics` the loss's sums; `grad_hidden` is None where it was not asked for."""

    logprobs: Float[Tensor, " N"]
    slopes: Float[Tensor, " N"]
    metrics: dict[str, float]
    grad_hidden: Float[Tensor, "N D"] | None


def score(head: Float[Tensor, "V D"], given: HeadInput, loss: Loss, *, gradient: bool) -> HeadOutput:
    """Log-probs at the temperatures given, the loss's metrics, and d loss / d hidden."""
    count, vocabulary = given.hidden.shape[0], head.shape[0]
    chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
    logprobs = torch.empty(count, dtype=torch.float32, device=head.device)
    slopes = torch.empty_like(logprobs)
    grad_hidden = torch.empty_like(given.hidden) if gradient else None
    metrics: dict[str, float] = {}
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        lp, softmax = _log_softmax(
            given.hidden[rows] @ head.T, given.targets[rows, None], given.temperature[rows, None]
        )
        slope, sums = _loss(loss, lp, given.scored, rows)
        logprobs[rows], slopes[rows] = lp, slope
        for name, value in sums.items():
            metrics[name] = metrics.get(name, 0.0) + value
        if grad_hidden is not None:
            scale = (slope / given.temperature[rows])[:, None]
            grad_hidden[rows] = _grad_logits(softmax, scale, given.targets[rows, None], head.dtype) @ head
    return HeadOutput(logprobs=logprobs, slopes=slopes, metrics=metrics, grad_hidden=grad_hidden)


class _Softmax(NamedTuple):
    """exp(logits - peak) f32[n, V] and its sums f32[n, 1]: the softmax is their quotient."""

    exps: Tensor
    total: Tensor


def _log_softmax(logits: Tensor, targets: Tensor, temperature: Tensor) -> tuple[Tensor, _Softmax]:
    """The targets' log-probs f32[n], and what the gradient needs. In as few passes over [n, V] as it takes."""
    peak = logits.amax(-1, keepdim=True).float()
    chosen = logits.gather(1, targets).float()
    exps = torch.sub(logits, peak)  # fp32 from here on, also where the product was bfloat16
    if not bool((temperature == 1).all()):
        exps.div_(temperature)
    total = exps.exp_().sum(-1, keepdim=True)
    return ((chosen - peak) / temperature - total.log())[:, 0], _Softmax(exps, total)


def _loss(loss: Loss, lp: Tensor, scored: Scored, rows: slice) -> tuple[Tensor, dict[str, float]]:
    """d loss / d lp [n], and the chunk's metrics."""
    part = Scored(q=scored.q[rows], advantages=scored.advantages[rows], weights=scored.weights[rows])
    with torch.enable_grad():
        leaf = lp.detach().requires_grad_(True)
        result = objective(loss, leaf, part)
        (slope,) = torch.autograd.grad(result.loss, leaf)
    return slope, {name: value.item() for name, value in result.metrics.items()}


def _grad_logits(softmax: _Softmax, scale: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """d loss / d logits [n, V] = (one-hot - softmax) * scale, where scale [n, 1] is d loss / d lp / temperature. Overwrites."""
    grad = softmax.exps.mul_(-scale / softmax.total)
    grad.scatter_add_(1, targets, scale)
    return grad.to(dtype)
