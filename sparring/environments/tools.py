"""Tools: what a model may call, and its calls.

A wrong call never raises: the model is told what was wrong with it. What the tool itself does wrong is a fault of the episode
(`EffectError`), as with any effect.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparring.environments.conversation import ToolSpec
from sparring.environments.plain import canonical
from sparring.environments.reply import Reply, ToolCall
from sparring.errors import SettingError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """Something that a model may call.

    name         letters, digits, - and _
    description  what it does, for the model
    parameters   the JSON schema of its arguments, an object
    answer       arguments (JSON text, as the model wrote it) -> what the model is told; journals what it does outside
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    answer: Callable[[str], Awaitable[str]] = field(repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SettingError(f"Tool(name={self.name!r}): must be 1 to 64 letters, digits, - and _")
        if self.parameters.get("type") != "object":
            raise SettingError(
                f"Tool({self.name!r}, parameters={self.parameters!r}): must be a JSON schema of an object"
            )

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(
            name=self.name, description=self.description, parameters=canonical(dict(self.parameters)).decode()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedCall(ToolCall):
    """A call in a reply of a seat that has tools."""

    tools: tuple[Tool, ...] = field(repr=False, compare=False)

    async def run(self) -> str:
        """The tool's answer, or what was wrong with the call. Raises `EffectError` where the tool itself failed."""
        names = ", ".join(tool.name for tool in self.tools)
        if not self.name:
            return (
                f"This is no call: {self.arguments!r}. A call is a JSON object with the name of a tool ({names}) and its "
                "arguments."
            )
        for offered in self.tools:
            if offered.name == self.name:
                return await offered.answer(self.arguments)
        return f"There is no tool {self.name!r}: there is {names}."


def offered(reply: Reply, tools: tuple[Tool, ...]) -> Reply:
    """The reply, with calls that can be run."""
    if not reply.tool_calls:
        return reply
    calls = tuple(OfferedCall(name=call.name, arguments=call.arguments, tools=tools) for call in reply.tool_calls)
    return Reply(text=reply.text, reasoning=reply.reasoning, tool_calls=calls, stop=reply.stop)


def checked_tools(what: str, had: Sequence[Tool], more: Sequence[object]) -> tuple[Tool, ...]:
    """All of them. Raises `SettingError` for what is no tool, and for a second one of a name."""
    tools = list(had)
    for one in more:
        if not isinstance(one, Tool):
            raise SettingError(f"{what}.tools({one!r}): must be a Tool; decorate an async function with @tool")
        if any(one.name == other.name for other in tools):
            raise SettingError(f"{what}.tools({one.name!r}): it has a tool of that name already")
        tools.append(one)
    return tuple(tools)
