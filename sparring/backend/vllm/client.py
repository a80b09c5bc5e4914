"""The sampling client of one version in vLLM, or of a model that it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from sparring.arrays import F32, I32
from sparring.backend.opened import Opened
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.vllm.asked import Request
from sparring.backend.vllm.convert import Source
from sparring.backend.vllm.files import WeightsFile

T = TypeVar("T")


class Sampler(Protocol):
    """What a client needs of the sampler behind it."""

    def request(
        self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, source: Source
    ) -> Request[list[SampledSequence]]: ...
    def scores(self, tokens: Sequence[int] | I32, *, source: Source) -> Request[F32]: ...
    def options(
        self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32], *, source: Source
    ) -> list[Request[float]]: ...


class VllmSamplingClient(Opened):
    """A `SamplingClient` of weights that never change, or follow a model. Requests that run when it is closed still come to
    their end."""

    def __init__(self, sampler: Sampler, source: Source, *, release: Callable[[], None]) -> None:
        super().__init__(lambda: (source if isinstance(source, WeightsFile) else source.now).version, release)
        self._sampler, self._source = sampler, source

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        """Draw `n` sequences; see `SamplingClient.sample`. At temperature 0 every log-prob is 0: the draw is certain."""
        self._refuse_if_closed("sample")
        return await _answer(self._sampler.request(prompt, params, n, source=self._source))

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        """Log-prob of each token given those before it, f32[T], at temperature 1; the first is NaN."""
        self._refuse_if_closed("logprobs")
        return await _answer(self._sampler.scores(tokens, source=self._source))

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        """Log-prob of each option after the prompt, f32[n]; see `SamplingClient.options`. Each is a request of its own."""
        self._refuse_if_closed("options")
        requests = self._sampler.options(prompt, options, source=self._source)
        try:
            return np.array([await request.pending for request in requests], np.float32)
        finally:
            for request in requests:
                if not request.pending.settled:
                    request.cancel()


async def _answer(request: Request[T]) -> T:
    try:
        return await request.pending
    finally:
        if not request.pending.settled:
            request.cancel()
