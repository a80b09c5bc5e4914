"""After each publication: does the sampler draw from the distribution that the weights have?

A few tokens are drawn after a fixed text, and a full forward pass scores them: with vLLM the trainer's, before anything else is
drawn, after a text that is longer than one block of its prefix cache, so that keys and values of older weights would show too;
with the torch sampler one through the published weights, beside everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparring.arrays import F32, I32
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.lora import Weights
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.local.scorer import Scorer
from sparring.backend.local.scoring import token_logprobs
from sparring.backend.local.source import Source, Stamped
from sparring.backend.local.trainer import Trainer
from sparring.backend.losses import ImportanceSampling
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.errors import BackendError

TEXT = "The quick brown fox counts: 1 + 1 = 2, 2 + 3 = 5, 7 - 4 = 3, and so on until it is tired of numbers. "
PROMPT, SHORT_PROMPT, DRAWN = 144, 16, 8
"""Tokens of the prompt, with vLLM and with the torch sampler, and tokens that are drawn."""

BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.15, 1.0)}
"""Mean and largest difference between sampler and trainer in the log-prob of a token, by the precision of both: several times
what the two differ by where nothing is wrong."""

CANARY = SamplingParams(max_tokens=DRAWN, seed=0)


def canary_prompt(base: BaseModel, tokens: int = PROMPT) -> I32:
    """The text's tokens, over and over."""
    text = base.tokenizer.encode(TEXT, add_special_tokens=False)
    return np.resize(np.array(text, np.int32), max(1, min(tokens, base.context_length - DRAWN)))


def compare(trainer: Trainer, prompt: I32, sample: SampledSequence) -> None:
    """Raises `BackendError` with the numbers where sampler and trainer differ by more than the bounds. Engine thread only."""
    base, count = trainer.base, len(prompt)
    scorer = Scorer(base, trainer.adapter.weights, token_budget=trainer.passes.token_budget)
    drawn = Datum.completion(prompt, sample, advantage=0.0)
    (logprobs,) = trainer.forward(scorer.work([drawn], ImportanceSampling(), train=False)).logprobs
    if drift := _drift(logprobs[count:], sample, base.dtype, "vLLM"):
        raise BackendError(f"{drift}; these weights were not installed")


class TorchCanary:
    """For one model: `ask` has a few tokens drawn, among those of others, and compares them as soon as they are there; `check`
    raises what came of it. Engine thread only."""

    def __init__(self, base: BaseModel, sampler: TorchSampler) -> None:
        self._base, self._sampler = base, sampler
        self._prompt = canary_prompt(base, SHORT_PROMPT)
        self._drifted = ""

    def ask(self, trained: Weights, published: Stamped) -> None:
        """Of weights that are the trainer's now and never change. Raises `BackendError` where they are not the trainer's."""
        assert published.weights is not None
        pairs = zip(trained.numbers, published.weights.numbers, strict=True)
        if differ := sum(not torch.equal(one, other) for one, other in pairs):
            raise BackendError(
                f"version {published.version}: {differ} of {len(trained.numbers)} matrices that were published are not the "
                f"trainer's"
            )

        def compared(samples: Sequence[SampledSequence]) -> None:
            (sample,) = samples
            tokens = np.concatenate([self._prompt, sample.tokens])
            logprobs = token_logprobs(self._base, published.weights, tokens)[len(self._prompt) :]
            if drift := _drift(logprobs, sample, self._base.dtype, "the torch sampler"):
                self._drifted = f"{drift}; seen at version {published.version}"

        self._sampler.request(self._prompt, CANARY, 1, source=Source(published)).then = compared

    def check(self) -> None:
        """Raises `BackendError` with the numbers where they differed by more than the bounds."""
        if self._drifted:
            raise BackendError(self._drifted)


def _drift(logprobs: F32, sample: SampledSequence, dtype: torch.dtype, who: str) -> str:
    """What is wrong with what `who` drew; nothing where it is within the bounds."""
    difference = np.abs(logprobs - sample.logprobs)
    mean, largest = float(difference.mean()), float(difference.max())
    most_mean, most = BOUNDS[dtype]
    if mean <= most_mean and largest <= most:
        return ""
    return (
        f"sampler and trainer drifted apart: the log-probs of {len(sample.tokens)} tokens that {who} drew differ from the "
        f"trainer's by {mean:.2g} on average and up to {largest:.2g}, more than {most_mean:g} and {most:g} in "
        f"{str(dtype).removeprefix('torch.')}"
    )
