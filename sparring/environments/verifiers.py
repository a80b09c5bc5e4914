"""`MathVerifier`: judges a reply against a known answer, and never runs what a model wrote.

A verifier is plain data, called with await. What it cannot judge is a `Score` with an error, not a zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from math import isfinite
from typing import Literal, get_args

from sparring.environments.expressions import compared, explosive
from sparring.environments.running import effect
from sparring.environments.score import Score
from sparring.errors import SettingError

# Digits are 0-9 alone: \d would take the digits of every script. No part of a pattern can match in two ways, so that matching
# takes time in proportion to the text.
_NUMBER = re.compile(r"([-+]?)([0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?(\.[0-9]+)?(?:/([1-9][0-9]*))?")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{([-+]?[0-9]+)\}\{([1-9][0-9]*)\}")
_BRACE = re.compile(r"\\boxed\{|[{}]")
_NUMBERS = re.compile(r"(?<![0-9A-Za-z.])(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?![0-9A-Za-z])")
_OPERAND = re.compile(r"[0-9A-Za-z.)]")
_MINUS = ("-", "\N{MINUS SIGN}")
_LONGEST = 1000
_PATIENCE = 600.0  # seconds, most of which pass in the queue for a worker

Extract = Literal["marked", "whole", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVerifier:
    """Compares a reply's answer with a known one: 1.0 or 0.0. Numbers are compared exactly, as rationals.

    extract   "marked": the one final `\\boxed{...}`, else the one final line `Answer: ...`; several different ones are wrong.
              "whole": the reply is the answer and nothing else (a full stop at its end does not count).
              "last": the last number in the reply, for models too small to follow a format. It anchors nothing: a reply that
              happens to end in the right number is right.
    symbolic  also expressions: where one of the two is no plain number, math-verify and sympy compare them (extra `maths`), in
              processes of their own. Without it an answer that is not a plain number is wrong.
    decimals  so many of them must agree where expressions are compared by value
    deadline  seconds for one comparison; one that takes longer is killed, and is an error
    workers   how many comparisons run at once on an event loop

    A reply without an answer is wrong, and so is one beyond any answer's bounds (1000 characters, 50 brackets deep, numbers
    that would fill the memory). Raises `SettingError` for a `gold` that is not a number (integer, decimal, fraction `a/b`)
    where `symbolic` is not set. An episode journals each comparison that a worker made.
    """

    extract: Extract = "marked"
    symbolic: bool = False
    decimals: int = 10
    deadline: float = 2.0
    workers: int = 2

    def __post_init__(self) -> None:
        if self.extract not in get_args(Extract):
            raise SettingError(f"MathVerifier(extract={self.extract!r}): must be one of {', '.join(get_args(Extract))}")
        if not (isinstance(self.deadline, int | float) and isfinite(self.deadline) and self.deadline > 0):
            raise SettingError(f"MathVerifier(deadline={self.deadline!r}): must be a finite number of seconds above 0")
        for name, value in (("decimals", self.decimals), ("workers", self.workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"MathVerifier({name}={value!r}): must be a whole number of at least 1")
        if self.symbolic and find_spec("math_verify") is None:
            raise SettingError("MathVerifier(symbolic=True) needs math-verify: pip install 'sparring[maths]'")

    async def __call__(self, text: str, gold: str | float) -> Score:
        expected = _gold(gold)
        if expected is None and not (self.symbolic and isinstance(gold, str)):
            raise SettingError(
                f"gold answer {gold!r} is not a number: MathVerifier compares integers, decimals and a/b, and expressions with "
                "symbolic=True"
            )
        answer = _EXTRACTORS[self.extract](text)
        found = number(answer) if answer is not None else None
        answered = {"answered": float(found is not None if expected is not None else answer is not None)}
        if answer is None or not self.symbolic or (found is not None and expected is not None):
            return Score(float(found is not None and found == expected), parts=answered)
        if answer.strip() == str(gold).strip():
            return Score(1.0, parts=answered)
        if explosive(answer):
            return Score(0.0, parts=answered)
        said = await effect(compared, str(gold), answer, self.decimals, self.deadline, self.workers, timeout=_PATIENCE)
        if "error" in said:
            return Score(error=f"MathVerifier: {said['error']}", parts=answered)
        return Score(float(said["equal"]), parts=answered)


def marked(text: str) -> str | None:
    """What stands in the final `\\boxed{...}`, else in the final `Answer:` line; None where there is none or they disagree."""
    answers = _boxed(text) or _answer_lines(text)
    forms: set[Fraction | str] = set()
    for answer in answers:
        value = number(answer)
        forms.add(answer.strip() if value is None else value)
    return answers[-1] if len(forms) == 1 else None


def last(text: str) -> str | None:
    """The last number in a text, None where there is none. A minus between two operands is no sign; one that stands apart
    from its number is one after an equals sign alone, as in `3 - 7 = - 4`."""
    found = list(_NUMBERS.finditer(text))
    if not found:
        return None
    sign = "-" if _ends_in_sign(text[: found[-1].start()]) else ""
    return sign + found[-1][0]


def _ends_in_sign(text: str) -> bool:
    upto = text.rstrip(" ")
    if not upto.endswith(_MINUS):
        return False
    before = upto[:-1]
    if upto != text:
        return before.rstrip(" ").endswith("=")
    return _OPERAND.search(before[-1:]) is None


def number(text: str) -> Fraction | None:
    """The number that `text` is, or None: an integer, a decimal or a/b, with a sign, thousands' commas or as `\\frac{a}{b}`.

    Dollar and percent signs round it and a full stop at its end are dropped. Exponents and the digits of other scripts are
    refused.
    """
    bare = text.strip().replace("\N{MINUS SIGN}", "-")
    if len(bare) > _LONGEST:
        return None
    stopped = bare.removesuffix(".")
    bare, full_stop = stopped.replace("\\$", "").replace("\\%", "").strip("$% "), stopped is not bare
    bare = bare if full_stop else bare.removesuffix(".")
    written = _FRACTION.fullmatch(bare)
    if written:
        sign, top, bottom = written.groups()
        return Fraction(int(top), int(bottom)) * (-1 if sign == "-" else 1)
    parts = _NUMBER.fullmatch(bare.replace("\\!", "").replace("{,}", ","))
    if parts is None or not (parts[2] or parts[3]):
        return None
    value = Fraction((parts[2] or "0").replace(",", "") + (parts[3] or "")) / int(parts[4] or "1")
    return -value if parts[1] == "-" else value


def _gold(gold: object) -> Fraction | None:
    if isinstance(gold, str):
        return number(gold)
    if isinstance(gold, float):
        return Fraction(repr(float(gold))) if isfinite(gold) else None
    return Fraction(gold) if isinstance(gold, int) and not isinstance(gold, bool) else None


def _boxed(text: str) -> list[str]:
    """The contents of every `\\boxed{...}` with balanced braces and no other such inside, in order."""
    found: list[str] = []
    opened: list[int | None] = []  # for each open brace, where the content of its box begins; None for a plain brace
    last = -1
    for match in _BRACE.finditer(text):
        if match[0] != "}":
            opened.append(match.end() if match[0] != "{" else None)
        elif opened:
            start = opened.pop()
            if start is not None and start > last:
                last = match.start()
                found.append(text[start:last])
    return found


def _answer_lines(text: str) -> list[str]:
    """What follows `Answer:` on each line that begins with it."""
    split = (line.partition(":") for line in text.splitlines())
    return [rest.strip() for head, colon, rest in split if colon and head.strip().casefold() == "answer"]


_EXTRACTORS: Mapping[Extract, Callable[[str], str | None]] = {"marked": marked, "whole": str, "last": last}
