"""After each publication: does vLLM draw from the distribution that the trainer has?

A few tokens are drawn after a fixed text, and the trainer scores them. The text is longer than one block of vLLM's prefix
cache, so that keys and values of older weights would show too.
"""

from __future__ import annotations

import numpy as np
import torch

from sparring.arrays import I32
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.scorer import Scorer
from sparring.backend.local.trainer import Trainer
from sparring.backend.losses import ImportanceSampling
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.errors import BackendError

TEXT = "The quick brown fox counts: 1 + 1 = 2, 2 + 3 = 5, 7 - 4 = 3, and so on until it is tired of numbers. "
PROMPT, DRAWN = 144, 8
"""Tokens of the prompt, and tokens that are drawn."""

BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.15, 1.0)}
"""Mean and largest difference between sampler and trainer in the log-prob of a token, by the precision of both: several times
what the two differ by where nothing is wrong."""

CANARY = SamplingParams(max_tokens=DRAWN, seed=0)


def canary_prompt(base: BaseModel) -> I32:
    """The text's tokens, over and over."""
    text = base.tokenizer.encode(TEXT, add_special_tokens=False)
    return np.resize(np.array(text, np.int32), max(1, min(PROMPT, base.context_length - DRAWN)))


def compare(trainer: Trainer, prompt: I32, sample: SampledSequence) -> None:
    """Raises `BackendError` with the numbers where sampler and trainer differ by more than the bounds. Engine thread only."""
    base, count = trainer.base, len(prompt)
    scorer = Scorer(base, trainer.adapter.weights, token_budget=trainer.passes.token_budget)
    drawn = Datum.completion(prompt, sample, advantage=0.0)
    (logprobs,) = trainer.forward(scorer.work([drawn], ImportanceSampling(), train=False)).logprobs
    difference = np.abs(logprobs[count:] - sample.logprobs)
    mean, largest = float(difference.mean()), float(difference.max())
    most_mean, most = BOUNDS[base.dtype]
    if not (mean <= most_mean and largest <= most):
        raise BackendError(
            f"sampler and trainer drifted apart: the log-probs of {len(sample.tokens)} tokens that vLLM drew differ from the "
            f"trainer's by {mean:.2g} on average and up to {largest:.2g}, more than {most_mean:g} and {most:g} in "
            f"{str(base.dtype).removeprefix('torch.')}; these weights were not installed"
        )
