"""The sampling client of the torch sampler: of one version, or of a model that it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sparring.arrays import F32, I32
from sparring.backend.check_request import checked_options, checked_tokens
from sparring.backend.local.lora import Weights
from sparring.backend.local.request import Request
from sparring.backend.local.source import Source
from sparring.backend.local.thread import Background
from sparring.backend.opened import Opened
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.errors import ContextFull

T = TypeVar("T")


class Engine(Protocol):
    """What sampling needs of the engine thread; see `EngineThread`."""

    @property
    def closed(self) -> bool: ...
    def submit(self, run: Callable[[], T], name: str) -> PendingResult[T]: ...
    def register(self, background: Background) -> None: ...
    def wake(self) -> None: ...
    def succeed(self, pending: PendingResult[T], value: T) -> None: ...
    def fail(self, pending: PendingResult[Any], error: BaseException) -> None: ...


class Sampler(Protocol):
    """What a client needs of the sampler behind it."""

    @property
    def context_length(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    def request(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, source: Source) -> Request: ...
    def logprobs(self, weights: Weights | None, tokens: I32) -> F32: ...
    def options(self, weights: Weights | None, prompt: I32, options: Sequence[I32]) -> F32: ...


class TorchSamplingClient(Opened):
    """A `SamplingClient` of the weights that its source has. Requests that run when it is closed still come to their end."""

    def __init__(self, sampler: Sampler, engine: Engine, source: Source, *, release: Callable[[], None]) -> None:
        super().__init__(lambda: source.now.version, release)
        self._sampler, self._engine, self._source = sampler, engine, source

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        """Draw `n` sequences; see `SamplingClient.sample`. At temperature 0 every log-prob is 0: the draw is certain."""
        self._refuse_if_closed("sample")
        request = self._sampler.request(prompt, params, n, source=self._source)
        try:
            return await request.pending
        finally:
            if not request.pending.settled:
                request.cancelled = True
                if not self._engine.closed:
                    self._engine.wake()

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        """Log-prob of each token given those before it, f32[T], at temperature 1; the first is NaN."""
        self._refuse_if_closed("logprobs")
        ids = checked_tokens(tokens, self._sampler.vocabulary)
        if len(ids) > self._sampler.context_length:
            raise ContextFull(f"{len(ids)} tokens do not fit into a context of {self._sampler.context_length}")
        return await self._engine.submit(lambda: self._sampler.logprobs(self._source.now.weights, ids), "logprobs")

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        """Log-prob of each option after the prompt, f32[n]; see `SamplingClient.options`. The prompt is computed once."""
        self._refuse_if_closed("options")
        sampler = self._sampler
        start, checked = checked_options(prompt, options, sampler.vocabulary, sampler.context_length)
        return await self._engine.submit(lambda: sampler.options(self._source.now.weights, start, checked), "options")
