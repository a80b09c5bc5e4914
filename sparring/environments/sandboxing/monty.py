"""The tier `monty`: a small interpreter for a part of Python (`pydantic-monty`), in a process of its own, for what it can run.

It has no files and no network, and starts in a tenth of a millisecond. Only what ends well is believed: whatever it cannot run,
and whatever fails in it, is run again by the next tier, so that no code is judged by what Monty lacks.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic_monty import CollectStreams, Monty, MontyError, ResourceLimits

from sparring.environments.sandboxing.inside import pack
from sparring.environments.sandboxing.result import Limits

_SECONDS = 1.0  # who takes longer than this gains nothing by it
_MEMORY = 256 << 20
_CALLED = ("called_with", "called_with_names")


def attempted(
    code: str, calls: Sequence[tuple[str, list[object], dict[str, object]]], limits: Limits
) -> tuple[list[object], str] | None:
    """The calls' values and what was printed, or None where it did not end well. Blocks."""
    printed = CollectStreams(limits.output)
    values: list[object] = []
    allowed = ResourceLimits(
        max_feed_duration_secs=min(_SECONDS, limits.seconds), max_memory=min(_MEMORY, limits.memory)
    )
    try:
        with _pool().checkout(limits=allowed, script_name="solution.py") as session:
            session.feed_run(code, print_callback=printed)
            for name, args, kwargs in calls:
                call = f"{name}(*{_CALLED[0]}, **{_CALLED[1]})"
                given: dict[str, Any] = dict(zip(_CALLED, (args, kwargs), strict=True))
                values.append(session.feed_run(call, inputs=given, print_callback=printed))
        fits = all(len(json.dumps(pack(value))) <= limits.value for value in values) and not _doubtful(values)
    except (MontyError, ValueError, TypeError, RecursionError):
        return None
    return (values, "".join(text for _, text in printed.output)) if fits else None


def _doubtful(value: Any) -> bool:
    """Whether a text in it may stand for something that is no plain value: Monty writes functions as <...> and circles as
    [...]."""
    if isinstance(value, str):
        return "..." in value or (value.startswith("<") and value.endswith(">"))
    if isinstance(value, dict):
        return any(map(_doubtful, value.keys())) or any(map(_doubtful, value.values()))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_doubtful, value))


@cache
def _pool() -> Monty:
    pool = Monty().__enter__()
    atexit.register(pool.__exit__, None, None, None)
    return pool
