"""A player that needs no model: for `sparring play` and dry runs."""

from __future__ import annotations

import re
from random import Random

_OPTIONS = re.compile(r"Reply with exactly one of: (.+)\.\s*$", re.MULTILINE)
_LETTERS = "abcdefgh"


def scripted_reply(asked: str, rng: Random, gold: str | None) -> str:
    """One of the options where the question lists them (as `Seat.pick` does), else the gold reply or, as often, letters."""
    listed: list[str] = _OPTIONS.findall(asked)
    if listed:
        return rng.choice(listed[-1].split(", "))
    if gold is not None and rng.random() < 0.5:
        return gold
    return "".join(rng.choices(_LETTERS, k=rng.randint(1, 8)))
