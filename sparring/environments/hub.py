"""Sets of the Hugging Face hub, or of a folder that is laid out as one, as tasks, through the library `datasets`.

Needs the extra `hub`; `from sparring.environments.hub import hub`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from sparring.errors import SettingError, UnsupportedError

try:
    import datasets
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"sets of the hub need {missing.name!r}: pip install 'sparring[hub]'") from missing

T = TypeVar("T")
Where = str | Path


@overload
def hub(
    path: Where,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    cache: Where | None = None,
) -> list[dict[str, Any]]: ...
@overload
def hub(
    path: Where,
    task_type: type[T],
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    cache: Where | None = None,
) -> list[T]: ...
def hub(
    path: Where,
    task_type: type[Any] | None = None,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    cache: Where | None = None,
) -> Any:
    """The rows of a set (`"openai/gsm8k"`, or a folder), as `task_type` (a dataclass) or as dictionaries.

    name      of the set's configuration (`"main"`), where it has several
    revision  a commit, so that it is the same set tomorrow
    cache     the folder where the library keeps what it has loaded; None: its own

    Fields that the type does not have are left out. Blocks. Raises `SettingError` for a set, a split or a configuration that
    is not there, and for rows that do not fit the type.
    """
    try:
        rows = datasets.load_dataset(
            str(path), name, split=split, revision=revision, cache_dir=None if cache is None else str(cache)
        )
    except (FileNotFoundError, ValueError) as error:
        raise SettingError(f"hub({str(path)!r}, name={name!r}, split={split!r}): {error}") from error
    kind: Any = dict[str, Any] if task_type is None else task_type
    try:
        return [msgspec.convert(dict(row), kind) for row in rows]
    except msgspec.ValidationError as error:
        raise SettingError(f"hub({str(path)!r}, name={name!r}, split={split!r}): {error}") from error
