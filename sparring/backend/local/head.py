"""From hidden states to log-probs and their gradients, without ever holding the logits of all tokens.

A scored token's value is a weighted sum of its targets' log-probs (mostly of one target, with weight 1), and depends on one row
of hidden states alone. So a chunk of tokens can go all the way, logits, log-softmax in fp32, and d value / d hidden, before the
next chunk begins: nothing is kept and nothing is computed twice. Whatever the loss makes of the values, also where it couples
tokens that stand in different chunks, its gradient is that row times d loss / d value.
Letters: `N` scored tokens, `D` hidden, `V` vocabulary, `K` targets of a token, of which the first is the token itself.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparring.backend.local.shapes import rounded

CHUNK_BYTES = 24 * 2**20
"""How much the logits of one chunk take, on a CPU: enough rows for fast products, little enough to come from memory that was
used before (fresh pages cost more than the arithmetic)."""

CUDA_CHUNK_BYTES = 2**28
"""The same on CUDA: a thousand rows at 128,000 tokens in bfloat16, which fill the device; with what fp32 needs, 1 GiB."""

BLOCK_BYTES = 3 * 2**20
"""How much the fp32 logits take that are worked on at a time, on a CPU: all passes over them stay in a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInput:
    """What is scored: the states that predict, the targets, and each target's weight in its token's value. `tempered` says
    whether any temperature is not 1, so that nobody has to wait for the device to find out."""

    hidden: Float[Tensor, "N D"]
    targets: Int[Tensor, "N K"]
    weights: Float[Tensor, "N K"]
    temperature: Float[Tensor, " N"]
    tempered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What losses read: `logprobs` are the tokens' own; `entropy` (nats, of the distribution at its temperature) is None where
    it was not asked for."""

    logprobs: Float[Tensor, " N"]
    values: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput(TokenScores):
    """With d values / d hidden and d entropy / d hidden, a row each; None where they were not asked for."""

    gradient: Float[Tensor, "N D"] | None
    entropy_gradient: Float[Tensor, "N D"] | None = None

    def at(self, places: Int[Tensor, " M"]) -> TokenScores:
        """The scores at these places, some of them perhaps more than once."""
        return TokenScores(
            logprobs=self.logprobs[places],
            values=self.values[places],
            entropy=None if self.entropy is None else self.entropy[places],
        )


def score(
    head: Float[Tensor, "V D"],
    given: HeadInput,
    *,
    gradient: bool,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> HeadOutput:
    """Log-probs at the temperatures given, the values, and what else was asked for."""
    count, vocabulary = given.hidden.shape[0], head.shape[0]
    chunk = rows_at_once(head.device, head.element_size() * vocabulary)
    block = max(1, BLOCK_BYTES // (4 * vocabulary)) if head.device.type == "cpu" else chunk
    plain = head.is_cuda and given.targets.shape[1] == 1 and not (given.tempered or entropy or entropy_gradient)
    logprobs = torch.empty(count, dtype=torch.float32, device=head.device)
    values = torch.empty_like(logprobs)
    entropies = torch.empty_like(logprobs) if entropy else None
    gradients = torch.empty_like(given.hidden) if gradient else None
    bonuses = torch.empty_like(given.hidden) if entropy_gradient else None
    for start in range(0, count, chunk):
        hidden = given.hidden[start : start + chunk]
        logits = product(_padded(hidden), head)
        sloped = logits if logits.dtype == hidden.dtype else hidden.new_empty(logits.shape)
        slopes = None if bonuses is None else hidden.new_zeros(logits.shape)
        for first in range(0, len(hidden), block):
            part = logits[first : min(first + block, len(hidden))]
            rows = slice(start + first, start + first + len(part))
            temperature, targets, weights = given.temperature[rows, None], given.targets[rows], given.weights[rows]
            if plain:
                lp = at_once(part, targets, weights, gradient=gradient)
                logprobs[rows], values[rows] = lp[:, 0], (weights * lp)[:, 0]
                continue
            lp, softmax = _log_softmax(part, targets, temperature, tempered=given.tempered)
            logprobs[rows], values[rows] = lp[:, 0], (weights * lp).sum(-1)
            if entropies is not None:
                entropies[rows] = _entropy(softmax)
            if slopes is not None:
                slopes[first : first + len(part)] = entropy_slopes(softmax.exps / softmax.total) / temperature
            if gradients is not None:
                sloped[first : first + len(part)] = _grad_logits(softmax, weights / temperature, targets)
        if bonuses is not None and slopes is not None:
            bonuses[start : start + chunk] = (slopes @ head)[: len(hidden)]
        if gradients is not None:
            gradients[start : start + chunk] = (sloped @ head)[: len(hidden)]
    return HeadOutput(logprobs=logprobs, values=values, gradient=gradients, entropy=entropies, entropy_gradient=bonuses)


def product(hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"]) -> Float[Tensor, "N V"]:
    """hidden head^T, on a CPU with a result in fp32 also where both are bfloat16: rounded to bfloat16, logits of 20 are off by
    0.03, which is most of what sampler and trainer would differ by."""
    if head.device.type != "cpu" or head.dtype != torch.bfloat16:
        return hidden @ head.T
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"  # what is multiplied is bfloat16 already; sums and result are fp32
    try:
        return hidden.float() @ _widened(head).T
    finally:
        matmul.fp32_precision = before


_WIDENED: MutableMapping[Tensor, tuple[int, Tensor]] = WeakTensorKeyDictionary()
"""Matrices in fp32, and the version that each had when it was copied."""


def _widened(matrix: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
    """The matrix in fp32, copied once for as long as nobody writes to it."""
    version, wide = _WIDENED.get(matrix, (-1, matrix))
    if version != matrix._version:
        with torch.inference_mode(mode=False):  # sampling has it, training must not
            wide = matrix.detach().float()
        _WIDENED[matrix] = matrix._version, wide
    return wide


def _padded(hidden: Float[Tensor, "N D"]) -> Float[Tensor, "M D"]:
    """With rows of zeros up to a number that comes up often."""
    missing = rounded(len(hidden)) - len(hidden)
    return hidden if not missing else torch.cat([hidden, hidden.new_zeros(missing, hidden.shape[1])])


def rows_at_once(device: torch.device, row_bytes: int) -> int:
    """How many rows of logits make a chunk."""
    return max(1, (CHUNK_BYTES if device.type == "cpu" else CUDA_CHUNK_BYTES) // row_bytes)


def at_once(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, "N 1"], weights: Float[Tensor, "N 1"], *, gradient: bool
) -> Float[Tensor, "N 1"]:
    """Log-probs at temperature 1; where `gradient`, the logits become d value / d logits. In half the passes over memory that
    parts of it take, of which a device without large caches reads and writes every one."""
    peak, place = logits.max(-1, keepdim=True)
    chosen = logits.gather(1, targets).float()
    softmax = torch.softmax(logits, dim=-1, dtype=torch.float32)
    if gradient:
        own = weights * (1 - softmax.gather(1, targets))  # before anything is rounded
        torch.mul(softmax, -weights, out=logits)
        logits.scatter_(1, targets, own.to(logits.dtype))
    return chosen - peak.float() + softmax.gather(1, place).log()


class _Softmax(NamedTuple):
    """exp(logits - peak) f32[n, V] and its sums f32[n, 1]: the softmax is their quotient."""

    exps: Tensor
    total: Tensor


def _log_softmax(logits: Tensor, targets: Tensor, temperature: Tensor, *, tempered: bool) -> tuple[Tensor, _Softmax]:
    """The targets' log-probs f32[n, K], and what the gradient needs. In as few passes over [n, V] as it takes."""
    peak = logits.amax(-1, keepdim=True).float()
    chosen = logits.gather(1, targets).float()
    exps = torch.sub(logits, peak)  # fp32 from here on, also where the product was bfloat16
    if tempered:
        exps.div_(temperature)
    total = exps.exp_().sum(-1, keepdim=True)
    return (chosen - peak) / temperature - total.log(), _Softmax(exps, total)


def _entropy(softmax: _Softmax) -> Tensor:
    """-sum p log p = log Z - sum (e / Z) log e, for e the exponentials and Z their sum."""
    spread: Tensor = torch.special.entr(softmax.exps).sum(-1, keepdim=True)
    return (softmax.total.log() + spread / softmax.total)[:, 0]


def entropy_slopes(probs: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """d entropy / d (logits / temperature) = -p (log p + H)."""
    spread: Tensor = torch.special.entr(probs)
    return spread - probs * spread.sum(-1, keepdim=True)


def _grad_logits(softmax: _Softmax, scale: Tensor, targets: Tensor) -> Tensor:
    """d value / d logits f32[n, V], where scale [n, K] is the targets' weights / temperature. Overwrites the exponentials."""
    grad = softmax.exps.mul_(-scale.sum(-1, keepdim=True) / softmax.total)
    return grad.scatter_add_(1, targets, scale)
