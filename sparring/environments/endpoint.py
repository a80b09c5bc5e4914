"""A seat behind an OpenAI-compatible address: a program that knows nothing of sparring is played with, and trained.

A request whose messages extend a conversation that was had here continues it, token for token. Any other starts a context of
its own, and so does one that comes while the conversation it extends is being replied to; what such a request says in the
assistant's name is something the player is shown, not something it did.

Contexts are numbered by what began them, not by when: requests that are made at once arrive in any order, and an episode that
is played again must find each of its replies. Their turns count from that number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256

import msgspec

from sparring.environments.completions import Asked, Refused, completion, read_request, streamed
from sparring.environments.conversation import Conversation, Message, Place, Text, Turn
from sparring.environments.reply import Reply
from sparring.environments.running import Request, Running
from sparring.environments.serving import HttpAnswer, HttpRequest, serving
from sparring.errors import ContextFull

_APART = 1 << 16
"""How far apart the numbers of contexts are: so many turns may one have."""


@dataclass(slots=True, kw_only=True)
class _Context:
    """A conversation with a program, and what the program was told of each turn. It is `busy` while a reply is awaited."""

    conversation: Conversation
    told: list[Reply] = field(default_factory=list[Reply])
    attempts: int = 0
    busy: bool = False

    def continued_by(self, asked: Asked) -> bool:
        entries = self.conversation.entries
        told = iter(self.told)
        said = [entry if isinstance(entry, Message) else _as_message(next(told)) for entry in entries]
        more = len(asked.messages) > len(entries) or isinstance(entries[-1], Message)
        return (
            not self.busy
            and more
            and len(entries) <= len(asked.messages)
            and tuple(self.conversation.tools) == asked.tools
            and said == list(asked.messages[: len(entries)])
        )


def _as_message(reply: Reply) -> Message:
    """What a program sends back of it."""
    return Message(role="assistant", parts=(Text(text=reply.text),), calls=reply.tool_calls)


def _without_stop(reply: Reply, stop: Sequence[str]) -> Reply:
    """As OpenAI answers: the text that ends the reply is left out."""
    found = [text for text in stop if reply.text.endswith(text)]
    return replace(reply, text=reply.text.removesuffix(max(found, key=len))) if found else reply


@dataclass(slots=True, kw_only=True)
class Programs:
    """The conversations that programs have had with one seat (or fork), `seat` and `fork` by name."""

    running: Running
    seat: str
    fork: str
    _contexts: dict[int, _Context] = field(default_factory=dict[int, _Context])

    @property
    def conversations(self) -> Sequence[Conversation]:
        """Those had so far, by number."""
        return [self._contexts[number].conversation for number in sorted(self._contexts)]

    @property
    def spoke(self) -> bool:
        return any(context.told for context in self._contexts.values())

    @asynccontextmanager
    async def address(self) -> AsyncIterator[str]:
        """Where programs may ask, for as long as this is open."""
        async with serving(self._answer) as port:
            yield f"http://127.0.0.1:{port}/v1"

    async def _answer(self, request: HttpRequest) -> HttpAnswer:
        try:
            if (request.method, request.path) == ("POST", "/v1/chat/completions"):
                return await self._completion(request.body)
            if (request.method, request.path) == ("GET", "/v1/models"):
                models = [{"id": self.seat, "object": "model", "created": 0, "owned_by": "sparring"}]
                return HttpAnswer(status=200, body=msgspec.json.encode({"object": "list", "data": models}))
            raise Refused(
                f"{request.method} {request.path}: this seat answers POST /v1/chat/completions and GET /v1/models alone",
                status=404,
            )
        except Refused as refused:
            return HttpAnswer(status=refused.status, body=refused.body())

    async def _completion(self, body: bytes) -> HttpAnswer:
        asked = read_request(body, self.running.temperature(self.seat))
        number, reply = await self._replied(asked)
        name = f"{self.seat}-{self.fork or 0}-{number}"
        if asked.stream:
            return HttpAnswer(status=200, body=streamed(asked, reply, name), kind="text/event-stream")
        return HttpAnswer(status=200, body=completion(asked, reply, name))

    async def _replied(self, asked: Asked) -> tuple[int, Reply]:
        """The number of the turn, and what the program is told of the reply. Raises `Refused` where it cannot fit."""
        context = self._context(asked)
        conversation = context.conversation
        for message in asked.messages[len(conversation.entries) :]:
            conversation.append(message)
        number = conversation.place.context + len(context.told)
        request = Request(turn=number, max_tokens=asked.max_tokens, stop=asked.stop, attempt=context.attempts)
        context.attempts += 1
        context.busy = True
        try:
            reply, record = await self.running.act(conversation, request)
        except ContextFull as error:
            raise Refused(str(error), field="messages", code="context_length_exceeded") from error
        finally:
            context.busy = False
        conversation.append(Turn(reply=reply, record=record, number=number))
        context.told.append(_without_stop(reply, asked.stop))
        context.attempts = 0
        return number, context.told[-1]

    def _context(self, asked: Asked) -> _Context:
        """The longest conversation that is continued, else a new one."""
        continued = [self._contexts[at] for at in sorted(self._contexts) if self._contexts[at].continued_by(asked)]
        if continued:
            return max(continued, key=lambda context: len(context.conversation.entries))
        conversation = Conversation(Place(seat=self.seat, fork=self.fork))
        conversation.offer(asked.tools)
        for message in asked.messages:
            conversation.append(message)
        drawn = msgspec.json.encode((asked.max_tokens, asked.stop))
        number = (1 + int.from_bytes(sha256(conversation.digest + drawn).digest()[:4])) * _APART
        while number in self._contexts:
            number += _APART
        conversation.place = Place(seat=self.seat, fork=self.fork, context=number)
        self._contexts[number] = context = _Context(conversation=conversation)
        return context
