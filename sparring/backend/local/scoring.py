"""How likely given tokens are: those of one sequence, and whole continuations of one context, which then stands in the pass
once. Engine thread only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32, I32
from sparring.backend.local.base import BaseModel
from sparring.backend.local.kernel_attention import kernels
from sparring.backend.local.lora import Weights
from sparring.backend.local.packing import Rows
from sparring.backend.local.readout import read_out

TOGETHER = 512
"""Tokens of options that one pass takes (where there are more, the context is computed once more for each so many), and tokens
whose logits are there at once."""


@torch.inference_mode()
def token_logprobs(base: BaseModel, weights: Weights | None, tokens: I32) -> F32:
    """Log-prob of each token given those before it, f32[T], the first NaN."""
    ids = torch.from_numpy(tokens).long().to(base.device)
    with base.call.rows([(weights, 1)]), kernels():
        hidden = base.body(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    parts = zip(hidden[:-1].split(TOGETHER), ids[1:].split(TOGETHER), strict=True)
    return np.concatenate([np.full(1, np.nan, np.float32), *(_logprobs(base, weights, *part) for part in parts)])


@torch.inference_mode()
def option_logprobs(base: BaseModel, weights: Weights | None, prompt: I32, options: Sequence[I32]) -> F32:
    """Log-prob of each option after the prompt, f32[n], the sum over its tokens."""
    return np.array([one for part in _parts(options) for one in _together(base, weights, prompt, part)], np.float32)


def _parts(options: Sequence[I32]) -> Iterator[list[I32]]:
    part: list[I32] = []
    for option in options:
        if part and sum(map(len, part)) + len(option) > TOGETHER:
            yield part
            part = []
        part.append(option)
    yield part


def _together(base: BaseModel, weights: Weights | None, prompt: I32, options: Sequence[I32]) -> list[float]:
    rows, starts = _tree(prompt, options)
    before = np.concatenate(
        [[len(prompt) - 1, *range(start, start + len(o) - 1)] for start, o in zip(starts, options, strict=True)]
    )
    targets = torch.from_numpy(np.concatenate(options)).long().to(base.device)
    with base.call.rows([(weights, 1)]):
        hidden = base.hidden_states(rows, train=False)[0, torch.from_numpy(before).to(base.device)]
    each = _logprobs(base, weights, hidden, targets)
    return [float(part.sum()) for part in np.split(each, np.cumsum([len(option) for option in options])[:-1])]


def _logprobs(base: BaseModel, weights: Weights | None, hidden: Tensor, targets: Tensor) -> F32:
    """Of the targets i64[N] after the states [N, D], f32[N]."""
    logits = read_out(base.head, hidden, [(weights, len(targets))]).float()
    found: F32 = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0].cpu().numpy()
    return found


def _tree(prompt: I32, options: Sequence[I32]) -> tuple[Rows, list[int]]:
    """One row: the prompt, which all see, and each option, which nobody else sees; and where the options begin."""
    ends = (len(prompt) + np.cumsum([len(option) for option in options])).tolist()
    starts = [end - len(option) for end, option in zip(ends, options, strict=True)]
    places = [np.arange(len(prompt)), *(len(prompt) + np.arange(len(option)) for option in options)]
    seen = [np.full(len(prompt), ends[-1]), *(np.full(len(o), end) for o, end in zip(options, ends, strict=True))]
    return Rows(
        tokens=np.concatenate([prompt, *options]).astype(np.int64)[None],
        positions=np.concatenate(places)[None],
        end=np.concatenate(seen)[None],
        plain=len(options) == 1,
    ), starts
