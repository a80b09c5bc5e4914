"""An environment: the rules of an episode as one coroutine, with its settings."""

from __future__ import annotations

import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from operator import attrgetter
from random import Random
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast, overload

from sparring.environments.outcome import Rewards
from sparring.environments.plain import canonical
from sparring.environments.seat import Seat
from sparring.environments.signature import Hidden, check_hidden, converted, read_signature, setting_type
from sparring.environments.source import source_digests
from sparring.errors import SettingError

TaskT = TypeVar("TaskT")


class Environment(ABC, Generic[TaskT]):
    """What is played: named seats and a coroutine. Subclass it only where the seats vary; otherwise use `@environment`.

    An environment keeps no state of an episode outside `play`'s locals.
    """

    seats: tuple[str, ...]
    hidden: Hidden = MappingProxyType({})
    zero_sum: tuple[str, ...] = ()
    headline: str = ""
    resumable: bool = True

    @property
    def name(self) -> str:
        """What it is called in messages and reports."""
        return type(self).__name__

    @abstractmethod
    async def play(self, task: TaskT, *players: Seat) -> Rewards:
        """Play one episode. `players` in the order of `seats`. A keyword-only `rng: Random` is given where it is declared: it
        is common to the episodes that are compared."""

    @property
    def takes_rng(self) -> bool:
        """Whether `play` declares `rng`."""
        return _takes_rng(type(self).play)

    async def begin(self, task: TaskT, players: Sequence[Seat], rng: Random | None) -> Rewards:
        """`play`, with `rng` if it takes it."""
        play = cast(Callable[..., Awaitable[Rewards]], self.play)
        return await (play(task, *players, rng=rng) if self.takes_rng else play(task, *players))

    def described(self) -> dict[str, Any]:
        """Name and settings as JSON data, for `run.json`; a subclass with settings of its own adds them."""
        return {"name": f"{type(self).__module__}:{type(self).__qualname__}", "seats": list(self.seats)}

    def fingerprint(self) -> dict[str, str]:
        """{what: digest} of all that its source consists of (`environments/source.py` says what that is): a run that is resumed
        with another one is stopped, and names what changed."""
        return source_digests(type(self))


