"""How tools, calls and answers are written where a template does not say it, and how calls are read.

The form is that of Hermes and Qwen 2.5: tools are JSON in the system message between <tools> tags, a call is a JSON object with
`name` and `arguments` between <tool_call> tags, an answer stands in a user's message between <tool_response> tags. SmolLM2 was
taught the same, with a JSON list of calls between the tags, which is read too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparring.backend.renderer import ParsedCall, RenderedMessage, RenderedTool

_INTRODUCTION = """You may call functions. Each is described here as JSON:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between tags, as in
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """A call is a JSON object between `opening` and `closing`; without them a reply that is one object is one call."""

    opening: str = "<tool_call>"
    closing: str = "</tool_call>"
    name: str = "name"
    arguments: str = "arguments"

    def read(self, text: str) -> tuple[str, tuple[ParsedCall, ...]]:
        """The text without its calls, and the calls. A call that is not closed goes to the end of the text."""
        if not self.opening:
            calls = tuple(self._calls(text))
            return ("", calls) if calls and all(call.name for call in calls) else (text, ())
        before, *pieces = text.split(self.opening)
        if not pieces:
            return text, ()
        found: list[ParsedCall] = []
        said = [before]
        for piece in pieces:
            inside, closed, after = piece.partition(self.closing) if self.closing else (piece, "", "")
            found += self._calls(inside)
            said += [after] if closed else []
        return "".join(said).strip(), tuple(found)

    def write(self, text: str, calls: Sequence[ParsedCall]) -> str:
        """A text that says `text` and makes the calls."""
        written = [self._written(call) for call in calls]
        return "\n".join([text, *written] if text else written)

    def _written(self, call: ParsedCall) -> str:
        content = call.arguments
        if call.name:
            content = f'{{"{self.name}": {json.dumps(call.name)}, "{self.arguments}": {call.arguments}}}'
        return "\n".join(part for part in (self.opening, content, self.closing) if part)

    def _calls(self, text: str) -> list[ParsedCall]:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return [_no_call(text)]
        made = [self._call(one) for one in (content if isinstance(content, list) else [content])]
        return [_no_call(text) if call is None else call for call in made]

    def _call(self, content: object) -> ParsedCall | None:
        if not isinstance(content, dict):
            return None
        name, arguments = content.get(self.name), content.get(self.arguments, {})
        if not isinstance(name, str) or not name.isascii() or not isinstance(arguments, dict):
            return None
        return ParsedCall(name=name, arguments=json.dumps(arguments))  # ASCII: half a surrogate pair stays an escape


def _no_call(text: str) -> ParsedCall:
    return ParsedCall(name="", arguments=text.strip())


def introduced(tools: Sequence[RenderedTool]) -> str:
    """What a system message says of the tools."""
    return _INTRODUCTION.format(tools="\n".join(described(tool) for tool in tools))


def described(tool: RenderedTool) -> str:
    return json.dumps(tool, ensure_ascii=False)


def with_tools(
    messages: Sequence[RenderedMessage], tools: Sequence[RenderedTool], role: str = "system"
) -> list[RenderedMessage]:
    """The messages with the tools at the end of the first one, which is given where it is not of that role."""
    if not tools:
        return list(messages)
    first = messages[0]["content"] if messages and messages[0]["role"] == role else ""
    rest = messages[1:] if first else messages
    content = "\n\n".join(part for part in (first, introduced(tools)) if part)
    return [{"role": role, "content": content}, *rest]


def answers_as_users(messages: Sequence[RenderedMessage]) -> list[RenderedMessage]:
    """The messages with a tool's answers as a user's, neighbours of these as one."""
    found: list[dict[str, str]] = []
    joins = False
    for message in messages:
        role, content = message["role"], message["content"]
        is_answer = role == "tool"
        if is_answer:
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if found and found[-1]["role"] == role == "user" and (joins or is_answer):
            found[-1]["content"] += f"\n{content}"
            joins = True
        else:
            found.append({"role": role, "content": content})
            joins = is_answer
    return [dict[str, Any](message) for message in found]
