"""From hidden states to log-probs, loss and the loss's gradient, without ever holding the logits of all tokens.

A loss here is a sum of terms of one token each, so a chunk of tokens can go all the way: logits, log-softmax in fp32, loss, and
the gradient back to the hidden states, before the next chunk begins. Nothing is kept and nothing is computed twice.
Letters: `N` scored tokens, `D` hidden, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparring.backend.local.objectives import Scored, objective
from sparring.backend.losses import Loss

CHUNK_BYTES = 64 * 2**20
"""How much the fp32 logits of one chunk take: large enough for full speed, small against a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInput:
    """What is scored: the states that predict, the tokens that came, and what the loss needs."""

    hidden: Float[Tensor, "N D"]
    targets: Int[Tensor, " N"]
    temperature: Float[Tensor, " N"]
    scored: Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput:
    """`logprobs` f32[N]; `metrics` are the loss's sums; `grad_hidden` [N, D] is None where it was not asked for."""

    logprobs: Float[Tensor, " N"]
    metrics: dict[str, float]
    grad_hidden: Float[Tensor, "N D"] | None


def score(head: Float[Tensor, "V D"], given: HeadInput, loss: Loss, *, gradient: bool) -> HeadOutput:
    """Log-probs at the temperatures given, the loss's metrics, and d loss / d hidden."""
    count, vocabulary = given.hidden.shape[0], head.shape[0]
    chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
    logprobs = torch.empty(count, dtype=torch.float32, device=head.device)
    grad_hidden = torch.empty_like(given.hidden) if gradient else None
    metrics: dict[str, float] = {}
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        log_softmax = torch.log_softmax(_logits(head, given, rows), dim=-1)
        lp = log_softmax.gather(1, given.targets[rows, None])[:, 0]
        logprobs[rows] = lp
        slope, sums = _loss(loss, lp, given.scored, rows)
        for name, value in sums.items():
            metrics[name] = metrics.get(name, 0.0) + value
        if grad_hidden is not None:
            grad_hidden[rows] = _grad_hidden(head, log_softmax, given, rows, slope)
    return HeadOutput(logprobs=logprobs, metrics=metrics, grad_hidden=grad_hidden)


def _logits(head: Tensor, given: HeadInput, rows: slice) -> Tensor:
    """f32[n, V], divided by the temperature."""
    logits = (given.hidden[rows] @ head.T).float()
    return logits.div_(given.temperature[rows, None])


def _loss(loss: Loss, lp: Tensor, scored: Scored, rows: slice) -> tuple[Tensor, dict[str, float]]:
    """d loss / d lp [n], and the chunk's metrics."""
    part = Scored(q=scored.q[rows], advantages=scored.advantages[rows], weights=scored.weights[rows])
    with torch.enable_grad():
        leaf = lp.detach().requires_grad_(True)
        result = objective(loss, leaf, part)
        (slope,) = torch.autograd.grad(result.loss, leaf)
    return slope, {name: value.item() for name, value in result.metrics.items()}


def _grad_hidden(head: Tensor, log_softmax: Tensor, given: HeadInput, rows: slice, slope: Tensor) -> Tensor:
    """d loss / d hidden [n, D]: d lp / d logits is (one-hot - softmax) / temperature. Overwrites `log_softmax`."""
    scale = (slope / given.temperature[rows])[:, None]
    grad = log_softmax.exp_().mul_(-scale)
    grad.scatter_add_(1, given.targets[rows, None], scale)
    return grad.to(head.dtype) @ head
