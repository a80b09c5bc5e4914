"""A run as plain data: what `run.json` shows, and what a resumed run is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from inspect import isfunction, ismethod
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sparring.backend import ModelInfo
from sparring.environments import Environment, size, task_digest
from sparring.environments.source import closed_over, source_digests
from sparring.errors import RunChanged, SettingError
from sparring.learner.run import Episodes, Policy, Run
from sparring.rollout import Schedule

_PACKAGES = ("sparring", "torch", "transformers", "peft", "vllm", "numpy")
_ELSEWHERE = ("train", "held_out", "folder")
_FREE = ("max_concurrent", "episode_deadline", "stall_deadline", "max_faults", "max_refill", "gauges")
"""Fields that may change when a run is resumed: they decide how, not what."""

_ENDLESS_SAMPLE = 64

_LONGEST = 2000
"""Characters of what a function closes over; more are given as their digest."""


def describe(
    run: Run, schedule: Schedule, models: Mapping[str, ModelInfo], renderers: Mapping[str, str]
) -> dict[str, Any]:
    """Settings, schedule, fingerprints (environments, tasks, models, renderers) and package versions, all JSON data."""
    settings = {item.name: plain(getattr(run, item.name)) for item in fields(run) if item.name not in _ELSEWHERE}
    sources = {f"train/{number}": source for number, source in enumerate(run.sources)} | {
        f"held_out/{name}": episodes for name, episodes in run.named_held_out.items()
    }
    return {
        "settings": settings | {"policies": {name: _policy(policy) for name, policy in run.named_policies.items()}},
        "schedule": msgspec.to_builtins(schedule),
        "episodes": {name: described_episodes(source) for name, source in sources.items()},
        "models": {name: plain(info) for name, info in models.items()},
        "fingerprints": {f"environment of {name}": source.environment.fingerprint() for name, source in sources.items()}
        | {f"tasks of {name}": tasks_fingerprint(source) for name, source in sources.items()}
        | {
            f"code that draws the tasks of {name}": code
            for name, source in sources.items()
            if (code := drawn_by(source))
        }
        | {f"model of {name}": info.fingerprint for name, info in models.items()}
        | {f"number format of {name}": info.dtype for name, info in models.items()}
        | {f"renderer of {name}": digest for name, digest in renderers.items()}
        | code_fingerprints(run),
        "packages": {name: found for name in _PACKAGES if (found := _installed(name))},
    }


def _policy(policy: Policy) -> dict[str, Any]:
    """Its settings, and what its losses are divided by, in words."""
    described: dict[str, Any] = plain(policy)
    return described | {"loss_divided_by": policy.algorithm.normalization.divisor}


def described_episodes(episodes: Episodes) -> dict[str, Any]:
    """Environment, number of tasks (None: endless), line-ups."""
    return {
        "environment": episodes.environment.described(),
        "tasks": size(episodes.tasks),
        "lineups": [plain(lineup.players) for lineup in episodes.lineups],
        "greedy": episodes.greedy,
        "seen": episodes.seen,
        "curriculum": plain(episodes.curriculum),
        "faults": plain(episodes.faults),
    }


def digests(episodes: Episodes, what: str, *, most: int = _ENDLESS_SAMPLE) -> list[str]:
    """The content digests of a finite source's tasks, of an endless one's first `most`. Raises `SettingError` for tasks
    that raise."""
    count = size(episodes.tasks)
    return [task_digest(task_at(episodes, index, what)) for index in range(most if count is None else count)]


def task_at(episodes: Episodes, index: int, what: str) -> Any:
    """One task; what the source raises becomes a `SettingError` that names it."""
    try:
        return episodes.tasks[index]
    except Exception as error:  # the user's code: its failure is said with the index
        raise SettingError(f"task {index} of {what} raised {type(error).__name__}: {error}") from error


def tasks_fingerprint(episodes: Episodes) -> str:
    return sha256("".join(digests(episodes, episodes.environment.name)).encode()).hexdigest()


def drawn_by(episodes: Episodes) -> dict[str, str]:
    """The source of the code that an endless source's tasks come from, as not all of them can be looked at."""
    found = _code(episodes.tasks, ()) if size(episodes.tasks) is None else ()
    return {what: digest for thing in found for what, digest in source_digests(thing).items()}


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises `RunChanged` where a run is resumed with other settings than it was started with; it names each of them."""
    found: list[str] = []
    for part in ("settings", "episodes"):
        old, new = ({key: value for key, value in one[part].items() if key not in _FREE} for one in (before, now))
        found += differences(old, new)
    if found:
        raise RunChanged(f"{folder} was started with {'; '.join(found)}: use the same, or another name for a new run")


def check_code(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, accept: bool) -> list[str]:
    """What of a run's code and data is no longer what it was, by the fingerprints of then and now.

    Raises `RunChanged` where anything is, unless told to `accept` it; it names each.
    """
    changed = [named_change(name, before.get(name), now.get(name)) for name in _changed(before, now)]
    if changed and not accept:
        raise RunChanged(
            f"{folder}: changed since the run was started, or since a change was last accepted: {', '.join(changed)}; restore "
            f"it, or go on all the same with --accept-changed-code (train(run, accept_changed_code=True)): whoever was "
            f"playing starts again; another name starts a new run"
        )
    return changed


def named_change(name: str, before: object, now: object) -> str:
    """One changed fingerprint, with what of it changed where it has parts."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return f"{name} ({', '.join(_changed(before, now))})"
    return name


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def differences(before: object, now: object, name: str = "") -> Iterator[str]:
    """Every leaf that differs between two pieces of JSON data, as `name = old, now new`; names are dotted."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            dotted = f"{name}.{key}" if name else str(key)
            if key not in before:
                yield f"no {dotted}, now {now[key]!r}"
            elif key not in now:
                yield f"{dotted} = {before[key]!r}, now none"
            else:
                yield from differences(before[key], now[key], dotted)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{name}.{index}")
    elif before != now:
        yield f"{name} = {before!r}, now {now!r}"


def plain(value: object) -> Any:
    """Any setting as JSON data.

    A dataclass is its fields, a function its qualified name with what it closes over, a `partial` its function and
    arguments, anything else the qualified name of its type.
    """
    return _plain(value, ())


def _plain(value: object, outer: tuple[object, ...]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return _scalar(value)
    if any(value is one for one in outer):
        return "(itself)"
    inner = (*outer, value)
    held = _held(value)
    if isinstance(held, Mapping):
        return {str(key): _plain(item, inner) for key, item in held.items()}
    if held is not None:
        return [_plain(item, inner) for item in held]
    return _object(value, inner)


def _held(value: object) -> Mapping[Any, Any] | Sequence[Any] | None:
    """What a collection holds; None for what is none."""
    if isinstance(value, np.ndarray):
        return list(value)
    if isinstance(value, AbstractSet):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return value
    return value if isinstance(value, Sequence) and not isinstance(value, bytes) else None


def _object(value: object, inner: tuple[object, ...]) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Environment):
        return value.described()
    parts = {key: _plain(item, inner) for key, item in _parts(value).items()}
    if _has_fields(value):
        return {"is": _name(value), **parts}
    if len(repr(parts)) > _LONGEST:
        return {"is": _name(value), "sha256": sha256(repr(parts).encode()).hexdigest()}
    return {"is": _name(value), **parts} if parts else _name(value)


def _scalar(value: bool | int | float | str | None) -> bool | int | float | str | None:
    """As exactly one of JSON's types: numpy's numbers are floats of another type, and no JSON holds infinity."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else str(float(value))
    return int(value) if isinstance(value, int) else str(value)


