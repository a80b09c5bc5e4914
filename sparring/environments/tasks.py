"""Task sources: deterministic and addressable by index, so that where a run stands in one is a single integer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from operator import index as whole
from pathlib import Path
from random import Random
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import msgspec

from sparring.environments.plain import canonical
from sparring.errors import SettingError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Tasks(Protocol[T_co]):
    """A list, a range, `jsonl(...)`, `generated(...)`: `source[index]` is always the same task. `len()` only where finite."""

    def __getitem__(self, index: int, /) -> T_co: ...


@runtime_checkable
class SizedTasks(Protocol):
    """A source that knows how many tasks it has."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated(Generic[T]):
    """An endless source: task `index` is `make(Random(seed, index))`."""

    make: Callable[[Random], T]
    seed: int

    def __getitem__(self, index: int, /) -> T:
        if whole(index) < 0:
            raise IndexError(f"task {index!r} of an endless source: must be at least 0")
        return self.make(Random(f"{self.seed}/{whole(index)}"))

    def __iter__(self) -> Iterator[T]:
        raise SettingError(
            "an endless source was used as a finite one: take the first n as [source[i] for i in range(n)]"
        )


def generated(make: Callable[[Random], T], *, seed: int = 0) -> Generated[T]:
    """Tasks drawn by `make(rng) -> task`, one generator for each index. Distinct indices may draw equal tasks."""
    return Generated(make=make, seed=seed)


@overload
def jsonl(path: str | Path) -> list[dict[str, Any]]: ...
@overload
def jsonl(path: str | Path, task_type: type[T]) -> list[T]: ...
def jsonl(path: str | Path, task_type: type[T] | None = None) -> Any:
    """The tasks in a UTF-8 file of one JSON object a line, as `task_type` (a dataclass) or as dictionaries.

    Fields that the type does not have are left out; empty lines are not tasks. Raises `SettingError` naming file and line for
    what is not JSON or does not fit the type.
    """
    decoder = msgspec.json.Decoder(task_type if task_type is not None else dict[str, Any])
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(f"tasks file {str(path)!r}: {error.strerror}") from error
    tasks: list[Any] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            tasks.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SettingError(f"{path}, line {number}: {error}") from error
    return tasks


def size(tasks: Tasks[Any]) -> int | None:
    """The number of tasks, None where the source is endless."""
    return len(tasks) if isinstance(tasks, SizedTasks) else None


def task_digest(task: Any) -> str:
    """sha256 of a task's content as canonical JSON. Raises `SettingError` for a task that is not JSON data."""
    try:
        return sha256(canonical(task)).hexdigest()
    except ValueError as error:
        raise SettingError(
            f"task {task!r} is not JSON data ({error}): use a dataclass of numbers, text and lists"
        ) from error


def split(tasks: Iterable[T], held_out: int) -> tuple[list[T], list[T]]:
    """Distinct tasks as (train, held out), `held_out` of them apart by content: those with the smallest digests.

    Both are in the order of their digests, whatever the order given: a fixed shuffle. Raises `SettingError` where fewer than
    `held_out` + 1 distinct tasks are given.
    """
    distinct = {task_digest(task): task for task in tasks}
    if len(distinct) < 2:
        raise SettingError(f"split of {len(distinct)} distinct tasks: at least 2 are needed, one for each side")
    if not isinstance(held_out, int) or not 0 < held_out < len(distinct):
        most = len(distinct) - 1
        raise SettingError(
            f"held_out={held_out!r} of {len(distinct)} distinct tasks: must be a number from 1 to {most}"
        )
    ordered = sorted(distinct)
    return [distinct[key] for key in ordered[held_out:]], [distinct[key] for key in ordered[:held_out]]
