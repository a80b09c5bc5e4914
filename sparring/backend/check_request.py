"""What every sampler refuses before it draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparring.arrays import I32
from sparring.backend.sampling import SamplingParams
from sparring.errors import ContextFull, SettingError


def checked_tokens(tokens: Sequence[int] | I32, vocabulary: int) -> I32:
    """The tokens as i32[T]; `SettingError` for none at all and for ids that the model does not have."""
    ids = np.asarray(tokens, np.int64)
    if ids.ndim != 1 or len(ids) == 0:
        raise SettingError(f"tokens of shape {ids.shape!r}: one row of at least one token is needed")
    if ids.min() < 0 or ids.max() >= vocabulary:
        bad = int(ids[(ids < 0) | (ids >= vocabulary)][0])
        raise SettingError(f"token {bad!r}: this model's are 0 to {vocabulary - 1}")
    return ids.astype(np.int32)


def check_request(tokens: I32, params: SamplingParams, n: int, context_length: int) -> None:
    """Raises `SettingError` for fewer than one sequence, `ContextFull` for one that may become longer than the context."""
    if n < 1:
        raise SettingError(f"n={n!r}: must be at least 1")
    if len(tokens) + params.max_tokens > context_length:
        raise ContextFull(f"{len(tokens)} tokens and max_tokens={params.max_tokens!r} do not fit into {context_length}")


def checked_options(
    prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32], vocabulary: int, context_length: int
) -> tuple[I32, list[I32]]:
    """The prompt and the options as i32; raises as `SamplingClient.options` says."""
    start = checked_tokens(prompt, vocabulary)
    if len(options) == 0:
        raise SettingError("options=[]: there is nothing to choose from; give at least one")
    checked = [checked_tokens(option, vocabulary) for option in options]
    longest = max(len(option) for option in checked)
    if len(start) + longest > context_length:
        raise ContextFull(f"{len(start)} tokens and an option of {longest} do not fit into {context_length}")
    return start, checked
