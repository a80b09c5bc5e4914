"""A reply shows its text and never its reasoning."""

import pytest

from sparring.environments import Reply, ToolCall

SECRET = Reply(text="seven", reasoning="the card is a queen", tool_calls=(ToolCall(name="look", arguments="{}"),))


def test_no_way_of_formatting_leaks_the_reasoning() -> None:
    assert str(SECRET) == f"{SECRET}" == "seven"
    for shown in (repr(SECRET), f"{[SECRET]}", f"{SECRET!r}", f"{ ({'a': SECRET}) }", str((SECRET,))):
        assert "seven" in shown
        assert "queen" not in shown


def test_replies_are_equal_by_all_they_hold() -> None:
    assert Reply(text="a", reasoning="b") != Reply(text="a", reasoning="c")
    assert Reply(text="a") == Reply(text="a", reasoning="", tool_calls=(), stop="stop")


def test_a_reply_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SECRET.text = "eight"  # type: ignore[misc]
