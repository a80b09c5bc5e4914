"""A run as plain data: what `run.json` shows, and what a resumed run is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from sparring.backend import ModelInfo
from sparring.environments import Environment, size, task_digest
from sparring.errors import RunChanged, SettingError
from sparring.learner.run import Episodes, Run
from sparring.rollout import Schedule

_PACKAGES = ("sparring", "torch", "transformers", "peft", "vllm", "numpy")
_ELSEWHERE = ("train", "held_out", "folder")
_FREE = ("max_concurrent", "episode_deadline", "stall_deadline", "max_faults")
"""Fields that may change when a run is resumed: they decide how, not what."""

_ENDLESS_SAMPLE = 64


def describe(
    run: Run, schedule: Schedule, models: Mapping[str, ModelInfo], renderers: Mapping[str, str]
) -> dict[str, Any]:
    """Settings, schedule, fingerprints (environments, tasks, models, renderers) and package versions, all JSON data."""
    settings = {item.name: plain(getattr(run, item.name)) for item in fields(run) if item.name not in _ELSEWHERE}
    sources = {f"train/{number}": source for number, source in enumerate(run.sources)} | {
        f"held_out/{name}": episodes for name, episodes in run.named_held_out.items()
    }
    return {
        "settings": settings | {"policies": {name: plain(policy) for name, policy in run.named_policies.items()}},
        "schedule": msgspec.to_builtins(schedule),
        "episodes": {name: described_episodes(source) for name, source in sources.items()},
        "models": {name: plain(info) for name, info in models.items()},
        "fingerprints": {f"environment of {name}": source.environment.fingerprint() for name, source in sources.items()}
        | {f"tasks of {name}": tasks_fingerprint(source) for name, source in sources.items()}
        | {f"model of {name}": info.fingerprint for name, info in models.items()}
        | {f"renderer of {name}": digest for name, digest in renderers.items()},
        "packages": {name: found for name in _PACKAGES if (found := _installed(name))},
    }


def described_episodes(episodes: Episodes) -> dict[str, Any]:
    """Environment, number of tasks (None: endless), line-ups."""
    return {
        "environment": episodes.environment.described(),
        "tasks": size(episodes.tasks),
        "lineups": [plain(lineup.players) for lineup in episodes.lineups],
        "greedy": episodes.greedy,
        "seen": episodes.seen,
    }


def digests(episodes: Episodes, what: str) -> list[str]:
    """The content digests of a finite source's tasks, of an endless one's first few. Raises `SettingError` for tasks
    that raise."""
    count = size(episodes.tasks)
    return [task_digest(task_at(episodes, index, what)) for index in range(_ENDLESS_SAMPLE if count is None else count)]


def task_at(episodes: Episodes, index: int, what: str) -> Any:
    """One task; what the source raises becomes a `SettingError` that names it."""
    try:
        return episodes.tasks[index]
    except Exception as error:  # noqa: BLE001 - the user's code: its failure is said with the index
        raise SettingError(f"task {index} of {what} raised {type(error).__name__}: {error}") from error


def tasks_fingerprint(episodes: Episodes) -> str:
    return sha256("".join(digests(episodes, episodes.environment.name)).encode()).hexdigest()


def check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, accept_changed_code: bool
) -> list[str]:
    """What differs between the run that was started and the one that resumes it, as sentences.

    Raises `RunChanged` for changed settings, and for changed code or data unless accepted.
    """
    for part in ("settings", "episodes"):
        for name in sorted(before[part].keys() | now[part].keys()):
            old, new = before[part].get(name), now[part].get(name)
            if name not in _FREE and old != new:
                raise RunChanged(
                    f"{folder} was started with {name} = {old!r}, now it is {new!r}: use the same, or another name for a new run"
                )
    changed = [name for name, digest in now["fingerprints"].items() if before["fingerprints"].get(name) != digest]
    if changed and not accept_changed_code:
        raise RunChanged(
            f"{folder}: changed since the run was started: {', '.join(changed)}; "
            f"--accept-changed-code goes on all the same, another name starts a new run"
        )
    return [f"accepted a change of the {name}" for name in changed]


def plain(value: Any) -> Any:
    """Any setting as JSON data; functions and other objects by their qualified name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Environment):
        return value.described()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__} | {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    named = value if isinstance(value, type) or callable(value) else type(value)
    return f"{named.__module__}:{getattr(named, '__qualname__', type(value).__qualname__)}"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
