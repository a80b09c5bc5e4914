"""A model of inspect-ai as a player."""

from __future__ import annotations

import json
from collections.abc import Sequence
from sys import maxsize
from typing import Any

import msgspec

from sparring.agents import Action
from sparring.environments import Conversation, Message, Reply, Request, ToolCall, ToolSpec
from sparring.environments.reply import StopReason
from sparring.errors import BackendError, ContextFull, UnsupportedError
from sparring.learner import inspect_extra as inspect

_STOPS: dict[str, StopReason] = {"max_tokens": "length", "tool_calls": "tool_calls"}


class InspectAgent:
    """Plays one episode with a model of inspect-ai, which logs its replies. What the model said is told to it again as it came,
    with its reasoning and the ids of its calls: some providers insist on them. Its replies have no tokens, and how likely it is
    to give others (`Seat.choose`) is not known.

    max_tokens  of a reply, at most, where an `ask` names a number; where it names none, inspect's settings hold
    """

    def __init__(self, model: Any, max_tokens: int | None = None) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._said: dict[int, tuple[Reply, Any]] = {}  # by identity: equal replies are not the same
        self.last: Any = None
        """What the model gave last, with all that inspect knows of it; None before its first reply."""

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        """Waits for the model, as inspect does. Raises `ContextFull` where it says that the conversation does not fit, and what
        inspect raises."""
        asked, most = request.max_tokens, self._max_tokens
        config = inspect.GenerateConfig(
            max_tokens=asked if asked is None or most is None else min(asked, most),
            stop_seqs=list(request.stop) or None,
        )
        tools = [_shown(conversation, tool) for tool in conversation.tools]
        output = await self._model.generate(self.messages(conversation), tools=tools, config=config)
        if output.empty:
            raise BackendError(f"{self._model} gave no reply: {output.error}")
        if output.stop_reason == "model_length":
            raise ContextFull(
                f"seat {conversation.place.seat!r}: {self._model} says that the conversation does not fit"
            )
        self.last, said = output, output.message
        reply = Reply(
            text=said.text,
            reasoning=_reasoning(said.content),
            tool_calls=tuple(_called(call) for call in said.tool_calls or ()),
            stop=_STOPS.get(output.stop_reason, "stop"),
        )
        self._said[id(reply)] = (reply, said)
        return Action(reply=reply)

    def context_left(self, conversation: Conversation) -> int:
        """Not known here; the model refuses what does not fit."""
        return maxsize

    def messages(self, conversation: Conversation) -> list[Any]:
        """The conversation as inspect has it."""
        found: list[Any] = []
        calls: list[Any] = []
        for number, entry in enumerate(conversation.entries):
            if isinstance(entry, Message) and entry.role == "tool":
                call = calls.pop(0)
                found.append(inspect.ChatMessageTool(content=entry.text, tool_call_id=call.id, function=call.function))
            elif isinstance(entry, Message) and entry.role != "assistant":
                kind = inspect.ChatMessageSystem if entry.role == "system" else inspect.ChatMessageUser
                found.append(kind(content=entry.text))
            else:
                found.append(self._assistant(entry, number) if isinstance(entry, Message) else self._own(entry.reply))
                calls = list(found[-1].tool_calls or ())
        return found

    def _own(self, reply: Reply) -> Any:
        return self._said[id(reply)][1]

    @staticmethod
    def _assistant(message: Message, number: int) -> Any:
        """What others said in the model's name, as a program's examples do."""
        calls = [
            inspect.ToolCall(id=f"call_{number}_{place}", function=call.name, arguments=_arguments(call))
            for place, call in enumerate(message.calls)
        ]
        return inspect.ChatMessageAssistant(content=message.text, tool_calls=calls or None)


def _reasoning(content: str | Sequence[Any]) -> str:
    parts = () if isinstance(content, str) else content
    return "\n".join(part.reasoning for part in parts if isinstance(part, inspect.ContentReasoning))


def _called(call: Any) -> ToolCall:
    """A call whose arguments inspect could not read has what was wrong with them in their place."""
    return ToolCall(name=call.function, arguments=call.parse_error or json.dumps(call.arguments, ensure_ascii=False))


def _arguments(call: ToolCall) -> dict[str, Any]:
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise UnsupportedError(
            f"a program told the model of its call of {call.name!r} with {call.arguments!r}, which is no JSON object "
            f"({error}); inspect-ai cannot say it: leave it out"
        ) from error


def _shown(conversation: Conversation, tool: ToolSpec) -> Any:
    if '"$ref"' in tool.parameters:
        raise UnsupportedError(
            f"seat {conversation.place.seat!r} has the tool {tool.name!r}, whose parameters have types of their own; "
            f"inspect-ai has no words for these: give it plain parameters"
        )
    parameters = inspect.ToolParams.model_validate_json(tool.parameters)
    return inspect.ToolInfo(name=tool.name, description=tool.description, parameters=parameters)
