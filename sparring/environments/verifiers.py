"""Verifiers: they judge a reply against what is known, and never run what a model wrote.

A verifier is plain data, called with await. What it cannot judge is a `Score` with an error, not a zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from sparring.environments.score import Score
from sparring.errors import SettingError

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/[1-9]\d*)?")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\d?frac\{([-+]?\d+)\}\{([1-9]\d*)\}")
_ANSWER = re.compile(r"^\s*answer\s*:\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_LONGEST = 1000

Extract = Literal["marked", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVerifier:
    """Compares a reply's answer with a number, exactly, as rationals: 1.0 or 0.0.

    extract   "marked": the one final `\\boxed{...}` or `Answer: ...` line; several different ones are wrong.
              "whole": the reply is the answer and nothing else (a full stop at its end does not count).

    A reply without an answer, or with one that is not a plain number, is wrong. Raises `SettingError` for a `gold` that is not a
    number (integer, decimal, fraction `a/b`): symbolic answers are not compared yet.
    """

    extract: Extract = "marked"

    async def __call__(self, text: str, gold: str | float) -> Score:
        expected = number(str(gold))
        if expected is None:
            raise SettingError(
                f"gold answer {gold!r} is not a number: MathVerifier compares integers, decimals and a/b"
            )
        answer = text if self.extract == "whole" else marked(text)
        found = number(answer) if answer is not None else None
        return Score(float(found == expected), parts={"answered": float(found is not None)})


def marked(text: str) -> str | None:
    """What stands in the final `\\boxed{...}`, else in the final `Answer:` line; None where there is none or they disagree."""
    answers = _boxed(text) or _ANSWER.findall(text)
    forms = {number(answer) if number(answer) is not None else answer.strip() for answer in answers}
    return answers[-1] if len(forms) == 1 else None


def number(text: str) -> Fraction | None:
    """The number that `text` is, or None. Dollar signs, percent signs, thousands' commas and a full stop at the end are dropped."""
    bare = text.strip()
    if len(bare) > _LONGEST:
        return None
    bare = _FRACTION.sub(r"\1/\2", bare.removesuffix(".").replace("\\$", "").replace("\\%", "").strip("$% "))
    bare = _GROUPED.sub("", bare.replace("\\!", "").replace("{,}", ","))
    if not _NUMBER.fullmatch(bare):
        return None
    top, _, bottom = bare.partition("/")
    return Fraction(top) / (Fraction(bottom) if bottom else 1)


def _boxed(text: str) -> list[str]:
    """The contents of every `\\boxed{...}` with balanced braces, in order."""
    found: list[str] = []
    for match in re.finditer(r"\\boxed\{", text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth == 0:
            found.append(text[match.end() : end - 1])
    return found
