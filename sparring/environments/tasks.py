"""Task sources: deterministic and addressable by index, so that where a run stands in one is a single integer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import msgspec

from sparring.errors import SettingError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Tasks(Protocol[T_co]):
    """A list, a range, `jsonl(...)`, `generated(...)`: `source[index]` is always the same task. `len()` only where finite."""

    def __getitem__(self, index: int, /) -> T_co: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated(Generic[T]):
    """An endless source: task `index` is `make(Random(seed, index))`."""

    make: Callable[[Random], T]
    seed: int

    def __getitem__(self, index: int, /) -> T:
        return self.make(Random(f"{self.seed}/{index}"))


def generated(make: Callable[[Random], T], *, seed: int = 0) -> Generated[T]:
    """Tasks drawn by `make(rng) -> task`, one generator for each index. Distinct indices may draw equal tasks."""
    return Generated(make=make, seed=seed)


@overload
def jsonl(path: str | Path) -> list[dict[str, Any]]: ...
@overload
def jsonl(path: str | Path, task_type: type[T]) -> list[T]: ...
def jsonl(path: str | Path, task_type: type[T] | None = None) -> Any:
    """The tasks in a file of one JSON object a line, as `task_type` (a dataclass) or as dictionaries.

    Raises `SettingError` naming file and line for what is not JSON or does not fit the type.
    """
    decoder = msgspec.json.Decoder(task_type if task_type is not None else dict[str, Any])
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise SettingError(f"tasks file {str(path)!r}: {error.strerror}") from error
    tasks: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            tasks.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise SettingError(f"{path}, line {number}: {error}") from error
    return tasks


def size(tasks: Tasks[Any]) -> int | None:
    """The number of tasks, None where the source is endless."""
    return len(tasks) if isinstance(tasks, Sequence | SizedTasks) else None


def task_digest(task: Any) -> str:
    """sha256 of a task's content as canonical JSON. Raises `SettingError` for a task that is not JSON data."""
    try:
        plain = msgspec.to_builtins(task, str_keys=True)
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise SettingError(
            f"task {task!r} is not JSON data ({error}): use a dataclass of numbers, text and lists"
        ) from error
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split(tasks: Iterable[T], held_out: int) -> tuple[list[T], list[T]]:
    """Distinct tasks as (train, held out), `held_out` of them apart by content: those with the smallest digests.

    Raises `SettingError` where fewer than `held_out` + 1 distinct tasks are given.
    """
    distinct = {task_digest(task): task for task in tasks}
    if not 0 < held_out < len(distinct):
        raise SettingError(
            f"held_out={held_out!r} of {len(distinct)} distinct tasks: must be between 1 and {len(distinct) - 1}"
        )
    ordered = sorted(distinct)
    return [distinct[key] for key in ordered[held_out:]], [distinct[key] for key in ordered[:held_out]]


@runtime_checkable
class SizedTasks(Protocol):
    """A source that knows how many tasks it has."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...
