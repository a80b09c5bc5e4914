"""The sampling client of one version of one adapter in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sparring.arrays import F32, I32
from sparring.backend.opened import Opened
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.vllm.adapters import AdapterFile
from sparring.backend.vllm.asked import Request

T = TypeVar("T")


class Sampler(Protocol):
    """What a client needs of the sampler behind it."""

    def request(
        self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, adapter: AdapterFile, version: int
    ) -> Request[list[SampledSequence]]: ...
    def scores(self, tokens: Sequence[int] | I32, *, adapter: AdapterFile) -> Request[F32]: ...


class VllmSamplingClient(Opened):
    """A `SamplingClient` of an adapter that never changes. Requests that run when it is closed still come to their end."""

    def __init__(self, sampler: Sampler, adapter: AdapterFile, *, version: int, release: Callable[[], None]) -> None:
        super().__init__(lambda: version, release)
        self._sampler, self._adapter = sampler, adapter

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        """Draw `n` sequences; see `SamplingClient.sample`. At temperature 0 every log-prob is 0: the draw is certain."""
        self._refuse_if_closed("sample")
        return await _answer(self._sampler.request(prompt, params, n, adapter=self._adapter, version=self.version))

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        """Log-prob of each token given those before it, f32[T], at temperature 1; the first is NaN."""
        self._refuse_if_closed("logprobs")
        return await _answer(self._sampler.scores(tokens, adapter=self._adapter))


async def _answer(request: Request[T]) -> T:
    try:
        return await request.pending
    finally:
        if not request.pending.settled:
            request.cancel()