@dataclass(frozen=True, kw_only=True)
class FunctionEnvironment(Environment[TaskT]):
    """An environment made by `@environment`: equal by function and settings. Calling it with settings gives another one."""

    function: Callable[..., Awaitable[Rewards]]
    seats: tuple[str, ...]
    task_type: Any
    settings: Mapping[str, Any]
    hidden: Hidden = field(default_factory=dict[str, tuple[str, ...]])
    zero_sum: tuple[str, ...] = ()
    headline: str = ""
    gold: Callable[[TaskT], str] | None = None
    resumable: bool = True
    random: bool = False

    @property
    def takes_rng(self) -> bool:
        return self.random

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def setting_types(self) -> Mapping[str, Any]:
        """What the values of each setting must be, for the command line."""
        return {key: setting_type(self.function, key) for key in self.settings}

    def __hash__(self) -> int:
        return hash((self.function, tuple(sorted(self.settings))))

    def __call__(self, *positional: object, **settings: object) -> FunctionEnvironment[TaskT]:
        """The same rules with other settings; unknown ones and ill-typed values raise `SettingError`."""
        if positional:
            raise SettingError(f"{self.name}({positional[0]!r}): settings are given by name: {self._listed()}")
        checked = dict(self.settings)
        for key, value in settings.items():
            if key not in self.settings:
                near = get_close_matches(key, self.settings, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"it has {self._listed()}"
                raise SettingError(f"{self.name} has no setting {key!r}; {meant}")
            checked[key] = converted(f"{self.name}({key}={value!r})", value, setting_type(self.function, key))
        return replace(self, settings=MappingProxyType(checked))

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as a function is: the name that `@environment` decorated stands for the environment."""
        function = self.function
        try:
            found: object = attrgetter(function.__qualname__)(sys.modules[function.__module__])
        except (AttributeError, KeyError):
            found = None
        if isinstance(found, FunctionEnvironment) and found.function is function:
            return _named, (function.__module__, function.__qualname__, dict(self.settings))
        parts = {item.name: vars(self)[item.name] for item in fields(self) if item.name != "settings"}
        return _assembled, (parts, dict(self.settings))

    async def play(self, task: TaskT, *players: Seat, rng: Random | None = None) -> Rewards:
        extra = {"rng": rng or Random(0)} if self.takes_rng else {}
        return await self.function(task, *players, **self.settings, **extra)

    def described(self) -> dict[str, Any]:
        where = f"{self.function.__module__}:{self.function.__qualname__}"
        settings = json.loads(canonical(dict(self.settings)))
        return {"name": where, "seats": list(self.seats), "settings": settings}

    def fingerprint(self) -> dict[str, str]:
        return source_digests(self.function)

    def _listed(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.settings.items()) or "no settings"


@overload
def environment(function: Callable[..., Awaitable[Rewards]], /) -> FunctionEnvironment[Any]: ...
@overload
def environment(
    *,
    hidden: Hidden | None = None,
    zero_sum: tuple[str, ...] = (),
    headline: str = "",
    gold: Callable[[Any], str] | None = None,
    resumable: bool = True,
) -> Callable[[Callable[..., Awaitable[Rewards]]], FunctionEnvironment[Any]]: ...


def environment(
    function: Callable[..., Awaitable[Rewards]] | None = None,
    /,
    *,
    hidden: Hidden | None = None,
    zero_sum: tuple[str, ...] = (),
    headline: str = "",
    gold: Callable[[Any], str] | None = None,
    resumable: bool = True,
) -> FunctionEnvironment[Any] | Callable[[Callable[..., Awaitable[Rewards]]], FunctionEnvironment[Any]]:
    """Make an environment of an async function: its first parameter is the task, then come seats, settings stand after `*`.

    hidden      {seat or "*": task fields that it must not see}
    zero_sum    seats whose returns add up to zero
    headline    the metric that a run shows first, instead of the reward
    gold        a reply that solves the task, for `sparring check`
    resumable   False where an episode holds something live: after a crash it starts again

    `rng` is the one reserved name: a `random.Random` seeded from run, task and group. Settings are JSON data. Raises
    `SettingError` for a signature that does not say this.
    """

    def made(fn: Callable[..., Awaitable[Rewards]]) -> FunctionEnvironment[Any]:
        signature = read_signature(fn)
        _check_seats(fn.__name__, signature.seats, hidden or {}, zero_sum)
        check_hidden(fn.__name__, signature.task_type, hidden or {})
        return FunctionEnvironment(
            function=fn,
            seats=signature.seats,
            task_type=signature.task_type,
            settings=MappingProxyType(dict(signature.settings)),
            hidden={seat: tuple(names) for seat, names in (hidden or {}).items()},
            zero_sum=tuple(zero_sum),
            headline=headline,
            gold=gold,
            resumable=resumable,
            random=signature.takes_rng,
        )

    return made if function is None else made(function)


def gold_reply(environment: Environment[TaskT], task: TaskT) -> str | None:
    """A reply that solves the task, where the environment names one."""
    if isinstance(environment, FunctionEnvironment) and environment.gold is not None:
        return environment.gold(task)
    return None


@cache
def _takes_rng(play: Callable[..., Any]) -> bool:
    return "rng" in inspect.signature(play).parameters


def _check_seats(name: str, seats: tuple[str, ...], hidden: Hidden, zero_sum: tuple[str, ...]) -> None:
    if isinstance(zero_sum, str):
        raise SettingError(f"{name}: zero_sum is the text {zero_sum!r}; write a tuple of seats, as in {seats!r}")
    for seat in (*zero_sum, *(key for key in hidden if key != "*")):
        if seat not in seats:
            raise SettingError(f"{name}: {seat!r} is no seat of it; its seats are {', '.join(seats)}")


def _named(module: str, qualname: str, settings: Mapping[str, Any]) -> FunctionEnvironment[Any]:
    """Unpickle the environment that stands under a name, with the settings it had."""
    found: object = attrgetter(qualname)(import_module(module))
    assert isinstance(found, FunctionEnvironment), f"{module}:{qualname} is {found!r}, no environment"
    return replace(found, settings=MappingProxyType(dict(settings)))


def _assembled(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> FunctionEnvironment[Any]:
    return FunctionEnvironment(**parts, settings=MappingProxyType(dict(settings)))
