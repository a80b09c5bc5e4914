"""Between what this library asks for and gets, and vLLM's names for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from sparring.arrays import F32, I32
from sparring.backend.sampling import SampledSequence, SamplingParams, Stop
from sparring.backend.vllm.files import WeightsFile
from sparring.backend.vllm.following import Followed, stamps
from sparring.errors import BackendError, UnsupportedError

COLDEST, HOTTEST = 0.01, 2.0
"""The temperatures that vLLM draws at as they are; it raises a lower one and refuses a higher one. 0 is greedy."""


def vllm_params(params: SamplingParams, n: int) -> dict[str, Any]:
    """Fields of vLLM's `SamplingParams`. Raises `UnsupportedError` for what vLLM would change or refuse.

    Greedy draws are all alike, and vLLM makes one of them. It gives the i-th of `n` sequences the seed + i, so the seed it gets
    is spread out: neighbouring seeds share no draw.
    """
    if params.temperature and not COLDEST <= params.temperature <= HOTTEST:
        raise UnsupportedError(
            f"temperature={params.temperature!r}: vLLM draws at 0 and from {COLDEST} to {HOTTEST}; sampler='torch' at any"
        )
    if "" in params.stop:
        raise UnsupportedError(f"stop={params.stop!r}: vLLM takes no empty string")
    return {
        "n": n if params.temperature else 1,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "stop": list(params.stop),
        "include_stop_str_in_output": True,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": True,
        "seed": None if params.seed is None else _spread(params.seed),
        "logprobs": params.top_logprobs,
        "flat_logprobs": True,
        "detokenize": bool(params.stop),
    }


def _spread(seed: int) -> int:
    """A number below 2**62 for any integer."""
    return int.from_bytes(sha256(str(seed).encode()).digest()[:8], "little") >> 2


SCORING: dict[str, Any] = {"max_tokens": 1, "prompt_logprobs": 0, "flat_logprobs": True, "detokenize": False}
"""Fields for a prompt whose tokens are scored. The one token that vLLM draws after it is thrown away."""


Source = WeightsFile | Followed
"""What is drawn from."""


def sampled(output: Any, params: SamplingParams, n: int, source: Source) -> list[SampledSequence]:
    """vLLM's `RequestOutput` as `n` sequences; raises `BackendError` for one that did not end by itself or has no number."""
    found = sorted(output.outputs, key=lambda one: one.index)
    return [_sequence(found[i if params.temperature else 0], params, source) for i in range(n)]


def _sequence(one: Any, params: SamplingParams, source: Source) -> SampledSequence:
    tokens = np.array(one.token_ids, np.int32)
    if one.finish_reason not in ("stop", "length"):
        raise BackendError(f"vLLM ended a request with {one.finish_reason!r} after {len(tokens)} tokens")
    logprobs = _chosen(one.logprobs, len(tokens))
    if params.temperature == 0:
        logprobs = np.zeros(len(tokens), np.float32)  # a greedy draw is certain
    if not np.isfinite(logprobs).all():
        raise BackendError("sampling failed: the log-prob of a drawn token is not finite")
    stop: Stop = one.finish_reason
    versions = _versions(one, len(tokens), source)
    top_tokens, top_logprobs = _top(one.logprobs, len(tokens), params) if params.top_logprobs else (None, None)
    return SampledSequence(
        tokens=tokens,
        logprobs=logprobs,
        stop=stop,
        versions=versions,
        top_tokens=top_tokens,
        top_logprobs=top_logprobs,
    )


def _versions(one: Any, length: int, source: Source) -> tuple[tuple[int, int], ...]:
    """Which version drew which token."""
    if isinstance(source, WeightsFile):
        return ((source.version, length),)
    versions = stamps(one.weight_versions or (), source)
    if sum(count for _, count in versions) != length:
        raise BackendError(f"vLLM stamped {versions!r} of {length} tokens with the weights that drew them")
    return versions


def scored(output: Any, length: int) -> F32:
    """The log-probs of a prompt's tokens, f32[T], the first NaN."""
    logprobs = _chosen(output.prompt_logprobs, length)
    if not np.isfinite(logprobs[1:]).all():
        raise BackendError("scoring failed: the log-prob of a token is not finite")
    return logprobs


def _chosen(flat: Any, length: int) -> F32:
    """The first log-prob at each place of vLLM's `FlatLogprobs`, which is that of the token itself; NaN where there is none."""
    starts: Sequence[int] = flat.start_indices
    ends: Sequence[int] = flat.end_indices
    assert len(starts) >= length, (len(starts), length)
    return np.array(
        [flat.logprobs[s] if e > s else math.nan for s, e in zip(starts, ends, strict=True)][:length], np.float32
    )


def _top(flat: Any, length: int, params: SamplingParams) -> tuple[I32, F32]:
    """The likeliest tokens at each place and their log-probs, [T, k], which vLLM has behind the token itself."""
    count = params.top_logprobs
    starts: Sequence[int] = flat.start_indices[:length]
    tokens: I32 = np.array([flat.token_ids[s + 1 : s + 1 + count] for s in starts], np.int32)
    logprobs: F32 = np.array([flat.logprobs[s + 1 : s + 1 + count] for s in starts], np.float32)
    if params.temperature == 0:
        logprobs[:, 0], logprobs[:, 1:] = 0.0, -math.inf  # a greedy draw is certain
    return tokens, logprobs
