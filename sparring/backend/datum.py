"""One training example of a policy or of a critic, and how a batch of them is divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from sparring.arrays import F32, I32, Bools
from sparring.backend.sampling import SampledSequence
from sparring.errors import SettingError

PER_TOKEN = ("logprobs", "advantages", "weights", "proximal_logprobs", "clip_low", "clip_high")
BOUNDS = {"clip_low": (0.0, 1.0), "clip_high": (1.0, np.inf)}
OPTIONAL = ("proximal_logprobs", "clip_low", "clip_high", "soft_targets")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets:
    """K weighted targets for each of T tokens, as for distillation: a teacher's top K ids and probabilities.

    tokens   i32[T, K]
    weights  f32[T, K]  finite; 0 where a token has fewer than K targets
    """

    tokens: I32
    weights: F32

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape[1] == 0 or self.tokens.shape != self.weights.shape:
            raise SettingError(
                f"soft targets of shapes {self.tokens.shape} and {self.weights.shape}: both must be [T, K], with K at least 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """A context of T tokens and, for each, what a loss needs (Tinker API, `Datum`, with the shift done here).

    tokens      i32[T]   the whole context, as seen and as sampled
    mask        bool[T]  which tokens are scored; token 0 never is, nothing precedes it
    logprobs    f32[T]   log-prob of each scored token under the sampler (0 elsewhere)
    advantages  f32[T]   (0 elsewhere)
    weights     f32[T]   for cross-entropy (0 elsewhere)
    temperature          at which the scored tokens were sampled; the trainer scores them at the same

    Some losses read more; a loss refuses data with a field that it does not read (see `losses`):

    proximal_logprobs    f32[T]  log-prob of each scored token under the weights that the step began with
    clip_low, clip_high  f32[T]  bounds of the ratio for each scored token, 0 <= low <= 1 <= high
    soft_targets         in place of tokens and weights, for cross-entropy
    """

    tokens: I32
    mask: Bools
    logprobs: F32
    advantages: F32
    weights: F32
    temperature: float = 1.0
    proximal_logprobs: F32 | None = None
    clip_low: F32 | None = None
    clip_high: F32 | None = None
    soft_targets: SoftTargets | None = None

    def __post_init__(self) -> None:
        length = len(self.tokens)
        given = {name: field for name in PER_TOKEN if (field := getattr(self, name)) is not None}
        _check_shapes(self.tokens, self.mask, given)
        for name, field in given.items():
            if name not in BOUNDS:
                _check_finite(name, field, self.mask)
        self._check_bounds()
        if self.soft_targets is not None:
            if len(self.soft_targets.tokens) != length:
                raise SettingError(
                    f"soft_targets for {len(self.soft_targets.tokens)} tokens, there are {length}: they must be equal"
                )
            _check_finite("soft_targets", self.soft_targets.weights, self.mask)
        if not self.temperature > 0:
            raise SettingError(f"temperature={self.temperature!r}: a trained token must have been sampled above 0")

    def _check_bounds(self) -> None:
        for name, (least, most) in BOUNDS.items():
            bounds: F32 | None = getattr(self, name)
            if bounds is None:
                continue
            scored = bounds[self.mask]
            good = (scored >= least) & (scored <= most)
            if not good.all():
                raise SettingError(
                    f"{name} holds {scored[~good][0]!r} at a scored token: 0 <= clip_low <= 1 <= clip_high"
                )

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
        soft = self.soft_targets
        return replace(
            self,
            advantages=self.advantages * scale,
            weights=self.weights * scale,
            soft_targets=None if soft is None else replace(soft, weights=soft.weights * scale),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDatum:
    """A context of T tokens and, for each, what a critic learns there.

    tokens      i32[T]   the whole context, as seen and as sampled
    mask        bool[T]  which tokens are scored: the value is that of what precedes each; token 0 never is, nothing does
    weights     f32[T]   of each scored token in the loss (0 elsewhere)
    returns     f32[T]   what each scored token's value is to become (0 elsewhere); a loss needs them, values alone do not
    old_values  f32[T]   values under the weights that the step began with; a loss that clips needs them
    """

    tokens: I32
    mask: Bools
    weights: F32
    returns: F32 | None = None
    old_values: F32 | None = None

    def __post_init__(self) -> None:
        fields = {"weights": self.weights, "returns": self.returns, "old_values": self.old_values}
        given = {name: field for name, field in fields.items() if field is not None}
        _check_shapes(self.tokens, self.mask, given)
        for name, field in given.items():
            _check_finite(name, field, self.mask)

    @staticmethod
    def of(datum: Datum, *, returns: F32 | None = None, old_values: F32 | None = None) -> ValueDatum:
        """The same context and the same scored tokens as a policy's datum, each with weight 1."""
        weights = datum.mask.astype(np.float32)
        return ValueDatum(tokens=datum.tokens, mask=datum.mask, weights=weights, returns=returns, old_values=old_values)

    def scaled(self, factor: float) -> ValueDatum:
        """The same example with every term of its loss multiplied by `factor`."""
        return replace(self, weights=self.weights * np.float32(factor))


ExampleT = TypeVar("ExampleT", Datum, ValueDatum)


def token_mean(data: Sequence[ExampleT]) -> list[ExampleT]:
    """Scale a batch by 1 / its scored tokens: losses are sums, so the sum of the result is the mean over tokens."""
    tokens = sum(int(np.count_nonzero(datum.mask)) for datum in data)
    if tokens == 0:
        raise SettingError("token_mean of a batch without scored tokens: there is nothing to divide by")
    return [datum.scaled(1 / tokens) for datum in data]


def _check_shapes(tokens: I32, mask: Bools, fields: Mapping[str, F32]) -> None:
    length = len(tokens)
    if length < 2:
        raise SettingError(f"a datum of {length} tokens: at least 2 are needed, one to predict and one before it")
    for name, field in {"mask": mask, **fields}.items():
        if field.shape != (length,):
            raise SettingError(f"{name} has shape {field.shape}, tokens have {(length,)}: they must be equal")
    if mask[0]:
        raise SettingError("mask[0] is True: the first token has nothing before it to be predicted from")


def _check_finite(name: str, values: F32, mask: Bools) -> None:
    scored = values[mask]
    if np.count_nonzero(np.isfinite(scored)) < len(scored):
        bad = scored[~np.isfinite(scored)][0]
        raise SettingError(f"{name} holds {bad!r} at a scored token: must be finite")
