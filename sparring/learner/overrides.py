"""Fields of a run set by name from text: `steps`, `policies.learning_rate`, `train.environment.rounds`.

A dotted name walks the run's own dataclasses, mappings (by key), several `Episodes` or `Phase`s (by number) and an
environment's settings; its value is read by the field's declared type. What does not exist or does not fit is refused with the
nearest name or the type that fits.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sparring.environments import FunctionEnvironment
from sparring.errors import SettingError
from sparring.learner.run import Episodes
from sparring.rollout import Phase

V = TypeVar("V")
_AS_IT_IS: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A field that text can set: its dotted name, its declared type and what it holds."""

    name: str
    type: Any
    value: object

    @property
    def type_name(self) -> str:
        return _type_name(self.type)


def override(
    value: V, settings: Sequence[tuple[str, str]], *, prefix: str = "--", instead: Mapping[str, object] | None = None
) -> V:
    """`value` with the named fields set to what the texts say, all at once, so that fields which only fit together do.

    `instead` are fields of `value` itself that become other objects, in which texts can set fields too. `prefix` stands before
    names in messages. Raises `SettingError` for an unknown or doubled name, a text that does not fit
    its field's type, or a value that the dataclass itself refuses.
    """
    tree: dict[str, Any] = {}
    replaced = {} if instead is None else instead
    for name, text in settings:
        part, _, rest = name.partition(".")
        if part in replaced and rest:
            _check_name(replaced[part], rest, text, f"{prefix}{part}.")
        else:
            _check_name(value, name, text, prefix)
        node = tree
        *path, leaf = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
        if leaf in node:
            raise SettingError(f"{prefix}{name} is given twice: {node[leaf]!r} and {text!r}")
        node[leaf] = text
    rebuilt: V = _rebuilt(value, tree, "", prefix, replaced)
    return rebuilt


def settable(value: object, name: str = "") -> Iterator[Place]:
    """Every field below `value` that text can set, in the order of the dataclasses."""
    for part, type_, held in _members(value):
        dotted = f"{name}.{part}" if name else part
        if _reads(type_, held):
            yield Place(name=dotted, type=type_, value=held)
        else:
            yield from settable(held, dotted)


def _members(value: object) -> Iterator[tuple[str, Any, Any]]:
    """The (name, declared type, value) of what stands directly below a value."""
    if isinstance(value, FunctionEnvironment):
        hints = get_type_hints(value.function)
        for key, held in value.settings.items():
            yield key, hints.get(key, type(held)), held
    elif is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        for item in fields(value):
            if item.init:
                yield item.name, hints[item.name], getattr(value, item.name)
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield str(key), type(held), held
    elif isinstance(value, tuple | list) and all(isinstance(item, Episodes | Phase) for item in value):
        for number, held in enumerate(value):
            yield str(number), type(held), held


def _check_name(value: object, name: str, text: str, prefix: str) -> None:
    """Refuse a name that leads to nothing that text can set."""
    here, type_, walked = value, None, ""
    for part in name.split("."):
        members = {key: (type_, held) for key, type_, held in _members(here)}
        if here is None and walked:
            raise SettingError(_nothing_there(name, walked.removesuffix("."), type_, prefix))
        if part not in members:
            where = f"{prefix}{walked.removesuffix('.')}" if walked else type(value).__name__
            raise SettingError(
                f"{prefix}{name}: {where} has no {part!r}; {_nearest(value, name, list(members), walked, prefix)}"
            )
        type_, here = members[part]
        walked += f"{part}."
    if _reads(type_, here):
        return
    below = [f"{prefix}{place.name}" for place in settable(here, name)]
    if not below:
        raise SettingError(
            f"{prefix}{name} {text!r}: a {type(here).__name__} cannot be written on the command line; set it in the file"
        )
    raise SettingError(f"{prefix}{name} {text!r}: it is a group of settings; name one of them: {', '.join(below)}")


def _nothing_there(name: str, empty: str, type_: Any, prefix: str) -> str:
    """What is said where a name goes on below what is None."""
    kinds = [one.__name__ for one in _alternatives(type_) if is_dataclass(one) and isinstance(one, type)]
    remedy = f"; give it one in the file, as in {empty.rpartition('.')[2]}={kinds[0]}(...)" if kinds else ""
    return f"{prefix}{name}: there is no {prefix}{empty}, so that nothing of it can be set{remedy}"


