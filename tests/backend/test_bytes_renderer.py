"""The bytes renderer: what goes in comes out, and nothing that was rendered or sampled is rendered again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.arrays import I32
from sparring.backend.bytes_renderer import END, ROLES, VOCABULARY, ByteRenderer
from sparring.backend.renderer import Renderer
from sparring.errors import SettingError

ROLE = st.sampled_from(sorted(ROLES))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = st.lists(st.builds(lambda role, content: {"role": role, "content": content}, ROLE, TEXT), min_size=1)
TURN = st.lists(st.integers(0, VOCABULARY - 1), max_size=8).map(lambda ids: np.array(ids, np.int32))


def messages_in(tokens: I32) -> list[dict[str, str]]:
    """Read a rendered context back, by the format alone."""
    names = {token: role for role, token in ROLES.items()}
    found, start = [], 0
    for at in np.flatnonzero(tokens == END):
        content = tokens[start + 1 : at].astype(np.uint8).tobytes().decode()
        found.append({"role": names[int(tokens[start])], "content": content})
        start = int(at) + 1
    return found


@given(messages=MESSAGES)
def test_messages_can_be_read_back(messages: list[dict[str, str]]) -> None:
    renderer: Renderer = ByteRenderer()
    tokens = renderer.start(messages)
    assert tokens.dtype == np.int32
    assert messages_in(tokens[:-1]) == messages
    assert tokens[-1] == ROLES["assistant"]
    np.testing.assert_array_equal(renderer.prompt(messages), tokens)


@given(first=MESSAGES, second=MESSAGES, reply=TEXT)
def test_a_longer_conversation_starts_with_the_shorter(
    first: list[dict[str, str]], second: list[dict[str, str]], reply: str
) -> None:
    renderer = ByteRenderer()
    said = np.frombuffer(reply.encode(), np.uint8).astype(np.int32)
    whole = renderer.start([*first, {"role": "assistant", "content": reply}, *second])
    for turn in (said, np.append(said, np.int32(END))):
        pieces = [renderer.start(first), turn, renderer.extend(second, turn)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert renderer.parse(turn).text == reply
        assert renderer.parse(turn).reasoning == ""


@given(turn=TURN)
def test_any_sampled_turn_is_closed_exactly_once(turn: I32) -> None:
    renderer = ByteRenderer()
    rest = renderer.extend([], turn)
    closed = len(turn) > 0 and turn[-1] == END
    assert rest.tolist() == ([ROLES["assistant"]] if closed else [END, ROLES["assistant"]])
    assert isinstance(renderer.parse(turn).text, str)


def test_text_replaces_what_is_no_utf8_and_leaves_specials_out() -> None:
    assert ByteRenderer().text([END, 0xC3, ord("a"), ROLES["user"]]) == "\ufffda"
    assert ByteRenderer().text([0xC3, 0xA4, END]) == "\u00e4"


def test_what_it_is() -> None:
    renderer = ByteRenderer()
    assert renderer.stop_ids == (END,)
    assert renderer.fingerprint == ByteRenderer().fingerprint
    assert len(renderer.fingerprint) == 64


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "judge", "content": "x"}, "'judge'"),
        ({"role": "user", "content": "x", "name": "y"}, "'name'"),
        ({"role": "user"}, "'content'"),
        ({"role": "user", "content": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_message_is_refused(message: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ByteRenderer().start([message])


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(SettingError, match="at least one"):
        ByteRenderer().start([])
