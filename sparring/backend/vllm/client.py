"""The sampling client of one version in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sparring.arrays import F32, I32
from sparring.backend.opened import Opened
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.vllm.asked import Request
from sparring.backend.vllm.files import WeightsFile

T = TypeVar("T")


class Sampler(Protocol):
    """What a client needs of the sampler behind it."""

    def request(
        self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, weights: WeightsFile, version: int
    ) -> Request[list[SampledSequence]]: ...
    def scores(self, tokens: Sequence[int] | I32, *, weights: WeightsFile) -> Request[F32]: ...


class VllmSamplingClient(Opened):
    """A `SamplingClient` of weights that never change. Requests that run when it is closed still come to their end."""

    def __init__(self, sampler: Sampler, weights: WeightsFile, *, version: int, release: Callable[[], None]) -> None:
        super().__init__(lambda: version, release)
        self._sampler, self._weights = sampler, weights

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        """Draw `n` sequences; see `SamplingClient.sample`. At temperature 0 every log-prob is 0: the draw is certain."""
        self._refuse_if_closed("sample")
        return await _answer(self._sampler.request(prompt, params, n, weights=self._weights, version=self.version))

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        """Log-prob of each token given those before it, f32[T], at temperature 1; the first is NaN."""
        self._refuse_if_closed("logprobs")
        return await _answer(self._sampler.scores(tokens, weights=self._weights))


async def _answer(request: Request[T]) -> T:
    try:
        return await request.pending
    finally:
        if not request.pending.settled:
            request.cancel()
