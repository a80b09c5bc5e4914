"""`tool`: makes a tool of an async function, described to the model by its signature."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from inspect import Parameter
from math import isfinite
from typing import Any, overload

import msgspec

from sparring.environments.plain import canonical
from sparring.environments.running import effect
from sparring.environments.signature import UNKNOWN, hint
from sparring.environments.tools import Tool
from sparring.errors import SettingError

Function = Callable[..., Awaitable[Any]]


@overload
def tool(function: Function, /) -> Tool: ...
@overload
def tool(*, timeout: float) -> Callable[[Function], Tool]: ...


def tool(function: Function | None = None, /, *, timeout: float = 60.0) -> Tool | Callable[[Function], Tool]:
    """Make a tool of an async function: its name, docstring and annotated parameters are what the model sees.

    Arguments are converted to the annotated types (anything that JSON holds; `Annotated[int, msgspec.Meta(...)]` says more of
    one). An episode journals each call, as `effect` does; `timeout` is in seconds. A result that is no text is told as JSON.
    Raises `SettingError` for a signature that does not say all of this.
    """
    if not (isfinite(timeout) and timeout > 0):
        raise SettingError(f"tool(timeout={timeout!r}): must be a finite number of seconds above 0")

    def made(fn: Function) -> Tool:
        arguments = _arguments(fn)

        async def answer(text: str) -> str:
            try:
                given = msgspec.json.decode(text or "{}", type=arguments)
            except (msgspec.MsgspecError, RecursionError) as error:
                return f"{fn.__name__} was called with arguments that do not fit: {error}"
            values = [getattr(given, name) for name in arguments.__struct_fields__]
            result = await effect(fn, *values, timeout=timeout)
            return result if isinstance(result, str) else canonical(result).decode()

        return Tool(
            name=fn.__name__, description=inspect.getdoc(fn) or "", parameters=_schema(arguments), answer=answer
        )

    return made if function is None else made(function)


def _arguments(function: Function) -> type[msgspec.Struct]:
    """A record of the function's parameters."""
    if not (inspect.isfunction(function) and inspect.iscoroutinefunction(function)):
        raise SettingError(f"tool({function!r}): must be an async function")
    if not inspect.getdoc(function):
        raise SettingError(f"tool({function.__name__}): give it a docstring, which tells the model what it does")
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = hint(function, parameter.name)
        if parameter.kind is not Parameter.POSITIONAL_OR_KEYWORD or annotation is UNKNOWN:
            raise SettingError(
                f"tool({function.__name__}): {parameter} must be an ordinary parameter with an annotation, as in n: int"
            )
        required = parameter.default is Parameter.empty
        fields.append((parameter.name, annotation) if required else (parameter.name, annotation, parameter.default))
    return msgspec.defstruct(function.__name__, fields, kw_only=True, forbid_unknown_fields=True)


def _schema(arguments: type[msgspec.Struct]) -> Mapping[str, Any]:
    try:
        (schema,), others = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    except TypeError as error:
        raise SettingError(
            f"tool({arguments.__name__}): a parameter's type is none that JSON holds: {error}"
        ) from error
    shown = dict(others.pop(schema["$ref"].rpartition("/")[2]))
    del shown["title"]
    return shown | ({"$defs": others} if others else {})
