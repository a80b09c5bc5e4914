"""What is asked of a sampler and what it gives back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Literal, Protocol

from sparring.arrays import F32, I32
from sparring.errors import SettingError

MOST_TOP = 20
"""The most tokens at each place whose log-probs a request may ask for."""

Stop = Literal["stop", "length"]
"""Why a sampler ended: at a stop token or stop string, or at `max_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is drawn. The defaults draw from the model's own distribution (Tinker API, `SamplingParams`).

    `stop_ids` and `stop` end the sequence; the token that ends it is part of the sample. `seed` makes the draw a function of
    (weights, prompt, seed). `top_k=-1` and `top_p=1.0` are off.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise SettingError(f"max_tokens={self.max_tokens!r}: must be at least 1")
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise SettingError(f"temperature={self.temperature!r}: must be a finite number >= 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise SettingError(f"top_p={self.top_p!r}: must be in (0, 1]; 1.0 turns it off")
        if self.top_k != -1 and self.top_k < 1:
            raise SettingError(f"top_k={self.top_k!r}: must be at least 1, or -1 to turn it off")
        if not 0 <= self.top_logprobs <= MOST_TOP:
            raise SettingError(
                f"top_logprobs={self.top_logprobs!r}: must be from 0, which asks for none, to {MOST_TOP}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSequence:
    """Tokens as sampled, i32[T]; `logprobs` f32[T] under the distribution they were drawn from (tempered, fp32 log-softmax).

    `versions` are runs `(version, tokens)` that cover T in order, versions ascending: which weights made which token; a token
    that mixes versions carries the oldest.

    Where `SamplingParams.top_logprobs` is k > 0, `top_tokens` i32[T, k] are the likeliest tokens at each place, likeliest
    first, and `top_logprobs` f32[T, k] their log-probs in that same distribution, minus infinity where it leaves a token out.
    """

    tokens: I32
    logprobs: F32
    stop: Stop
    versions: tuple[tuple[int, int], ...]
    top_tokens: I32 | None = None
    top_logprobs: F32 | None = None

    def __post_init__(self) -> None:
        length = len(self.tokens)
        assert (self.top_tokens is None) == (self.top_logprobs is None)
        if self.top_tokens is not None and self.top_logprobs is not None:
            assert self.top_tokens.shape == self.top_logprobs.shape and len(self.top_tokens) == length
        assert self.logprobs.shape == (length,), (self.logprobs.shape, length)
        assert sum(count for _, count in self.versions) == length, (self.versions, length)


def runs(versions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The version of each token as runs `(version, tokens)`."""
    return tuple((version, len(list(run))) for version, run in groupby(versions))


class SamplingClient(Protocol):
    """Draws from one policy's weights. A snapshot never changes; one in flight goes on with each version that is published, in
    the middle of sequences too. Closing it lets the backend free them."""

    @property
    def version(self) -> int:
        """The version of the weights that the next token would be started with."""
        ...

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        """Draw `n` sequences that continue `prompt` (i32[P]).

        Cancelling the caller frees the request. Raises `SettingError` for an empty prompt or ids outside the vocabulary,
        `ContextFull` where prompt and `max_tokens` exceed the model's context.
        """
        ...

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        """Log-probability of each token given those before it, f32[T], at temperature 1; the first is NaN."""
        ...

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        """Log-probability that `prompt` goes on with each of these token sequences, f32[n], at temperature 1: the sum over an
        option's tokens. It says nothing of what comes after them: where one option begins another, end both with the token
        that ends a turn.

        Raises `SettingError` for no options, an empty one or ids outside the vocabulary, `ContextFull` where one does not fit.
        """
        ...

    async def aclose(self) -> None:
        """Let go of the weights; further calls raise `BackendError`."""
        ...
