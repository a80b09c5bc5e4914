"""Comparing mathematical expressions in workers, and which are never given to one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from sparring.environments.workers import Lost, Workers

_PROGRAM = Path(__file__).with_name("maths_worker.py")
_LONGEST, _DEEPEST = 1000, 50
_EXPLOSIVE = (
    r"[0-9]{400}",  # more digits than any answer has
    r"\^\{?[-+]?[0-9]{5}",  # powers of which nobody writes the digits
    r"[0-9)}]\^\{?\(?[-+]?[0-9.]+\^",  # a power of a power of numbers
    r"[0-9]{4}!|!\)*!",  # factorials of large numbers, and of factorials
    r"binom\{[^{}]*([0-9]{4}|\^)",  # and what is made of them
    r"(sum|prod|Gamma)[^\\]{0,30}([0-9]{5}|10\^|\^\{?[0-9]+\^)",  # many terms
)
_TOO_MUCH = re.compile("|".join(_EXPLOSIVE))
_SPACING = re.compile(r"\s|\\[,;:! ]|\\left|\\right")


def explosive(answer: str) -> bool:
    """Whether an answer is longer, deeper or larger than any answer is; takes time in proportion to its length."""
    if len(answer) > _LONGEST:
        return True
    depth = deepest = braces = 0
    for sign in answer:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
        braces += (sign == "{") - (sign == "}")
        if braces < 0:  # it would close what the worker opens
            return True
    return braces != 0 or deepest > _DEEPEST or _TOO_MUCH.search(_SPACING.sub("", answer)) is not None


async def compared(gold: str, answer: str, decimals: int, deadline: float, workers: int) -> dict[str, Any]:
    """`{"equal": bool}`, or `{"error": text}` where nobody can say."""
    try:
        return await _workers(workers).ask({"gold": gold, "answer": answer, "decimals": decimals}, deadline)
    except TimeoutError:
        return {"error": f"comparing took longer than {deadline:g} s"}
    except Lost as error:
        return {"error": str(error)}


@cache
def _workers(most: int) -> Workers:
    return Workers(_PROGRAM, most)
