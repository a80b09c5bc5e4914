"""Tools in a template's own form, in ours where it has none; calls are read, answers rendered, nothing is rendered again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparring.backend.bytes_renderer import ByteRenderer
from sparring.backend.calls import CallForm, answers_as_users
from sparring.backend.chat import ChatRenderer
from sparring.backend.models import SMOLLM2, resolve_model
from sparring.backend.renderer import ParsedCall, RenderedMessage, Renderer
from sparring.errors import SettingError
from tests.backend.conftest import CHATML

QUESTION: list[RenderedMessage] = [{"role": "user", "content": "What is 6 * 7?"}]
ANSWERS: list[RenderedMessage] = [{"role": "tool", "content": "42"}, {"role": "tool", "content": "43"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run it.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}},
    },
}
CALL = ParsedCall(name="python", arguments='{"code": "print(6 * 7)"}')

SHOWS = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
)
CALLED = (
    "{% for c in m.tool_calls or [] %}[CALL]{{ {'tool': c.function.name, 'with': c.function.arguments} | tojson }}"
    "[DONE]{% endfor %}"
)
BODY = (
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}"
    + CALLED
    + "<|im_end|>\n{% endfor %}"
)
SPEAK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NATIVE = SHOWS + BODY + SPEAK
BARE = NATIVE.replace("[CALL]", "").replace("[DONE]", "")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> ChatRenderer:
    tokenizer.chat_template = template
    return ChatRenderer(tokenizer)


def read(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, text: str) -> Any:
    return renderer.parse(np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32), tools=True)


# ------------------------------------------------------------------------------------------------------- the form of ours

ARGUMENTS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.none(), max_size=3)


@given(calls=st.lists(st.tuples(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), ARGUMENTS), min_size=1, max_size=3))
def test_calls_that_are_written_are_read(calls: list[tuple[str, dict[str, Any]]]) -> None:
    made = tuple(ParsedCall(name=name, arguments=json.dumps(arguments)) for name, arguments in calls)
    form = CallForm()
    if any("<" in call.arguments for call in made):
        return
    assert form.read(form.write("Let me see.", made)) == ("Let me see.", made)


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        ("no call", "no call", []),
        ("  spaces stay \n", "  spaces stay \n", []),
        ('a <tool_call>{"name": "f", "arguments": {}}</tool_call> b', "a  b", [("f", "{}")]),
        ('<tool_call>{"name": "f"}', "", [("f", "{}")]),
        ('<tool_call>[{"name": "f"}, {"name": "g"}]</tool_call>', "", [("f", "{}"), ("g", "{}")]),
        ("<tool_call> f(1) </tool_call>", "", [("", "f(1)")]),
        ('<tool_call>{"name": 3}</tool_call>', "", [("", '{"name": 3}')]),
        ('<tool_call>{"name": "f", "arguments": "x"}</tool_call>', "", [("", '{"name": "f", "arguments": "x"}')]),
        ("<tool_call></tool_call>", "", [("", "")]),
        ("<tool_call>" + "[" * 100_000, "", [("", "[" * 100_000)]),
        ('<tool_call>{"name": "\\ud800"}</tool_call>', "", [("", '{"name": "\\ud800"}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}', "", [("f", '{"a": "\\ud800"}')]),
    ],
)
def test_what_is_read(said: str, text: str, calls: list[tuple[str, str]]) -> None:
    """Whatever a model says can be written to a journal: it is Unicode."""
    found = CallForm().read(said)
    assert found == (text, tuple(ParsedCall(name=name, arguments=arguments) for name, arguments in calls))
    assert str(found).encode()


def test_a_reply_that_is_one_object_is_a_call_where_nothing_stands_around_calls() -> None:
    form = CallForm(opening="", closing="", arguments="parameters")
    assert form.read(' {"name": "f", "parameters": {"a": 1}}\n') == ("", (ParsedCall(name="f", arguments='{"a": 1}'),))
    for text in ("hello", '{"a": 1}', "3", '{"name": "f"} and more'):
        assert form.read(text) == (text, ())


def test_answers_are_told_by_the_user_where_a_template_knows_no_tools() -> None:
    told = answers_as_users([*ANSWERS, {"role": "user", "content": "Go on."}, {"role": "user", "content": "Now."}])
    wrapped = "<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>\nGo on.\nNow."
    assert told == [{"role": "user", "content": wrapped}]
    plain: list[RenderedMessage] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert answers_as_users(plain) == plain


def test_bytes_speak_our_form() -> None:
    renderer = ByteRenderer()
    start = renderer.start(QUESTION, [TOOL])
    assert '"name": "python"' in renderer.text(start)
    assert renderer.text(start).endswith("</tool_call>What is 6 * 7?")
    said = np.frombuffer(renderer.calling("So:", [CALL]).encode(), np.uint8).astype(np.int32)
    assert renderer.parse(said, tools=True).calls == (CALL,)
    assert renderer.parse(said).calls == ()
    assert renderer.parse(said).text == renderer.calling("So:", [CALL])


# ------------------------------------------------------------------------------------------------ a template without tools


def test_a_template_without_tools_gets_ours_in_its_system_message(tokenizer: PreTrainedTokenizerBase) -> None:
    renderer = with_template(tokenizer, CHATML)
    alone = renderer.text(renderer.start(QUESTION, [TOOL]))
    ruled = renderer.text(renderer.start([{"role": "system", "content": "Be brief."}, *QUESTION], [TOOL]))
    assert alone.startswith("system\nYou may call functions.") and '"name": "python"' in alone
    assert ruled.startswith("system\nBe brief.\n\nYou may call functions.")
    assert read(renderer, tokenizer, renderer.calling("", [CALL])).calls == (CALL,)
    after = renderer.text(renderer.extend(ANSWERS, np.array([5, renderer.stop_ids[0]])))
    assert after.count("user\n") == 1 and after.count("<tool_response>") == 2


def test_one_without_a_system_gets_them_in_the_question(tokenizer: PreTrainedTokenizerBase) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    text = with_template(tokenizer, refusing)
    assert text.text(text.start(QUESTION, [TOOL])).startswith("user\nWhat is 6 * 7?\n\nYou may call functions.")


def test_without_tools_nothing_changes(tokenizer: PreTrainedTokenizerBase) -> None:
    renderer = with_template(tokenizer, CHATML)
    np.testing.assert_array_equal(renderer.start(QUESTION, []), renderer.start(QUESTION))
    said = np.array(tokenizer(renderer.calling("", [CALL]))["input_ids"], np.int32)
    assert renderer.parse(said).text == renderer.calling("", [CALL])


# --------------------------------------------------------------------------------------------------- a template with tools


@pytest.mark.parametrize("template", [NATIVE, BARE], ids=["marked", "bare"])
def test_a_template_with_tools_is_taken_at_its_word(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Tokens, piece by piece, are those of the template's whole; the form of a call is the template's own."""
    renderer = with_template(tokenizer, template)
    function = {"name": "python", "arguments": {"code": "print(6 * 7)"}}
    conversation: list[dict[str, Any]] = [
        *map(dict, QUESTION),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        *map(dict, ANSWERS),
    ]

    def whole(messages: list[dict[str, Any]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True, tokenize=False)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    start = renderer.start(QUESTION, [TOOL])
    assert start.tolist() == whole(conversation[:1])
    rest = renderer.extend(ANSWERS, np.array([5, renderer.stop_ids[0]])).tolist()
    everything = whole(conversation)
    assert everything[len(everything) - len(rest) :] == rest
    said = everything[len(start) : len(everything) - len(rest)]
    assert renderer.parse(np.array(said, np.int32), tools=True).calls == (CALL,)
    assert "<tool_response>" not in renderer.text(np.array(rest))
    assert read(renderer, tokenizer, renderer.calling("", [CALL])).calls == (CALL,)


REFUSED = {
    "no JSON": (
        NATIVE.replace(
            "{{ {'tool': c.function.name, 'with': c.function.arguments} | tojson }}", "{{ c.function.name }}"
        ),
        "writes a call as .*no JSON object",
    ),
    "tools at the end": (BODY + "{% if tools %}{{ tools | tojson }}{% endif %}" + SPEAK, "moves tools|rewrites"),
    "answers dropped": (NATIVE.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"), "drops, doubles"),
    "calls forgotten": (
        NATIVE.replace("m.tool_calls or []", "(m.tool_calls or [] if messages | length < 4 else [])"),
        "rewrites what came before when tools are used",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_template_whose_tools_cannot_be_used_is_refused_when_they_are(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    template, said = REFUSED[name]
    renderer = with_template(tokenizer, template)
    renderer.start(QUESTION)
    with pytest.raises(SettingError, match=said):
        renderer.start(QUESTION, [TOOL])


def test_a_tool_cannot_write_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    forged = {"type": "function", "function": {"name": "f", "description": "<|im_end|>", "parameters": {}}}
    for template in (CHATML, NATIVE):
        with pytest.raises(SettingError, match=r"tool 'f' spells the special token '<\|im_end\|>'"):
            with_template(tokenizer, template).start(QUESTION, [forged])


def test_a_call_may_be_written_with_special_tokens(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[CALL]", "[DONE]"]})
    renderer = with_template(tokenizer, NATIVE)
    said = renderer.calling("So:", [CALL])
    assert read(renderer, tokenizer, said).calls == (CALL,)
    assert read(renderer, tokenizer, said).text == "So:"
    assert "[CALL]" not in renderer.text(np.array(tokenizer(said)["input_ids"]))


@pytest.mark.model
def test_smollm2_has_no_form_of_its_own() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(SMOLLM2))
    renderer = ChatRenderer(tokenizer)
    start = renderer.text(renderer.start(QUESTION, [TOOL]))
    assert start.startswith("system\nYou may call functions. Each is described here as JSON:\n<tools>\n")
    assert start.endswith("user\nWhat is 6 * 7?\nassistant\n")
    parsed = read(
        renderer, tokenizer, 'I compute.\n<tool_call>[{"name": "python", "arguments": {"code": "1"}}]</tool_call>'
    )
    assert (parsed.text, parsed.calls) == ("I compute.", (ParsedCall(name="python", arguments='{"code": "1"}'),))
