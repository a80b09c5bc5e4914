"""What a chat template makes of tools: its own form, found by rendering a call that nobody makes, or none.

A template that knows tools must show them at the start of a context and never move them, and must write a call as a JSON
object; any other is refused when tools are used. A template that does not know them gets the form of `calls`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparring.backend.calls import CallForm, answers_as_users, described, with_tools
from sparring.backend.codec import Codec
from sparring.backend.renderer import ParsedCall, RenderedMessage, RenderedTool
from sparring.backend.template import Template
from sparring.errors import SettingError

_REMEDY = (
    "put a template that shows tools at its start and writes calls as JSON, or none of tools, into the model's folder as "
    "chat_template.jinja"
)
_NAME, _KEY, _VALUE = "sparring_probe", "sparring_key", "sparring value"
_PROBE: RenderedTool = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Tries it.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}
_ASKED = {"role": "user", "content": "Q"}
_CALL = {"type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
_CALLED: Mapping[str, Any] = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_ANSWERED: Sequence[RenderedMessage] = ({"role": "tool", "content": "first"}, {"role": "tool", "content": "second"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolForm:
    """How tools are used with one template. `native`: as it says itself; `system`: it takes messages of the system."""

    calls: CallForm
    native: bool
    system: bool

    def opened(
        self, messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool]
    ) -> tuple[Sequence[RenderedMessage], Sequence[RenderedTool]]:
        """The first messages of a context and the tools, as the template is to render them."""
        if self.native:
            return messages, tools
        return with_tools(self.told(messages), tools, "system" if self.system else "user"), ()

    def told(self, messages: Sequence[RenderedMessage]) -> Sequence[RenderedMessage]:
        """Further messages."""
        return messages if self.native else answers_as_users(messages)


def tool_form(template: Template, codec: Codec) -> ToolForm:
    """The template's form. Raises `SettingError` for one that cannot be used."""
    system = _accepted(template, [{"role": "system", "content": "S"}, _ASKED])
    if _NAME not in template.text([_ASKED], [_PROBE]):
        return ToolForm(calls=CallForm(), native=False, system=system)
    form = ToolForm(calls=_found(template), native=True, system=system)
    _prove(form, template, codec)
    return form


def check_tools(tools: Sequence[RenderedTool], codec: Codec) -> None:
    """Raise `SettingError` where a template would write a special token for what a tool says."""
    for tool in tools:
        special = codec.first_special(described(tool))
        if special is not None:
            raise SettingError(f"tool {tool['function']['name']!r} spells the special token {special[0]!r}: reword it")


def _accepted(template: Template, messages: Sequence[Mapping[str, Any]]) -> bool:
    try:
        template.text(messages)
    except SettingError:
        return False
    return True


def _found(template: Template) -> CallForm:
    """What stands around the call in a turn, and what its parts are called."""
    before = template.text([_ASKED], [_PROBE])
    whole = template.text([_ASKED, _CALLED, _ASKED], [_PROBE])
    said = template.text([_ASKED, {"role": "assistant", "content": "SparringSaid"}, _ASKED], [_PROBE])
    if not (whole.startswith(before) and said.startswith(before)):
        raise SettingError(f"the chat template moves tools when a conversation goes on: {_REMEDY}")
    behind = said[len(before) :].partition("SparringSaid")[2]
    turn = whole[len(before) :].removesuffix(behind)
    for at in (place for place, letter in enumerate(turn) if letter == "{"):
        try:
            call, length = json.JSONDecoder().raw_decode(turn[at:])
        except ValueError:
            continue
        keys = {json.dumps(value): key for key, value in call.items()}
        name, arguments = keys.get(json.dumps(_NAME)), keys.get(json.dumps({_KEY: _VALUE}))
        if name is not None and arguments is not None:
            opening, closing = turn[:at].strip(), turn[at + length :].strip()
            return CallForm(opening=opening, closing=closing, name=name, arguments=arguments)
    raise SettingError(
        f"the chat template writes a call as {turn!r}, where no JSON object is found that is one: {_REMEDY}"
    )


def _prove(form: ToolForm, template: Template, codec: Codec) -> None:
    """A conversation with calls, rendered as a whole and piece by piece."""
    later: list[Mapping[str, Any]] = [_ASKED, _CALLED, *_ANSWERED]
    whole = template.text([*later, {"role": "assistant", "content": "A"}, _ASKED], [_PROBE])
    for count in (1, 2, len(later)):
        if not whole.startswith(template.text(later[:count], [_PROBE], speak=count != 2)):
            raise SettingError(f"the chat template rewrites what came before when tools are used: {_REMEDY}")
    start = codec.encode(template.parts([_ASKED], [_PROBE]))
    said = {"role": "assistant", "content": "A"}
    rest = codec.encode(template.parts([_ASKED, said, *_ANSWERED])[4:])
    tokens = template.tokens(later, [_PROBE])
    pieces = (tokens[: len(start)], tokens[len(tokens) - len(rest) :])
    if not (np.array_equal(pieces[0], start) and np.array_equal(pieces[1], rest)):
        raise SettingError(f"the chat template cannot be tokenized piece by piece when tools are used: {_REMEDY}")
    written = form.calls.write("", [ParsedCall(name=_NAME, arguments=json.dumps({_KEY: _VALUE}))])
    assert form.calls.read(written)[1][0].name == _NAME, written
