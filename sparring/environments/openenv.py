"""Environments behind a server of OpenEnv as ours: what is observed is told, the reply is the action, the rewards are its own.

Needs the extra `openenv`; `from sparring.environments.openenv import openenv_environment`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import isclass, isroutine
from typing import Any

import anyio

from sparring.environments.environment import Environment
from sparring.environments.openenv_session import Refused, Session, checked_url
from sparring.environments.outcome import Outcome
from sparring.environments.plain import canonical
from sparring.environments.running import effect
from sparring.environments.score import Score
from sparring.environments.seat import Seat
from sparring.environments.source import source_digests
from sparring.errors import EffectError, SettingError

Act = Callable[[str], Mapping[str, Any]]
"""The text of a reply -> the action, as JSON data; `ValueError` for what is none, with why."""

Observe = Callable[[Mapping[str, Any]], str]
"""An observation -> what the player is told."""

_PATIENCE = 600.0
"""Seconds of one step, or of the first, which waits until the server has a place."""

_DEEPEST = 64
"""Levels of an action: servers answer what is far deeper with an error of their own."""

_UNFIT = "VALIDATION_ERROR"


@dataclass(frozen=True, kw_only=True)
class OpenEnvEnvironment(Environment[Any]):
    """What `openenv_environment` makes. A task is a seed, or a mapping of what `reset` takes."""

    url: str
    act: Act | str | None = None
    observe: Observe | None = None
    rules: str = ""
    retries: int = 1
    illegal: float = -1.0
    seats: tuple[str, ...] = ("player",)
    resumable: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        return self.url

    def __hash__(self) -> int:
        return hash((self.url, self.seats))

    def described(self) -> dict[str, Any]:
        read = {"act": _named(self.act), "observe": _named(self.observe)}
        said = {"url": self.url, "rules": self.rules, "retries": self.retries, "illegal": self.illegal}
        return {**super().described(), **said, **read, "settings": dict(self.settings)}

    def fingerprint(self) -> dict[str, str]:
        """And of what is written around it here, the source."""
        around = [_code(one) for one in (self.act, self.observe) if one is not None and not isinstance(one, str)]
        return super().fingerprint() | {what: one for code in around for what, one in source_digests(code).items()}

    async def play(self, task: Any, *players: Seat) -> Outcome:
        """One episode, in a session of its own. Its metrics: `length` in steps, `refused`: replies that were no action."""
        (player,) = players
        if self.rules:
            player.system(self.rules)
        session = _Steps(Session(self.url))
        try:
            return await self._play(session, task, player)
        finally:
            with anyio.CancelScope(shield=True):
                await session.session.aclose()

    async def _play(self, session: _Steps, task: Any, player: Seat) -> Outcome:
        given = dict(task) if isinstance(task, Mapping) else {"seed": task}
        at = await session.answer("reset", {**self.settings, **given})
        length, refused, tries = 0, 0, 0
        rewards: dict[Seat, float | Score] = {player: Score(error="the server gave no reward")}
        question = self.told(at["observation"])
        while not at["done"]:
            reply = await player.ask(question)
            unfit, at_next = await self._step(session, reply.text)
            if unfit:
                refused, tries = refused + 1, tries + 1
                if tries > self.retries:
                    player.reward(self.illegal)
                    rewards = {}
                    break
                question = f"That is not an action: {unfit}"
                continue
            at, length, tries = at_next, length + 1, 0
            if at["reward"] is not None:
                player.reward(float(at["reward"]))
                rewards = {}
            question = self.told(at["observation"])
        return Outcome(rewards, metrics={"length": float(length), "refused": float(refused)})

    async def _step(self, session: _Steps, text: str) -> tuple[str, dict[str, Any]]:
        """Why the reply is no action, or what came of it."""
        try:
            action = self.action(text)
        except ValueError as error:
            return str(error) or type(error).__name__, {}
        at = await session.answer("step", dict(action))
        return at.get("unfit", ""), at

    def action(self, text: str) -> Mapping[str, Any]:
        """What a reply does; raises `ValueError` where that is nothing, or no JSON data."""
        if isinstance(self.act, str):
            action: Any = {self.act: text}
        else:
            try:
                action = json.loads(text) if self.act is None else self.act(text)
            except RecursionError as error:
                raise ValueError("it is nested too deeply") from error
        if not isinstance(action, Mapping):
            raise ValueError("it must be a JSON object")
        if not _shallow(action, _DEEPEST):
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        canonical(action)
        return action

    def told(self, observation: Mapping[str, Any]) -> str:
        """The text of an observation: a single text as it is, else a line for each field that says something."""
        if self.observe is not None:
            return self.observe(observation)
        said = {
            key: value for key, value in observation.items() if value not in (None, "", [], {}) and key != "metadata"
        }
        if len(said) == 1 and isinstance(text := next(iter(said.values())), str):
            return text
        lines = [f"{key}: {one if isinstance(one, str) else json.dumps(one)}" for key, one in said.items()]
        return "\n".join(lines) or "Go on."


def _shallow(value: Any, levels: int) -> bool:
    """Whether it has no more levels than that."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return levels >= 0 and all(_shallow(one, levels - 1) for one in inside)


