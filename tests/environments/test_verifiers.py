"""The maths verifier: exact, strict, and quick on whatever a model may write."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.environments import MathVerifier
from sparring.environments.verifiers import last, marked, number
from sparring.errors import SettingError


@pytest.mark.parametrize(
    "text, value",
    [
        ("5", 5),
        ("+5", 5),
        ("-5", -5),
        (" 5 ", 5),
        ("\n5\t", 5),
        ("5.", 5),
        ("$5.$", 5),
        ("$5$.", 5),
        ("007", 7),
        ("-0", 0),
        ("5.0", 5),
        ("0.10", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1/2", Fraction(1, 2)),
        ("-10/4", Fraction(-5, 2)),
        ("1.5/3", Fraction(1, 2)),
        ("1,000", 1000),
        ("-12,345,678.25", Fraction(-1234567825, 100)),
        ("1{,}000", 1000),
        ("1,\\!000", 1000),
        ("\\$1,000", 1000),
        ("$42", 42),
        ("42\\%", 42),
        ("42 %", 42),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("\\tfrac{-3}{4}", Fraction(-3, 4)),
        ("-\\frac{-3}{4}", Fraction(3, 4)),
        ("$\\frac{1}{2}$", Fraction(1, 2)),
        ("9" * 1000, 10**1000 - 1),
    ],
)
def test_what_is_a_number(text: str, value: int | Fraction) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            ".",
            "-",
            "+",
            "/",
            ",",
            "$",
            "%",
            "--3",
            "+-3",
            "- 3",
            "3-",
            "1e5",
            "1E5",
            "0x10",
            "1_000",
            "1 000",
        ),
        *("5..", "1.2.3", "1/0", "1/00", "1/2/3", "1/-2", "/2", "5/", "1 / 2", "nan", "inf", "Infinity", "true"),
        *("1,00", "1,0000", "12345,678", "0,001", "1,000,00", ",000", "1.234,567", "1.5,000", "1,000/1,000"),
        *("3\\frac{1}{2}", "\\frac{1}{2}5", "\\frac{1}{2}\\frac{3}{4}", "\\frac{1}{0}", "\\frac12", "\\frac{1.5}{2}"),
        *("five", "5 apples", "x=5", "(5)", "{5}", "[5]", "5!", "5\n6", "5;", "5 5", "4+1", "\\text{5}"),
        *("\uff15", "\u0665", "\u0bef", "\u00b2", "\u2075", "\u00bd", "5\u200b", "\u0030\uff10"),
        "9" * 1001,
    ],
)
def test_what_is_none(text: str) -> None:
    assert number(text) is None


@given(value=st.integers() | st.fractions() | st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_every_rational_is_read_back(value: int | Fraction | Decimal) -> None:
    assert number(str(value)) == Fraction(value)


@given(value=st.integers())
def test_commas_every_three_digits_are_read_back(value: int) -> None:
    assert number(f"{value:,}") == value


@given(text=st.text(max_size=30))
def test_whatever_is_read_is_a_plain_number(text: str) -> None:
    if number(text) is not None:
        assert text.isascii() or text.strip().isascii()
        assert any("0" <= letter <= "9" for letter in text)


# ----------------------------------------------------------------------------------------------------- finding the answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so \\boxed{5}", "5"),
        ("\\boxed{5} and \\boxed{5.0}", "5.0"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{x} then \\boxed{x}", "x"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("{ \\boxed{5}", "5"),
        ("\\boxed{ never closed \\boxed{5}", "5"),
        ("} \\boxed{5} }", "5"),
        ("Answer: 5", "5"),
        ("work\n  ANSWER :  5  \n", "5"),
        ("answer: 5\r\nAnswer: 5.0", "5.0"),
        ("\\boxed{5}\nAnswer: 6", "5"),
        ("\\boxed{5", None),
        ("\\boxed{5}, no, \\boxed{6}", None),
        ("Answer: 5\nAnswer: 6", None),
        ("The answer: 5", None),
        ("Answer 5", None),
        ("Answer:\n5", ""),
        ("5", None),
        ("", None),
        ("\\boxed{}", ""),
    ],
)
def test_what_is_marked(text: str, answer: str | None) -> None:
    assert marked(text) == answer


@given(parts=st.lists(st.sampled_from(["\\boxed{", "{", "}", "5", "6", " ", "\n", "answer:", "\\"]), max_size=12))
def test_a_marked_answer_stands_in_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    answer = marked(text)
    assert answer is None or answer in text
    if "\\boxed" not in text and "answer:" not in text:
        assert answer is None


LONG = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * LONG,
        "\\boxed{" * LONG + "}" * LONG,
        "\\boxed{5}" * LONG,
        "\\boxed{" + "1" * LONG + "}",
        "\\boxed{" + "{" * LONG,
        "\n" * LONG,
        " \n" * LONG + "answer",
        "answer:" + " " * LONG + "x",
        "answer: " + "a " * LONG,
        "Answer: 5\n" * LONG,
        "1" * LONG + "x",
        "1," * LONG,
        "$" * LONG + "5",
        "\\frac{" * LONG,
    ],
    ids=range(14),
)
def test_no_reply_takes_long(text: str) -> None:
    """Linear: seconds for all of them. Anything quadratic in these lengths would take hours."""
    marked(text)
    number(text)


# -------------------------------------------------------------------------------------------------------------- judging


async def test_right_wrong_and_unanswered() -> None:
    verify = MathVerifier()
    right, wrong, none = [await verify(text, "1/2") for text in ("\\boxed{0.5}", "\\boxed{0.6}", "0.5")]
    assert [float(score) for score in (right, wrong, none)] == [1.0, 0.0, 0.0]
    assert [score.parts for score in (right, wrong, none)] == [{"answered": 1.0}, {"answered": 1.0}, {"answered": 0.0}]


async def test_the_whole_reply_or_nothing() -> None:
    verify = MathVerifier(extract="whole")
    replies = ["7", " 7.\n", "7.0", "It is 7", "7 7", "\\boxed{7}", ""]
    assert [float(await verify(reply, 7)) for reply in replies] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


async def test_hedging_is_wrong() -> None:
    verify = MathVerifier()
    assert float(await verify("\\boxed{5} or \\boxed{6}", "5")) == 0.0
    assert float(await verify("Answer: 6\nAnswer: 5", "5")) == 0.0


@pytest.mark.parametrize("gold", ["1/3", 3, -3, 0.1, 1e-07, 1e20, "1,000", "\\frac{2}{3}", 10**30])
async def test_a_gold_answer_is_right(gold: str | float) -> None:
    value = number(gold) if isinstance(gold, str) else Fraction(str(gold))
    assert float(await MathVerifier()(f"\\boxed{{{value}}}", gold)) == 1.0


@pytest.mark.parametrize("gold", ["", "x", "#### 72", "1e5", float("nan"), float("inf"), True, None, [1]])
async def test_a_gold_answer_that_is_no_number_is_refused(gold: Any) -> None:
    with pytest.raises(SettingError, match=r"gold answer .* is not a number: MathVerifier compares"):
        await MathVerifier()("\\boxed{5}", gold)


async def test_a_typeset_minus_is_a_minus() -> None:
    for verify in (MathVerifier(), MathVerifier(extract="whole")):
        text = "\N{MINUS SIGN}4" if verify.extract == "whole" else "\\boxed{\N{MINUS SIGN}4}"
        assert float(await verify(text, -4)) == 1.0
        assert float(await verify(text, 4)) == 0.0


def test_an_unknown_way_to_extract_is_refused() -> None:
    with pytest.raises(SettingError, match=r"extract='boxed'\): must be one of marked, whole"):
        MathVerifier(extract="boxed")  # type: ignore[arg-type]


def test_a_verifier_is_plain_data() -> None:
    assert MathVerifier() == MathVerifier(extract="marked")
    assert len({MathVerifier(), MathVerifier(), MathVerifier(extract="whole")}) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("6 - 1 = 5.", "5"),
        ("3-4=-1", "-1"),
        ("9-1", "1"),
        ("The answer is 10, I think", "10"),
        ("is 1.5 or 2.5.", "2.5"),
        ("1 + 2 = -3", "-3"),
        ("3 - 7 = - 4", "-4"),
        ("3 - 7 = \N{MINUS SIGN}4", "-4"),
        ("3 - 7 =  \N{MINUS SIGN} 4.", "-4"),
        ("-4", "-4"),
        ("(-4)", "-4"),
        ("9 - 1", "1"),
        ("9 \N{MINUS SIGN} 1", "1"),
        ("x-4", "4"),
        ("f(x)-4", "4"),
        ("the results:\n- 4", "4"),
        ("= 7 - 4", "4"),
        ("that makes 1,234", "1,234"),
        ("3,4", "4"),
        ("x5", None),
        ("none at all", None),
    ],
)
def test_the_last_number_of_a_reply(text: str, found: str | None) -> None:
    assert last(text) == found


async def test_the_last_number_is_what_counts() -> None:
    verify = MathVerifier(extract="last")
    assert float(await verify("First 7, then 3.", 3)) == 1.0
    assert float(await verify("First 3, then 7.", 3)) == 0.0
    assert float(await verify("no number", 3)) == 0.0
