"""What the signature of an environment's function says: its task, its seats, its settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints, is_typeddict

import msgspec

from sparring.environments.plain import canonical
from sparring.environments.seat import Seat
from sparring.environments.source import closed_over
from sparring.errors import SettingError

Hidden = Mapping[str, tuple[str, ...]]

UNKNOWN = object()
"""Where a type would stand: there is no annotation, or it names what cannot be found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """`task_type` is Any where the annotation is missing or names what cannot be found."""

    task_type: Any
    seats: tuple[str, ...]
    settings: Mapping[str, Any]
    takes_rng: bool


def read_signature(function: Callable[..., Any]) -> Signature:
    """Raises `SettingError` for a function whose parameters are not a task, seats by name, and settings with defaults."""
    if not (inspect.isfunction(function) and inspect.iscoroutinefunction(function)):
        raise SettingError(
            f"{function!r}: an environment is an async function: async def name(task, seat, *, setting=default)"
        )
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise SettingError(
                f"{function.__name__}: {parameter} hides its seats or settings; name them, or subclass Environment"
            )
    positional = [parameter for parameter in parameters if parameter.kind is not Parameter.KEYWORD_ONLY]
    named = [parameter for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    if len(positional) < 2:
        shown = f"{function.__name__}{inspect.signature(function)}"
        raise SettingError(f"{shown}: the first parameter is the task, then at least one seat")
    task_type = hint(function, positional[0].name)
    if task_type is Seat:
        raise SettingError(f"{function.__name__}: its first parameter is the task, but {positional[0].name} is a Seat")
    for seat in positional[1:]:
        _check_seat(function, seat)
    return Signature(
        task_type=Any if task_type is UNKNOWN else task_type,
        seats=tuple(seat.name for seat in positional[1:]),
        settings={one.name: _default(function, one) for one in named if one.name != "rng"},
        takes_rng=any(one.name == "rng" for one in named),
    )


def hint(function: Callable[..., Any], name: str) -> Any:
    """A parameter's annotation, also one written as text; `UNKNOWN` without one or where it names what is not there."""
    parameter = inspect.signature(function).parameters[name]
    if parameter.annotation is Parameter.empty:
        return UNKNOWN
    holder = type(name, (), {"__annotations__": {name: parameter.annotation}})
    try:
        names, held = function.__globals__, closed_over(function)
        return get_type_hints(holder, globalns=names, localns=held, include_extras=True)[name]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return UNKNOWN


def setting_type(function: Callable[..., Any], name: str) -> Any:
    """What a setting's values must be: its annotation, else the type of its default, anything where that is None."""
    annotation = hint(function, name)
    if annotation is not UNKNOWN:
        return annotation
    default: object = inspect.signature(function).parameters[name].default
    return Any if default is None else type(default)


def converted(what: str, value: object, type_: Any) -> Any:
    """`value` as `type_` (an int for a float, a list for a tuple, nothing laxer); raises `SettingError`."""
    try:
        value = msgspec.convert(value, type_, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise SettingError(f"{what}: {error}") from error
    return plain_setting(what, value)


def plain_setting(what: str, value: object) -> object:
    """`value` as it is; raises `SettingError` where it is not JSON data, so that no run could record it."""
    try:
        canonical(value)
    except ValueError as error:
        remedy = "use finite numbers, text, lists, or a dataclass of them"
        raise SettingError(f"{what}: a setting must be JSON data ({error}): {remedy}") from error
    return value


def check_hidden(name: str, task_type: Any, hidden: Hidden) -> None:
    """Every hidden field must be one of the task's, as far as its type says which it has."""
    known = _field_names(task_type)
    for seat, hidden_fields in hidden.items():
        if isinstance(hidden_fields, str):
            raise SettingError(f"{name}: hidden[{seat!r}] is the text {hidden_fields!r}; write ({hidden_fields!r},)")
        for hidden_field in hidden_fields:
            if known is not None and hidden_field not in known:
                listed = ", ".join(known) or "none"
                raise SettingError(f"{name}: hidden field {hidden_field!r} is none of {task_type.__name__}'s: {listed}")


def _field_names(task_type: Any) -> Collection[str] | None:
    """The fields of a task's type; None where it does not say (a dictionary, Any)."""
    if not isinstance(task_type, type):
        return None
    if is_dataclass(task_type):
        return [item.name for item in fields(task_type)]
    if issubclass(task_type, msgspec.Struct):
        return [item.name for item in msgspec.structs.fields(task_type)]
    if is_typeddict(task_type):
        return list(get_type_hints(task_type))
    return () if task_type in (bool, int, float, str) else None


def _check_seat(function: Callable[..., Any], seat: Parameter) -> None:
    where = f"{function.__name__}({seat})"
    if seat.name == "rng":
        raise SettingError(
            f"{where}: rng is the reserved name of a generator; write it after *, or name the seat otherwise"
        )
    if seat.default is not Parameter.empty:
        raise SettingError(
            f"{where}: has a default, so it is a setting: write settings after *, seats without a default"
        )
    type_ = hint(function, seat.name)
    if isinstance(type_, type) and type_ not in (Any, object) and not issubclass(type_, Seat):
        raise SettingError(f"{where}: what follows the task is a Seat; write settings after *, with defaults")


def _default(function: Callable[..., Any], setting: Parameter) -> object:
    where = f"{function.__name__}({setting})"
    if setting.default is Parameter.empty:
        raise SettingError(f"{where}: setting {setting.name!r} has no default; give it one")
    return plain_setting(where, setting.default)
