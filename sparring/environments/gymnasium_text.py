"""Gymnasium's observations and actions as text: how a space's values are written, and how a reply is read.

Needs the extra `games`. Letters: `n` actions of a discrete space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparring.environments.gymnasium_extra import gymnasium
from sparring.errors import SettingError, UnsupportedError

spaces = gymnasium.spaces
_ARRAYS = (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)


def written(space: gymnasium.Space[Any], value: Any) -> str:
    """A value of a space as text: numbers as numbers, arrays as JSON lists, the parts of a dictionary or tuple a line each."""
    if isinstance(space, spaces.Discrete):
        return str(int(value))
    if isinstance(space, spaces.Text):
        return str(value)
    if isinstance(space, _ARRAYS):
        return json.dumps(_short(np.asarray(value).tolist()))
    if isinstance(space, spaces.Dict):
        return "\n".join(f"{key}: {written(part, value[key])}" for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, value, strict=True)
        return "\n".join(f"{place}: {written(part, one)}" for place, (part, one) in enumerate(parts))
    raise UnsupportedError(f"observations in {space!r}: how they are written is not known; give observe=a function")


def _short(value: Any) -> Any:
    """Floats with four significant digits."""
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def check_readable(space: gymnasium.Space[Any], names: Sequence[str] | None) -> None:
    """Raise `SettingError` for names that do not fit the actions, `UnsupportedError` for actions that no reply can say."""
    if names is not None:
        if not isinstance(space, spaces.Discrete):
            raise SettingError(f"actions={names!r}: only a discrete space has names for its actions, this is {space!r}")
        if len(names) != int(space.n) or len(set(names)) != len(names):
            raise SettingError(f"actions={names!r}: must be {int(space.n)} different names, as there are actions")
    if not isinstance(space, (spaces.Discrete, spaces.Text, *_ARRAYS)):
        raise UnsupportedError(f"actions in {space!r}: known are Discrete, Text, Box, MultiBinary and MultiDiscrete")


def legal(space: gymnasium.spaces.Discrete, info: Mapping[str, Any], observation: Any) -> list[int]:
    """The actions that are allowed now: all, or those of an `action_mask` [n] in the info or in the observation."""
    mask = info.get("action_mask")
    if mask is None and isinstance(observation, Mapping):
        mask = observation.get("action_mask")
    start = int(space.start)
    allowed = range(int(space.n)) if mask is None else np.flatnonzero(np.asarray(mask)).tolist()
    return [start + place for place in allowed]


def legal_of(space: gymnasium.Space[Any], info: Mapping[str, Any], observation: Any) -> list[int] | None:
    """The same; None where actions cannot be counted. Raises `SettingError` where none is allowed."""
    if not isinstance(space, spaces.Discrete):
        return None
    allowed = legal(space, info, observation)
    if not allowed:
        raise SettingError("action_mask allows no action, and the episode is not over: mend the environment")
    return allowed


def wanted(space: gymnasium.Space[Any]) -> str:
    """How a reply says an action, for the question."""
    if isinstance(space, spaces.Text):
        return f"Reply with the text alone, {space.min_length} to {space.max_length} characters."
    shape = " x ".join(map(str, space.shape or ()))
    if isinstance(space, spaces.MultiDiscrete):
        return f"Reply with a JSON list of whole numbers ({shape}), below {space.nvec.tolist()}."
    if isinstance(space, spaces.MultiBinary):
        return f"Reply with a JSON list of 0 and 1 ({shape})."
    assert isinstance(space, spaces.Box), space
    return f"Reply with a JSON list of numbers ({shape}), from {space.low.tolist()} to {space.high.tolist()}."


def read(space: gymnasium.Space[Any], text: str) -> Any:
    """The action that a reply says. Raises `ValueError` that says why there is none."""
    if isinstance(space, spaces.Text):
        action: Any = text.strip()
    else:
        try:
            said = json.loads(text.strip())
        except json.JSONDecodeError:
            raise ValueError("it is no JSON list") from None
        if not isinstance(said, list):
            raise ValueError("it is no JSON list")
        action = _array(space, said)
    if not space.contains(action):
        raise ValueError("it is not among the actions")
    return action


def _array(space: gymnasium.Space[Any], said: list[Any]) -> Any:
    """The list in the space's type, unless that would change its numbers."""
    try:
        exact = np.asarray(said, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("it holds something else than numbers") from None
    array = exact.astype(space.dtype)
    if not np.issubdtype(array.dtype, np.floating) and not np.array_equal(array, exact):
        raise ValueError("it holds something else than whole numbers")
    return array
