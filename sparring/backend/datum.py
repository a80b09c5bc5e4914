"""One training example, and how a batch of them is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparring.arrays import F32, I32, Bools
from sparring.backend.sampling import SampledSequence
from sparring.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """A context of T tokens and, for each, what a loss needs (Tinker API, `Datum`, with the shift done here).

    tokens      i32[T]   the whole context, as seen and as sampled
    mask        bool[T]  which tokens are scored; token 0 never is, nothing precedes it
    logprobs    f32[T]   log-prob of each scored token under the sampler (0 elsewhere)
    advantages  f32[T]   (0 elsewhere)
    weights     f32[T]   for cross-entropy (0 elsewhere)
    temperature          at which the scored tokens were sampled; the trainer scores them at the same
    """

    tokens: I32
    mask: Bools
    logprobs: F32
    advantages: F32
    weights: F32
    temperature: float = 1.0

    def __post_init__(self) -> None:
        length = len(self.tokens)
        if length < 2:
            raise SettingError(f"a datum of {length} tokens: at least 2 are needed, one to predict and one before it")
        for name in ("mask", "logprobs", "advantages", "weights"):
            shape = getattr(self, name).shape
            if shape != (length,):
                raise SettingError(f"{name} has shape {shape}, tokens have {(length,)}: they must be equal")
        if self.mask[0]:
            raise SettingError("mask[0] is True: the first token has nothing before it to be predicted from")
        for name in ("logprobs", "advantages", "weights"):
            values = getattr(self, name)[self.mask]
            if not np.isfinite(values).all():
                bad = values[~np.isfinite(values)][0]
                raise SettingError(f"{name} holds {bad!r} at a scored token: must be finite")
        if not self.temperature > 0:
            raise SettingError(f"temperature={self.temperature!r}: a trained token must have been sampled above 0")

    @staticmethod
    def completion(
        prompt: Sequence[int] | I32, sample: SampledSequence, *, advantage: float | F32, temperature: float = 1.0
    ) -> Datum:
        """A prompt (not scored) and a sampled completion (scored), with one advantage or one per sampled token."""
        start, length = len(prompt), len(prompt) + len(sample.tokens)
        mask = np.arange(length) >= start
        logprobs, advantages = np.zeros(length, np.float32), np.zeros(length, np.float32)
        logprobs[start:], advantages[start:] = sample.logprobs, advantage
        tokens = np.concatenate([np.asarray(prompt, np.int32), sample.tokens])
        return Datum(
            tokens=tokens,
            mask=mask,
            logprobs=logprobs,
            advantages=advantages,
            weights=mask.astype(np.float32),
            temperature=temperature,
        )

    def scaled(self, factor: float) -> Datum:
        """The same example with every term of its loss multiplied by `factor`."""
        scale = np.float32(factor)
        return replace(self, advantages=self.advantages * scale, weights=self.weights * scale)


def token_mean(data: Sequence[Datum]) -> list[Datum]:
    """Scale a batch by 1 / its scored tokens: losses are sums, so the sum of the result is the mean over tokens."""
    tokens = sum(int(datum.mask.sum()) for datum in data)
    if tokens == 0:
        raise SettingError("token_mean of a batch without scored tokens: there is nothing to divide by")
    return [datum.scaled(1 / tokens) for datum in data]