def _code(given: Any) -> Any:
    """The function or class whose source says what `given` does."""
    if isinstance(given, partial):
        return _code(given.func)
    return given if isroutine(given) or isclass(given) else type(given)


def _named(given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    return f"{_code(given).__module__}:{_code(given).__qualname__}"


class _Steps:
    """What a session is asked in one episode, each an effect with a number."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._number = 0

    async def answer(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return await effect(self.asked, self._number, kind, data, timeout=_PATIENCE)

    async def asked(self, _: int, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """Observation, reward and whether it is done; of an action that is refused, why."""
        try:
            found = await self.session.request(kind, data)
        except Refused as refused:
            if kind == "step" and refused.code == _UNFIT:
                return {"unfit": str(refused)}
            raise EffectError(f"{self.session.url}, {kind} {data!r:.200}: {refused.code}: {refused}") from refused
        return {
            "observation": found.get("observation", {}),
            "reward": found.get("reward"),
            "done": bool(found.get("done")),
        }


def openenv_environment(
    url: str,
    *,
    act: Act | str | None = None,
    observe: Observe | None = None,
    rules: str = "",
    retries: int = 1,
    illegal: float = -1.0,
    settings: Mapping[str, Any] | None = None,
) -> OpenEnvEnvironment:
    """An environment behind a server of OpenEnv (https://github.com/huggingface/OpenEnv), as in "http://localhost:8000": one
    seat, `player`; tasks are seeds of `reset`, or mappings of what the server's `reset` takes.

    act       the action that a reply is: the name of the field that takes its text, as in "message"; a function; None:
              the reply is the action as a JSON object
    observe   the text of an observation; None: that of its only field, or a line for each
    rules     what the player is told first
    retries   further tries after a reply that is no action: that cannot be read, or does not fit the server's schema; after
              them the episode ends with the reward `illegal`
    settings  go to each `reset`

    The return is the sum of the rewards of the steps, each given to the turn that made it; an episode in which the server gave
    none has no score. An error in the server's own step (EXECUTION_ERROR) is a fault of the episode. Each episode has a
    connection, so a session of the server, of its own, with a thread; one that finds all places taken waits for one. What the
    server answers is kept in the journal; an episode that a crash cuts off begins again, in a new session. Raises
    `SettingError` for what is no address.
    """
    if retries < 0:
        raise SettingError(f"retries={retries!r}: must be at least 0")
    return OpenEnvEnvironment(
        url=checked_url(url),
        act=act,
        observe=observe,
        rules=rules,
        retries=retries,
        illegal=illegal,
        settings=dict(settings or {}),
    )