def _has_fields(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _parts(value: object) -> dict[str, Any]:
    """What makes this object different from another of the same name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if ismethod(value):
        return {"of": value.__self__}
    if isfunction(value):
        return closed_over(value)
    return {}


def _name(value: object) -> str:
    """The qualified name of a function or class, else of the object's class; sparring's own dataclasses go by their
    short one."""
    named = value if isinstance(value, type) or isfunction(value) or ismethod(value) else type(value)
    if _has_fields(value) and _is_ours(named.__module__):
        return named.__qualname__
    return f"{named.__module__}:{named.__qualname__}"


def code_fingerprints(run: Run) -> dict[str, dict[str, str]]:
    """{what: digest} of all that the source of each function and class of the user's own consists of, in the policies, the
    line-ups, the backend and the reuse."""
    everyone = [*run.sources, *run.named_held_out.values()]
    lineups = [lineup.players for source in everyone for lineup in source.lineups]
    found = _code([*run.named_policies.values(), *lineups, run.backend, run.reuse], ())
    return {f"code of {_name(thing)}": source_digests(thing) for thing in found}


def _code(value: object, outer: tuple[object, ...]) -> Iterator[Any]:
    """The functions and classes in a setting that are not part of sparring, Python or a package of numbers."""
    if isinstance(value, str) or any(value is one for one in outer):
        return
    held = _held(value)
    inside = _parts(value).values() if held is None else held.values() if isinstance(held, Mapping) else held
    for item in inside:
        yield from _code(item, (*outer, value))
    named = value if isinstance(value, type) or isfunction(value) or ismethod(value) else type(value)
    if not _is_ours(named.__module__) and named.__module__ not in _NOT_CODE:
        yield named


_NOT_CODE = ("builtins", "collections", "functools", "numpy", "pathlib", "types")


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "sparring"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
