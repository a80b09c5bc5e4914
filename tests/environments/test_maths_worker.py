"""The parser of the worker that compares expressions: what it reads is what math-verify's own reads, and sooner."""

from __future__ import annotations

from typing import Any

import pytest
from antlr4 import CommonTokenStream, InputStream
from antlr4.error.ErrorListener import ErrorListener
from hypothesis import given
from hypothesis import strategies as st
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.antlr_parser import PSLexer, PSParser
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import LatexExtractionConfig

from benchmarks._maths import cases
from sparring.environments import maths_worker
from sparring.environments.maths_worker import _TYPICAL, _Parser

NORMAL = LatexExtractionConfig().normalization_config
PARSERS = (PSParser, _Parser)


class Listening(ErrorListener):  # type: ignore[misc]
    """Raises at a syntax error, as math-verify's does; counts how often the context of a rule was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def syntaxError(self, *seen: object) -> None:
        raise ValueError("cannot be read")

    def reportAttemptingFullContext(self, *seen: object) -> None:
        self.asked += 1


def read(kind: Any, text: str) -> tuple[str, int]:
    """The tree of a text, and how often its context was asked for."""
    lexer, listening = PSLexer(InputStream(normalize_latex(text, config=NORMAL))), Listening()
    parser = kind(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listening)
    try:
        return parser.math().toStringTree(recog=parser), listening.asked
    except ValueError:
        return "cannot be read", listening.asked


LEAVES = st.sampled_from(
    ["1", "2.5", "x", "y", "n", "\\pi", "e", "\\infty", "30\\%", "90^\\circ", "\\text{B}", "1,000"]
)
FORMS = [
    "{0}+{1}", "{0}-{1}", "-{0}", "{0}{1}", "{0} \\cdot {1}", "{0}/{1}", "({0})", "\\left({0}\\right)", "|{0}|", "{0}!",
    "\\frac{{{0}}}{{{1}}}", "\\sqrt{{{0}}}", "\\sqrt[3]{{{0}}}", "{0}^{{{1}}}", "{0}^2", "{0}_1", "f({0})",
    "\\binom{{{0}}}{{{1}}}",
    "\\sin({0})", "\\sin {0}", "\\log_2 {0}", "\\ln {0}", "({0},{1})", "({0}, {1}]", "[{0},{1}]", "\\{{{0},{1}\\}}",
    "{0},{1}", "{0};{1}", "{0}={1}", "{0} < {1}", "{0} \\le {1}", "{0} \\neq {1}", "{0} \\cup {1}", "{0} \\cap {1}",
    "{0} \\in {1}", "\\begin{{pmatrix}}{0}&{1}\\end{{pmatrix}}", "\\int_0^1 {0} dx", "\\sum_{{k=1}}^{{{0}}} {1}",
    "{0} \\pmod {1}", "\\lim_{{x \\to {0}}} {1}", "{0}\\text{{ or }}{1}", "({0}", "{0})", "{0}+",
]  # fmt: skip
"""Every way to put two expressions together that answers use, and some that nobody can read."""
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.builds(lambda form, left, right: form.format(left, right), st.sampled_from(FORMS), inner, inner),
    max_leaves=5,
)


@given(text=EXPRESSIONS)
def test_two_stages_read_what_one_does(text: str) -> None:
    """Trees, not verdicts: what is equal here is equal in whatever is made of it."""
    whole, quick = (read(kind, text)[0] for kind in PARSERS)
    assert whole == quick


@pytest.mark.parametrize("text", [*_TYPICAL, *dict.fromkeys(text for case in cases() for text in case[:2])])
def test_what_answers_look_like_is_read_the_same(text: str) -> None:
    whole, quick = (read(kind, text)[0] for kind in PARSERS)
    assert whole == quick
    assert whole != "cannot be read"


def test_context_is_asked_for_only_where_it_is_needed() -> None:
    """It is what takes the time: nothing that is found out with it is remembered."""
    before, after = (read(kind, "(7-1, 8)")[1] for kind in PARSERS)
    assert before > 0
    assert after == 0


def test_what_only_context_can_tell_is_read_too() -> None:
    asked = {text: read(_Parser, text)[1] for text in ("x^2+5x", "x^2+13x")}
    assert min(asked.values()) > 0, "no longer an example: the first stage reads it"
    assert "cannot be read" not in {read(_Parser, text)[0] for text in asked}


def test_the_worker_reads_with_it() -> None:
    """As `main` does. The parser is named in math-verify's module, so that is where it has to stand."""
    found = []
    try:
        maths_worker.prepare()
        found = [maths_worker.equal("x^2+5x", text, 10) for text in ("x(x+5)", "x(x+6)", "x^2+", "")]
        assert latex2sympy2.PSParser is _Parser
    finally:
        latex2sympy2.PSParser = PSParser
    assert [said["equal"] for said in found] == [True, False, False, False]
