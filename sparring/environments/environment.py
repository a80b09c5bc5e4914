"""An environment: the rules of an episode as one coroutine, with its settings."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar, get_type_hints, overload

import msgspec

from sparring.environments.outcome import Rewards
from sparring.environments.seat import Seat
from sparring.errors import SettingError

TaskT = TypeVar("TaskT")
Hidden = Mapping[str, tuple[str, ...]]


class Environment(ABC, Generic[TaskT]):
    """What is played: named seats and a coroutine. Subclass it only where the seats vary; otherwise use `@environment`.

    An environment keeps no state of an episode outside `play`'s locals.
    """

    seats: tuple[str, ...]
    name: str
    hidden: Hidden = {}
    zero_sum: tuple[str, ...] = ()
    headline: str = ""
    resumable: bool = True

    @abstractmethod
    async def play(self, task: TaskT, *players: Seat, rng: Random) -> Rewards:
        """Play one episode. `players` in the order of `seats`; `rng` is common to the episodes that are compared."""

    def described(self) -> dict[str, Any]:
        """Name and settings as plain data, for `run.json`."""
        return {"name": self.name, "seats": list(self.seats)}

    def fingerprint(self) -> str:
        """A digest of the source file that defines it: a run that is resumed with another one is stopped and says so."""
        return _source_digest(type(self))


@dataclass(frozen=True, kw_only=True)
class FunctionEnvironment(Environment[TaskT]):
    """An environment made by `@environment`: equal by function and settings. Calling it with settings gives another one."""

    function: Callable[..., Awaitable[Rewards]]
    seats: tuple[str, ...]
    task_type: Any
    settings: Mapping[str, Any]
    hidden: Hidden = field(default_factory=dict)
    zero_sum: tuple[str, ...] = ()
    headline: str = ""
    gold: Callable[[TaskT], str] | None = None
    resumable: bool = True
    takes_rng: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.function.__name__

    def __hash__(self) -> int:
        return hash((self.function, tuple(sorted(self.settings))))

    def __call__(self, *positional: object, **settings: object) -> FunctionEnvironment[TaskT]:
        """The same rules with other settings; unknown ones and ill-typed values raise `SettingError`."""
        if positional:
            raise SettingError(f"{self.name}({positional[0]!r}): settings are given by name: {self._listed()}")
        hints = get_type_hints(self.function)
        checked = dict(self.settings)
        for key, value in settings.items():
            if key not in self.settings:
                near = get_close_matches(key, self.settings, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"it has {self._listed()}"
                raise SettingError(f"{self.name} has no setting {key!r}; {meant}")
            checked[key] = _converted(f"{self.name}({key}={value!r})", value, hints.get(key, Any))
        return replace(self, settings=checked)

    async def play(self, task: TaskT, *players: Seat, rng: Random) -> Rewards:
        extra = {"rng": rng} if self.takes_rng else {}
        return await self.function(task, *players, **self.settings, **extra)

    def described(self) -> dict[str, Any]:
        where = f"{self.function.__module__}:{self.function.__qualname__}"
        return {"name": where, "seats": list(self.seats), "settings": dict(self.settings)}

    def fingerprint(self) -> str:
        return _source_digest(self.function)

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
    """Make an environment of an async function: the first parameter is the task, further ones are seats, keyword-only ones settings.

    hidden      {seat or "*": task fields that it must not see}
    zero_sum    seats whose returns add up to zero
    headline    the metric that a run shows first, instead of the reward
    gold        a reply that solves the task, for `sparring check`
    resumable   False where an episode holds something live: after a crash it starts again

    `rng` is the one reserved name: a `random.Random` seeded from run, task and group. Raises `SettingError` for a signature
    that does not say this.
    """

    def made(fn: Callable[..., Awaitable[Rewards]]) -> FunctionEnvironment[Any]:
        seats, settings, takes_rng, task_type = _read_signature(fn)
        for seat in (*(hidden or {}), *zero_sum):
            if seat not in seats and not (seat == "*" and seat in (hidden or {})):
                raise SettingError(f"{fn.__name__}: {seat!r} is no seat of it; its seats are {', '.join(seats)}")
        _check_fields(fn.__name__, task_type, hidden or {})
        return FunctionEnvironment(
            function=fn,
            seats=seats,
            task_type=task_type,
            settings=settings,
            hidden=dict(hidden or {}),
            zero_sum=tuple(zero_sum),
            headline=headline,
            gold=gold,
            resumable=resumable,
            takes_rng=takes_rng,
        )

    return made if function is None else made(function)


def _read_signature(fn: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any], bool, Any]:
    if not inspect.iscoroutinefunction(fn):
        raise SettingError(
            f"{fn!r}: an environment is an async function: async def {getattr(fn, '__name__', 'play')}(task, ...)"
        )
    seats: list[str] = []
    settings: dict[str, Any] = {}
    takes_rng = False
    parameters = list(inspect.signature(fn).parameters.values())
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SettingError(
                f"{fn.__name__}: {parameter} hides its seats or settings; name them, or subclass Environment"
            )
        if parameter.kind is not parameter.KEYWORD_ONLY:
            seats.append(parameter.name)
        elif parameter.name == "rng":
            takes_rng = True
        elif parameter.default is parameter.empty:
            raise SettingError(f"{fn.__name__}: setting {parameter.name!r} has no default; give it one")
        else:
            settings[parameter.name] = parameter.default
    if len(seats) < 2:
        raise SettingError(
            f"{fn.__name__}{inspect.signature(fn)}: the first parameter is the task, then at least one seat"
        )
    return tuple(seats[1:]), settings, takes_rng, parameters[0].annotation


def _check_fields(name: str, task_type: Any, hidden: Hidden) -> None:
    if not (isinstance(task_type, type) and is_dataclass(task_type)):
        return
    known: Collection[str] = [item.name for item in fields(task_type)]
    for hidden_fields in hidden.values():
        for hidden_field in hidden_fields:
            if hidden_field not in known:
                raise SettingError(
                    f"{name}: hidden field {hidden_field!r} is none of {task_type.__name__}'s: {', '.join(known)}"
                )


def _converted(what: str, value: object, annotation: Any) -> Any:
    if annotation is Any:
        return value
    try:
        return msgspec.convert(value, annotation, strict=True)
    except msgspec.ValidationError as error:
        raise SettingError(f"{what}: {error}") from error


def _source_digest(thing: Any) -> str:
    """sha256 of the file that defines `thing`; of its name where there is no file (a notebook cell, a REPL)."""
    try:
        path = inspect.getsourcefile(thing)
        content = Path(path).read_bytes() if path else repr(thing).encode()
    except (TypeError, OSError):
        content = f"{thing.__module__}:{thing.__qualname__}".encode()
    return sha256(content).hexdigest()