def _nearest(value: object, name: str, siblings: Sequence[str], walked: str, prefix: str) -> str:
    """What was probably meant: a sibling like it, a field that ends alike, or, for the first part, any name like it."""
    part = name.removeprefix(walked).partition(".")[0]
    rest = name.removeprefix(walked + part)
    known = [place.name for place in settable(value)]
    alike = get_close_matches(part, siblings, n=1) or [one for one in siblings if part and one.startswith(part)]
    meant = [f"{walked}{near}{rest}" for near in alike]
    meant = [one for one in meant if any(place == one or place.startswith(f"{one}.") for place in known)]
    meant += [place for place in known if place.rpartition(".")[2] == name.rpartition(".")[2]]
    meant += [] if walked else get_close_matches(name, known, n=1, cutoff=0.8)
    meant += [walked.removesuffix(".")] if walked.removesuffix(".") in known else []
    if meant:
        return f"did you mean {prefix}{meant[0]}?"
    return f"it has {', '.join(siblings) or 'no settings'}"


def _rebuilt(
    value: Any, tree: Mapping[str, Any], name: str, prefix: str, instead: Mapping[str, object] = _AS_IT_IS
) -> Any:
    """`value` with the changes of `tree` below it, made from the leaves up: each object is made once."""
    members = {key: (type_, instead.get(key, held)) for key, type_, held in _members(value)}
    changes: dict[str, Any] = dict(instead)
    for part, change in tree.items():
        type_, held = members[part]
        dotted = f"{name}.{part}" if name else part
        if isinstance(change, str):
            changes[part] = _read(f"{prefix}{dotted}", change, type_, held)
        else:
            changes[part] = _rebuilt(held, change, dotted, prefix)
    if isinstance(value, FunctionEnvironment):
        return value(**changes)
    if isinstance(value, Mapping):
        return {key: changes.get(str(key), held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(changes.get(str(number), held) for number, held in enumerate(value))
    return replace(value, **changes)


# --------------------------------------------------------------------------------------------------------- reading text


def _read(what: str, text: str, type_: Any, held: object) -> Any:
    for alternative in _alternatives(type_):
        found = _parsed(text, alternative)
        if found is not _NOTHING:
            return found
    raise SettingError(f"{what} {text!r}: must be {_type_name(type_)} (it is {held!r})")


_NOTHING = object()
_TRUTHS = {"true": True, "false": False}


def _parsed(text: str, type_: Any) -> Any:
    """The value of a text as one plain type, `_NOTHING` where it is none."""
    if type_ is type(None):
        return None if text.casefold() == "none" else _NOTHING
    if type_ is bool:
        return _TRUTHS.get(text.casefold(), _NOTHING)
    if get_origin(type_) is Literal:
        matching = [choice for choice in get_args(type_) if str(choice) == text]
        return matching[0] if matching else _NOTHING
    if type_ is Path:
        return Path(text).expanduser() if text else _NOTHING
    if type_ is int:
        return _number(int, text)
    if type_ is float:
        found = _number(float, text)
        return found if found is _NOTHING or isfinite(found) else _NOTHING
    return text


def _number(type_: Callable[[str], Any], text: str) -> Any:
    try:
        return type_(text)
    except ValueError:
        return _NOTHING


def _alternatives(type_: Any) -> tuple[Any, ...]:
    """A union's members, the strictest reading first (text last: it fits everything); any other type alone."""
    if get_origin(type_) not in (Union, types.UnionType):
        return (type_,)
    order = [type(None), bool, int, float]
    return tuple(sorted(get_args(type_), key=lambda one: order.index(one) if one in order else 5 if one is str else 4))


def _reads(type_: Any, held: object) -> bool:
    """Whether text can set a field: its type is plain, and it holds no group of settings just now."""
    plain = all(
        one in (bool, int, float, str, Path, type(None)) or get_origin(one) is Literal for one in _alternatives(type_)
    )
    return plain and not is_dataclass(held)


def _type_name(type_: Any) -> str:
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(map(str, get_args(type_)))
    if type_ is type(None):
        return "none"
    if type_ is bool:
        return "true or false"
    names = {int: "a whole number", float: "a number", str: "text", Path: "a path"}
    parts = _alternatives(type_)
    return names.get(type_, str(type_)) if len(parts) == 1 else " or ".join(_type_name(one) for one in parts)
