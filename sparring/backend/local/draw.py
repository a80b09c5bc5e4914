"""Drawing tokens from logits so that a draw depends on its own row, key and position alone, never on its neighbours.

Letters: `B` rows, `V` vocabulary. Randomness is counter-based: Philox-4x32 with ten rounds (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") maps (key, position) to one uniform number, and inverting the cumulative distribution maps
that to a token. Everything from the logits on is computed in fp32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.local.head import BLOCK_BYTES

U64 = NDArray[np.uint64]

_COLDEST = 1e-30
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the logits of one row become the distribution that is drawn from; `top_p=1.0`, `top_k=-1` are off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = -1

    @property
    def cuts(self) -> bool:
        """Whether tokens are left out."""
        return self.top_p < 1 or self.top_k > 0


def draw_key(seed: int, index: int) -> int:
    """The 64-bit key of the `index`-th sequence drawn with `seed`, which may be any integer."""
    return int.from_bytes(sha256(f"{seed}/{index}".encode()).digest()[:8], "little")


def philox(counter: U64, key: U64) -> U64:
    """Philox-4x32-10: counter u32[4, B] and key u32[2, B], both held as u64, to u32[4, B] held as u64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return np.stack([c0, c1, c2, c3])


def uniforms(keys: Sequence[int], positions: Sequence[int]) -> F32:
    """One number in [0, 1) for each (64-bit key, position), f32[B], a multiple of 2^-24."""
    key, position = np.array(keys, np.uint64), np.array(positions, np.uint64)
    zeros = np.zeros_like(position)
    bits = philox(np.stack([position, zeros, zeros, zeros]), np.stack([key & _LOW, key >> _SHIFT]))
    numbers: F32 = (bits[0] >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    return numbers


def cut(tempered: Tensor, shape: Shape) -> Tensor:
    """Tempered logits f32[V] with minus infinity at the tokens that top-k, then top-p leave out.

    Top-p keeps the fewest tokens, the most likely first, whose probabilities (after top-k) sum to at least `top_p`.
    """
    ordered, order = torch.sort(tempered, descending=True, stable=True)
    kept = min(shape.top_k, len(ordered)) if shape.top_k > 0 else len(ordered)
    if shape.top_p < 1:
        before = torch.softmax(ordered[:kept], dim=-1).cumsum(0)
        kept = int((before < shape.top_p).sum().clamp(max=kept - 1)) + 1
    left = torch.full_like(tempered, -torch.inf)
    left[order[:kept]] = ordered[:kept]
    return left


def draw(logits: Tensor, shapes: Sequence[Shape], uniform: F32) -> tuple[list[int], F32]:
    """One token for each row and its log-prob under the distribution it was drawn from: int[B], f32[B].

    That distribution is tempered, cut and renormalised; at temperature 0 all of it is on the most likely token, the first of
    equals. `logits` f32[B, V] are overwritten, by what `likeliest` takes; `uniform` f32[B] is in [0, 1). Raises `ValueError`
    for a logit that is NaN or plus infinity.
    """
    assert logits.dim() == 2 and logits.dtype == torch.float32, (logits.shape, logits.dtype)
    assert len(shapes) == len(uniform) == logits.shape[0], (len(shapes), len(uniform), logits.shape)
    if any(shape.temperature not in (0, 1) for shape in shapes):
        # From the peak down, so that no temperature is too small: what overflows is a probability of zero.
        temperatures = torch.tensor(
            [max(shape.temperature, _COLDEST) if shape.temperature else 1.0 for shape in shapes], device=logits.device
        )
        logits.sub_(logits.amax(-1, keepdim=True)).div_(temperatures[:, None])
    for i, shape in enumerate(shapes):
        if shape.cuts and shape.temperature:
            logits[i] = cut(logits[i], shape)
    at_once = max(1, BLOCK_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(shapes)
    points = torch.as_tensor(uniform, device=logits.device)[:, None]
    parts = zip(logits.split(at_once), points.split(at_once), strict=True)
    chosen, logprobs, total = map(torch.cat, zip(*(_inverted(*part) for part in parts), strict=True))
    greedy = [shape.temperature == 0 for shape in shapes]
    if any(greedy):
        mask = torch.tensor(greedy, device=logits.device)[:, None]
        chosen = torch.where(mask, logits.argmax(-1, keepdim=True), chosen)
        logprobs = torch.where(mask, torch.zeros_like(logprobs), logprobs)
    # In one transfer: float64 holds them all.
    found = torch.cat([chosen.double(), logprobs.double(), total.double()], dim=1).cpu().numpy()
    if not np.isfinite(found[:, 2]).all():
        raise ValueError("logits that are not finite: the weights are broken")
    return found[:, 0].astype(np.int64).tolist(), found[:, 1].astype(np.float32)


def _inverted(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits f32[B, V] and numbers f32[B, 1]: the tokens, their log-probs and what all probabilities sum to, [B, 1] each."""
    probabilities = torch.softmax(logits, dim=-1)
    cumulative = _cumulative(probabilities)
    total = cumulative[:, -1:]
    # Below the total even where the product rounds up to it: the first place above the point then has mass of its own.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(cumulative, point, right=True).clamp_(max=logits.shape[1] - 1)
    return chosen, probabilities.gather(1, chosen).log_(), total


def _cumulative(probabilities: Tensor) -> Tensor:
    """Their running sums f32[B, V]; a token without mass has the sum of the one before it, also on a device whose parallel
    sums are not monotone in the last bit. What is no number stays none."""
    sums = probabilities.cumsum(-1)
    return sums if sums.device.type == "cpu" else torch.where(probabilities == 0, 0, sums).cummax(-1).values


def likeliest(shaped: Tensor, shape: Shape, count: int) -> tuple[list[int], list[float]]:
    """The `count` likeliest tokens of a row and their log-probs, likeliest first. `shaped` f32[V] is the row as `draw` left it:
    tempered, with minus infinity where tokens are left out."""
    tokens: list[int]
    logprobs: list[float]
    values, order = torch.sort(shaped, descending=True, stable=True)
    tokens = order[:count].tolist()
    if shape.temperature == 0:
        logprobs = [0.0] + [-math.inf] * (count - 1)
    else:
        logprobs = torch.log_softmax(values, dim=-1)[:count].tolist()
    return tokens, logprobs
