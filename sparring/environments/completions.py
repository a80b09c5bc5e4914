"""OpenAI's chat completions, as far as a seat can give them: what a request asks for, what its answer says.

What would change how replies are drawn is refused unless it asks for what is done anyway: a seat's replies are drawn as the run
says, and nothing is silently ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from sparring.environments.conversation import Message, Text, ToolSpec
from sparring.environments.plain import canonical
from sparring.environments.reply import Reply, ToolCall


class Refused(Exception):
    """A request that is not answered: what is wrong with it, and how it can be right."""

    def __init__(self, message: str, *, field: str = "", code: str = "", status: int = 400) -> None:
        super().__init__(message)
        self.field, self.code, self.status = field, code, status

    def body(self) -> bytes:
        """As OpenAI writes errors."""
        error = {"message": str(self), "type": "invalid_request_error", "param": self.field or None}
        return msgspec.json.encode({"error": error | {"code": self.code or None}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for. `model` is whatever the program calls it."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """What is not named here is refused."""


class _Part(_Strict):
    text: str
    type: Literal["text"]


class _Function(_Strict):
    name: str
    arguments: str


class _Call(_Strict):
    id: str
    function: _Function
    type: Literal["function"] = "function"
    index: int | None = None


class _Said(_Strict):
    """The fields that can only be null are what OpenAI's own client sends back of an answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _ToolFunction(_Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class _Tool(_Strict):
    function: _ToolFunction
    type: Literal["function"]


class _Body(_Strict):
    model: str
    messages: list[_Said]
    tools: list[_Tool] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: Any = None
    temperature: float | None = None
    seed: Any = None
    top_p: Any = None
    n: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    response_format: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    modalities: Any = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


_DONE_ANYWAY: dict[str, Any] = {
    "top_p": 1,
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "stream_options": {"include_usage": False},
}
"""What may be asked for, as it is done anyway. `user`, `metadata` and their like say nothing of a reply."""


def read_request(body: bytes, temperature: float | None) -> Asked:
    """What `body` asks for; `temperature` is that of the player, None where nobody knows it. Raises `Refused`."""
    try:
        asked = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(
            f"{error}: this seat answers chat completions of texts and function tools; leave it out"
        ) from error
    _check_draws(asked, temperature)
    limits = [limit for limit in (asked.max_tokens, asked.max_completion_tokens) if limit is not None]
    if any(limit < 1 for limit in limits):
        raise Refused(f"max_tokens={min(limits)!r}: must be at least 1", field="max_tokens")
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if not all(stop):
        raise Refused(f"stop={asked.stop!r}: must be texts that are not empty", field="stop")
    return Asked(
        model=asked.model,
        messages=tuple(_messages(asked.messages)),
        tools=tuple(_tools(asked.tools or [])),
        max_tokens=min(limits, default=None),
        stop=tuple(stop),
        stream=bool(asked.stream),
    )


def _check_draws(asked: _Body, temperature: float | None) -> None:
    given = asked.temperature
    if given is not None and temperature is not None and given != temperature:
        raise Refused(
            f"temperature={given!r}: this seat's replies are drawn at {temperature!r}, as the run says; leave it out, and set "
            "the policy's sampling.temperature",
            field="temperature",
        )
    if asked.seed is not None:
        raise Refused(f"seed={asked.seed!r}: draws follow the run's own seed; leave it out", field="seed")
    for name, value in _DONE_ANYWAY.items():
        wanted = getattr(asked, name)
        if wanted is not None and wanted != value:
            raise Refused(f"{name}={wanted!r}: this seat answers as {name}={value!r} does; leave it out", field=name)


def _messages(said: Sequence[_Said]) -> list[Message]:
    """Raises `Refused` where nothing is asked, or answers of tools are not in the order of the calls."""
    if not said or said[-1].role == "assistant":
        raise Refused(
            "messages must end with what the assistant is to reply to, from 'user', 'tool' or 'system'",
            field="messages",
        )
    pending: list[str] = []
    found: list[Message] = []
    for at, one in enumerate(said):
        if one.role == "tool":
            if not pending or one.tool_call_id != pending.pop(0):
                raise Refused(
                    f"messages[{at}].tool_call_id={one.tool_call_id!r}: answer the calls of the message before, in their order",
                    field="messages",
                )
        else:
            pending = [call.id for call in one.tool_calls or []] if one.role == "assistant" else []
        found.append(_message(one))
    return found


def _message(said: _Said) -> Message:
    calls = tuple(
        ToolCall(name=call.function.name, arguments=call.function.arguments) for call in said.tool_calls or []
    )
    if calls and said.role != "assistant":
        raise Refused(f"tool_calls of {said.role!r}: only the assistant calls tools", field="messages")
    return Message(role="system" if said.role == "developer" else said.role, parts=(Text(text=said.text),), calls=calls)


def _tools(tools: Sequence[_Tool]) -> list[ToolSpec]:
    return [
        ToolSpec(
            name=one.function.name,
            description=one.function.description or "",
            parameters=canonical(one.function.parameters or {"type": "object", "properties": {}}).decode(),
        )
        for one in tools
    ]


def completion(asked: Asked, reply: Reply, name: str) -> bytes:
    """The answer, called `name`."""
    choice = {"index": 0, "message": _reply(reply, name), "finish_reason": reply.stop, "logprobs": None}
    return msgspec.json.encode(_headed(asked, name, "chat.completion", choice))


def streamed(asked: Asked, reply: Reply, name: str) -> bytes:
    """The same as events of a stream: all of it at once, then the end."""
    whole = _reply(reply, name)
    if reply.tool_calls:
        whole["tool_calls"] = [{"index": at, **call} for at, call in enumerate(whole["tool_calls"])]
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": whole, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": reply.stop},
    ]
    events = [msgspec.json.encode(_headed(asked, name, "chat.completion.chunk", choice)) for choice in choices]
    return b"".join(b"data: " + event + b"\n\n" for event in (*events, b"[DONE]"))


def _headed(asked: Asked, name: str, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    """`created` is not told by a clock: an episode that is played again sends the same bytes."""
    return {"id": name, "object": kind, "created": 0, "model": asked.model, "choices": [choice]}


def _reply(reply: Reply, name: str) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": reply.text or (None if reply.tool_calls else "")}
    if reply.tool_calls:
        said["tool_calls"] = [
            {
                "id": f"{name}-{at}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for at, call in enumerate(reply.tool_calls)
        ]
    return said
