"""A model behind an OpenAI-compatible endpoint (`/chat/completions`) as a player."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPException
from sys import maxsize
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import anyio
import anyio.to_thread

from sparring.agents.action import Action
from sparring.agents.policy import Sampling
from sparring.agents.scripted import refuse_tools
from sparring.environments import Conversation, Message, Reply, Request
from sparring.errors import BackendError, SettingError

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt."""


class Secret:
    """A text that is shown nowhere: neither where settings are described nor in messages."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


class EndpointAgent:
    """Plays with a model that a server has. It keeps nothing: each request tells the whole conversation. What comes back has no
    tokens, so that nothing of it can be trained on.

    url         where `/chat/completions` is below, as in http://localhost:8000/v1
    key         sent as a bearer token; "" sends none
    timeout     seconds for one request
    concurrent  requests at once
    """

    def __init__(
        self, url: str, model: str, sampling: Sampling, *, key: str = "", timeout: float = 300.0, concurrent: int = 64
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingError(f"url={url!r}: must begin with http:// or https://, as in http://localhost:8000/v1")
        if not model:
            raise SettingError(f"model={model!r} at {url}: name the model that the endpoint is to use")
        self._url, self._model, self._sampling = f"{url.rstrip('/')}/chat/completions", model, sampling
        self._key, self._timeout = key, timeout
        self._limiter = anyio.CapacityLimiter(concurrent)

    @property
    def temperature(self) -> float:
        return self._sampling.temperature

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        """Waits for the server, which is asked again where it is busy. Raises `BackendError` for what it refuses."""
        refuse_tools(conversation, "a model behind an endpoint")
        limit = min(self._sampling.max_tokens, request.max_tokens or self._sampling.max_tokens)
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": _messages(conversation),
            "max_tokens": limit,
            "temperature": self._sampling.temperature,
            "seed": seed % 2**31,
        }
        if request.stop:
            asked["stop"] = list(request.stop)
        return _action(await self._answer(json.dumps(asked).encode()), self._url)

    def context_left(self, conversation: Conversation) -> int:
        """Not known here; the server refuses what does not fit."""
        return maxsize

    async def _answer(self, body: bytes) -> Any:
        status, text = 0, ""
        for wait in (*_WAITS, None):
            status, text = await anyio.to_thread.run_sync(
                self._post, body, abandon_on_cancel=True, limiter=self._limiter
            )
            if status == 200:
                try:
                    return json.loads(text)
                except json.JSONDecodeError as error:
                    raise BackendError(f"{self._url} answered what is no JSON: {text[:200]!r}") from error
            if wait is None or status not in _AGAIN:
                break
            await anyio.sleep(wait)
        raise BackendError(f"{self._url} answered {status or 'nothing'}: {text[:500]}")

    def _post(self, body: bytes) -> tuple[int, str]:
        """(status, text); a server that cannot be reached is a 503 of our own."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            with urlopen(HttpRequest(self._url, body, headers), timeout=self._timeout) as answer:
                return int(answer.status), answer.read().decode("utf-8", "replace")
        except HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace")
        except (URLError, OSError, HTTPException) as error:
            return 503, f"it cannot be reached: {error}"


def _messages(conversation: Conversation) -> Sequence[dict[str, str]]:
    return [
        {"role": entry.role, "content": entry.text}
        if isinstance(entry, Message)
        else {"role": "assistant", "content": entry.reply.text}
        for entry in conversation.entries
    ]


def _action(answer: Any, url: str) -> Action:
    try:
        choice = answer["choices"][0]
        text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
    except (KeyError, IndexError, TypeError) as error:
        raise BackendError(f"{url} answered no completion: {str(answer)[:200]}") from error
    return Action(reply=Reply(text=text, stop="length" if reason == "length" else "stop"))
