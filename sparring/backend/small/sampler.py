"""Draws replies from one snapshot of a small policy's weights, which never changes: a context is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from secrets import randbits

import anyio.lowlevel
import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32, I32
from sparring.backend.bytes_renderer import VOCABULARY
from sparring.backend.check_request import check_request, checked_options, checked_tokens
from sparring.backend.local.draw import Shape, draw, draw_key, likeliest, uniforms
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.small.policies import SmallPolicy
from sparring.backend.small.renderer import ReplyRenderer
from sparring.errors import BackendError, SettingError

CONTEXT = 1 << 20


class SmallSampler:
    """A `SamplingClient`. Tokens that are no reply have probability 0."""

    def __init__(
        self, policy: SmallPolicy, weights: Tensor, renderer: ReplyRenderer, version: int, release: Callable[[], None]
    ) -> None:
        self._policy, self._weights, self._renderer = policy, weights, renderer
        self._release, self._closed = release, False
        self._known: dict[bytes, Tensor] = {}
        self.version = version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        self._refuse_if_closed("sample")
        ids = checked_tokens(prompt, self._renderer.vocabulary)
        check_request(ids, params, n, CONTEXT)
        if params.top_logprobs > len(self._renderer.replies):
            raise SettingError(
                f"top_logprobs={params.top_logprobs!r}: this model has {len(self._renderer.replies)} replies; ask for no more"
            )
        await anyio.lowlevel.checkpoint()
        seed = randbits(63) if params.seed is None else params.seed
        return [self._drawn(ids, params, draw_key(seed, index)) for index in range(n)]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        self._refuse_if_closed("logprobs")
        ids = checked_tokens(tokens, self._renderer.vocabulary)
        await anyio.lowlevel.checkpoint()
        found = [self._logprob(ids[:place], int(ids[place])) for place in range(1, len(ids))]
        return np.array([np.nan, *found], np.float32)

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        self._refuse_if_closed("options")
        ids, checked = checked_options(prompt, options, self._renderer.vocabulary, CONTEXT)
        await anyio.lowlevel.checkpoint()
        wholes = [(np.concatenate([ids, option]), len(option)) for option in checked]
        sums = [
            sum(self._logprob(whole[:place], int(whole[place])) for place in range(len(ids), len(ids) + length))
            for whole, length in wholes
        ]
        return np.array(sums, np.float32)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def _drawn(self, ids: I32, params: SamplingParams, key: int) -> SampledSequence:
        shape = Shape(temperature=params.temperature, top_p=params.top_p, top_k=params.top_k)
        tokens, logprobs, tops = list[int](), list[float](), list[tuple[list[int], list[float]]]()
        ended = False
        while not ended and len(tokens) < params.max_tokens:
            row = self._logits(np.concatenate([ids, np.array(tokens, np.int32)]))[None].clone()
            (chosen,), (logprob,) = draw(row, [shape], uniforms([key], [len(tokens)]))
            tokens.append(VOCABULARY + chosen)
            logprobs.append(float(logprob))
            tops.append(likeliest(row[0], shape, params.top_logprobs))
            text = self._renderer.text(tokens) if params.stop else ""
            ended = tokens[-1] in params.stop_ids or any(one in text for one in params.stop)
        told = params.top_logprobs > 0
        return SampledSequence(
            tokens=np.array(tokens, np.int32),
            logprobs=np.array(logprobs, np.float32),
            stop="stop" if ended else "length",
            versions=((self.version, len(tokens)),),
            top_tokens=np.array([top for top, _ in tops], np.int32) + VOCABULARY if told else None,
            top_logprobs=np.array([top for _, top in tops], np.float32) if told else None,
        )

    def _logprob(self, context: I32, token: int) -> float:
        if token < VOCABULARY:
            return -np.inf
        return float(torch.log_softmax(self._logits(context), dim=-1)[token - VOCABULARY])

    def _logits(self, context: I32) -> Tensor:
        """f32[R] after a context; not to be changed."""
        key = context.tobytes()
        if key not in self._known:
            self._known[key] = self._policy.logits(self._weights, [context])[0]
        return self._known[key]

    def _refuse_if_closed(self, what: str) -> None:
        if self._closed:
            raise BackendError(f"{what}() on a sampling client that was closed")
