"""A policy as a player: renders what is new, samples, and keeps exactly what was sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from sparring.agents.action import Action, Sample
from sparring.arrays import I32
from sparring.backend.renderer import ParsedCall, RenderedMessage, RenderedTool, Renderer, reply_tokens
from sparring.backend.sampling import SamplingClient, SamplingParams
from sparring.environments import Conversation, Message, Reply, Request, ToolCall, ToolSpec, Turn
from sparring.errors import ContextFull, SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a policy's replies are drawn. `top_p` and `top_k` are refused: the trainer must be able to recompute the
    distribution."""

    temperature: float = 1.0
    max_tokens: int = 512
    top_p: float = 1.0
    top_k: int = -1

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and isfinite(self.temperature) and self.temperature >= 0):
            raise SettingError(
                f"sampling.temperature={self.temperature!r}: must be a finite number, 0 (greedy) or above"
            )
        for name, off in (("top_p", 1.0), ("top_k", -1)):
            if getattr(self, name) != off:
                raise SettingError(
                    f"sampling.{name}={getattr(self, name)!r}: what is left out when a token is drawn has no probability that "
                    f"the trainer could recompute; leave it at {off}, and lower the temperature for less chance"
                )
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise SettingError(f"sampling.max_tokens={self.max_tokens!r}: must be a whole number, at least 1")


class PolicyAgent:
    """Plays with one sampling client's weights. Stateless: the tokens so far are those of the conversation's own
    turns."""

    def __init__(self, client: SamplingClient, renderer: Renderer, sampling: Sampling, context_length: int) -> None:
        self._client = client
        self._renderer = renderer
        self._sampling = sampling
        self._context_length = context_length

    @property
    def temperature(self) -> float:
        return self._sampling.temperature

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        past, prompt = rendered(conversation, self._renderer)
        limit = min(self._sampling.max_tokens, request.max_tokens or self._sampling.max_tokens)
        left = self._context_length - len(past) - len(prompt)
        if left < limit:
            used = len(past) + len(prompt)
            raise ContextFull(
                f"seat {conversation.place.seat!r}: {used} tokens and a reply of up to {limit} exceed the context of "
                f"{self._context_length}: lower max_tokens (of the ask or the policy's sampling), or call new_context()"
            )
        params = SamplingParams(
            max_tokens=limit,
            temperature=self._sampling.temperature,
            stop=request.stop,
            stop_ids=self._renderer.stop_ids,
            seed=seed,
        )
        context = np.concatenate([past, prompt])
        (drawn,) = await self._client.sample(context, params)
        parsed = self._renderer.parse(drawn.tokens, tools=bool(conversation.tools))
        whole = not _spoke_itself(conversation)
        sample = Sample(
            prompt=context if whole else prompt,
            whole=whole,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            versions=drawn.versions,
            temperature=self._sampling.temperature,
        )
        calls = tuple(ToolCall(name=call.name, arguments=call.arguments) for call in parsed.calls)
        stop = "tool_calls" if calls and drawn.stop == "stop" else drawn.stop
        reply = Reply(text=parsed.text, reasoning=parsed.reasoning, tool_calls=calls, stop=stop)
        return Action(reply=reply, sample=sample)

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        """Each option is a whole turn, up to the token that ends it."""
        context = np.concatenate(rendered(conversation, self._renderer))
        replies = [reply_tokens(self._renderer, option) for option in options]
        logprobs: list[float] = (await self._client.options(context, replies)).tolist()
        return logprobs

    def context_left(self, conversation: Conversation) -> int:
        past, prompt = rendered(conversation, self._renderer)
        return self._context_length - len(past) - len(prompt)


def rendered(conversation: Conversation, renderer: Renderer) -> tuple[I32, I32]:
    """The context's tokens so far, as rendered and sampled at the time, and those of the messages since the last turn.

    Neighbouring messages of one role become one message, joined by a newline: many templates ask for alternation.
    Without new messages there are no new tokens.
    """
    pieces: list[I32] = []
    fresh: list[Message] = []
    last: I32 | None = None
    for entry in conversation.entries:
        if isinstance(entry, Message):
            fresh.append(entry)
            continue
        sample = _sample(entry)
        if sample.whole:
            pieces = []
        last = sample.tokens
        pieces += [sample.prompt, last]
        fresh = []
    past = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    if not fresh:
        return past, np.zeros(0, np.int32)
    messages = merged(fresh, renderer)
    if last is not None:
        return past, renderer.extend(messages, last)
    return past, renderer.start(messages, shown_tools(conversation.tools))


def shown_tools(tools: Sequence[ToolSpec]) -> list[RenderedTool]:
    """As they are rendered."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters),
            },
        }
        for tool in tools
    ]


def _sample(turn: Turn) -> Sample:
    assert isinstance(turn.record, Sample), f"turn {turn.number} was made by another kind of player: {turn.record!r}"
    return turn.record


def _spoke_itself(conversation: Conversation) -> bool:
    return any(isinstance(entry, Turn) for entry in conversation.entries[conversation.inherited :])


def said_text(text: str, calls: Sequence[ToolCall], renderer: Renderer) -> str:
    """What an assistant says that says `text` and makes the calls."""
    made = [ParsedCall(name=call.name, arguments=call.arguments) for call in calls]
    return renderer.calling(text, made) if made else text


def merged(messages: Sequence[Message], renderer: Renderer) -> Sequence[RenderedMessage]:
    """As they are rendered: neighbours of one role as one message, but for the answers of tools."""
    found: list[dict[str, str]] = []
    for message in messages:
        text = said_text(message.text, message.calls, renderer)
        if found and found[-1]["role"] == message.role != "tool":
            found[-1]["content"] += f"\n{text}"
        else:
            found.append({"role": message.role, "content": text})
    return found
