"""JSON data: what tasks, settings, effects' arguments and their results are made of."""

import json
from typing import Any

import msgspec

_encoder = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> bytes:
    """The one JSON text of `value` (keys and sets sorted, dataclasses as objects), UTF-8.

    Raises `ValueError` for what is not JSON data: other objects, NaN and infinity, text that is not Unicode, circles.
    """
    try:
        builtins = msgspec.to_builtins(value, str_keys=True, order="deterministic")
        return _encoder.encode(builtins).encode()
    except (TypeError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from error
