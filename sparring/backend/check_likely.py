"""Does a sampler tell the likeliest tokens, and how likely given continuations are?"""

from __future__ import annotations

import numpy as np

from sparring.arrays import F32
from sparring.backend.checking import FP32, Bounds, insist, prompts_of, within
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.training import TrainingClient

TOP = 5


async def check_likely(model: TrainingClient, *, bounds: Bounds = FP32) -> None:
    """The likeliest tokens come in order, with the log-probs of the distribution that is drawn from: that of a token which was
    drawn is the same. Options have the log-probs that their tokens have one by one."""
    client, prompt = await model.sampler(), prompts_of(model)[0]
    (plain,) = await client.sample(prompt, SamplingParams(max_tokens=1))
    insist(plain.top_tokens is None, "without top_logprobs, the likeliest tokens were told")
    differences: list[F32] = []
    for params in (
        SamplingParams(max_tokens=16, seed=1, top_logprobs=TOP),
        SamplingParams(max_tokens=16, seed=1, top_logprobs=TOP, temperature=0.7),
        SamplingParams(max_tokens=16, seed=1, top_logprobs=TOP, top_k=3),
        SamplingParams(max_tokens=16, seed=1, top_logprobs=TOP, temperature=0.0),
    ):
        for sample in await client.sample(prompt, params, n=2):
            differences.append(_told(sample, params))
    within("log-probs of a token that was drawn and of the same among the likeliest", differences, bounds)
    (first, _) = await client.sample(prompt, SamplingParams(max_tokens=8, seed=2, top_logprobs=TOP), n=2)
    assert first.top_tokens is not None and first.top_logprobs is not None
    options = [first.tokens[:1], first.tokens, first.tokens[:4], *first.top_tokens[0][:, None]]
    told = await client.options(prompt, options)
    insist(told.shape == (len(options),), f"{len(options)} options were given log-probs of shape {told.shape}")
    scored = [(await client.logprobs(np.concatenate([prompt, o])))[len(prompt) :].sum() for o in options]
    within("log-probs of options and of their tokens", [np.abs(told - np.array(scored, np.float32))], bounds)
    within("log-probs of options and of the likeliest tokens", [np.abs(told[3:] - first.top_logprobs[0])], bounds)
    await client.aclose()


def _told(sample: SampledSequence, params: SamplingParams) -> F32:
    """By how much the log-probs of drawn tokens differ from those among the likeliest, where they are among them."""
    tokens, logprobs = sample.top_tokens, sample.top_logprobs
    wanted = (len(sample.tokens), TOP)
    insist(
        tokens is not None and logprobs is not None and tokens.shape == logprobs.shape == wanted,
        f"{params} told the likeliest tokens in the shape {None if tokens is None else tokens.shape}, not {wanted}",
    )
    assert tokens is not None and logprobs is not None
    insist(
        bool((logprobs[:, :-1] >= logprobs[:, 1:]).all()) and all(len(set(row)) == TOP for row in tokens.tolist()),
        f"{params}: the likeliest tokens are not in order, or one of them is told twice: {logprobs.tolist()}",
    )
    most = 1 if params.temperature == 0 else params.top_k if params.top_k > 0 else TOP
    insist(
        bool(np.isneginf(logprobs[:, most:]).all() and np.isfinite(logprobs[:, :most]).all()),
        f"{params} leaves all but {most} tokens out; the log-probs of the likeliest are {logprobs.tolist()}",
    )
    place, among = np.nonzero(tokens == sample.tokens[:, None])
    insist(
        bool((np.delete(sample.logprobs, place) <= np.delete(logprobs[:, -1], place) + 1e-4).all()),
        f"{params}: a token that is likelier than the likeliest was drawn",
    )
    differences: F32 = np.abs(sample.logprobs[place] - logprobs[place, among])
    return differences
