"""A conversation is append-only, and its digest names exactly what led to a request."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from sparring.environments import Conversation, Message, Place, Reply, Text, ToolCall, Turn
from tests.environments.conftest import texts

TEXTS = st.text(st.characters() | st.sampled_from("\0'\"\\\ud800"), max_size=4)
MESSAGES = st.builds(
    lambda role, parts: Message(role=role, parts=tuple(Text(text=part) for part in parts)),
    st.sampled_from(["system", "user"]),
    st.lists(TEXTS, max_size=2),
)
REPLIES = st.builds(
    lambda text, reasoning, calls, stop: Reply(text=text, reasoning=reasoning, tool_calls=tuple(calls), stop=stop),
    TEXTS,
    TEXTS,
    st.lists(st.builds(lambda name, arguments: ToolCall(name=name, arguments=arguments), TEXTS, TEXTS), max_size=1),
    st.sampled_from(["stop", "length"]),
)
TURNS = st.builds(lambda reply, number: Turn(reply=reply, record=None, number=number), REPLIES, st.integers(0, 3))
ENTRIES = st.lists(MESSAGES | TURNS, max_size=4)
HERE = Place(seat="solver")


def filled(entries: list[Message | Turn], place: Place = HERE) -> Conversation:
    conversation = Conversation(place)
    for entry in entries:
        conversation.append(entry)
    return conversation


def content(entries: list[Message | Turn]) -> list[object]:
    return [entry if isinstance(entry, Message) else entry.reply for entry in entries]


def told(text: str, role: str = "user") -> Message:
    return Message(role="system" if role == "system" else "user", parts=(Text(text=text),))


def said(text: str, **other: str) -> Turn:
    return Turn(reply=replace(Reply(text=text), **other), record=object(), number=0)  # type: ignore[arg-type]


@given(one=ENTRIES, other=ENTRIES)
def test_the_digest_is_equal_exactly_where_the_content_is(
    one: list[Message | Turn], other: list[Message | Turn]
) -> None:
    assert (filled(one).digest == filled(other).digest) == (content(one) == content(other))


def test_no_text_can_pretend_to_be_a_boundary() -> None:
    pairs = [
        ([said("a\0", reasoning="b")], [said("a", reasoning="\0b")]),
        ([told("a"), told("b")], [told("a\0user\0b")]),
        ([told("x")], [told("x", "system")]),
        (
            [Message(role="user", parts=(Text(text="ab"),))],
            [Message(role="user", parts=(Text(text="a"), Text(text="b")))],
        ),
        ([said("a")], [told("a")]),
    ]
    for one, other in pairs:
        assert filled(one).digest != filled(other).digest  # type: ignore[arg-type]


def test_the_digest_leaves_out_records_numbers_and_places() -> None:
    turn = said("a")
    elsewhere = replace(turn, record="another", number=7)
    assert filled([turn]).digest == filled([elsewhere], Place(seat="other", fork="1", context=2)).digest


def test_the_digest_is_a_chain_over_ascii_text() -> None:
    """A journal is read by other processes and versions of Python: how it is made is part of the format."""
    first = sha256(rb"('user', ('caf\xe9',))").digest()
    second = sha256(first + rb"('assistant', '\ud800', '', (), 'stop')").digest()
    assert filled([told("caf\u00e9"), said("\ud800")]).digest == second


def test_a_copy_goes_its_own_way() -> None:
    first = filled([told("a"), said("b")])
    copy = first.copied(Place(seat="solver", fork="1"))
    assert copy.digest == first.digest
    assert copy.inherited == 2
    assert first.inherited == 0
    copy.append(told("c"))
    assert texts(first) == ["user: a", "assistant: b"]
    assert texts(copy) == ["user: a", "assistant: b", "user: c"]
    assert copy.digest == filled([told("a"), said("b"), told("c")]).digest
    assert copy.place.fork == "1"


def test_a_renewed_context_keeps_what_the_system_said() -> None:
    old = filled([told("rules", "system"), told("more rules", "system"), told("a"), said("b")])
    fresh = old.renewed(Place(seat="solver", context=1))
    assert texts(fresh) == ["system: rules", "system: more rules"]
    assert fresh.inherited == 0
    assert fresh.digest == filled([told("rules", "system"), told("more rules", "system")]).digest
    assert len(old.entries) == 4


def test_what_awaits_a_reply() -> None:
    assert not filled([]).awaits_reply
    assert not filled([told("rules", "system")]).awaits_reply
    assert filled([told("rules", "system"), told("a")]).awaits_reply
    assert not filled([told("a"), said("b")]).awaits_reply
    assert filled([said("b"), told("a")]).awaits_reply
