"""Finding what a Python file defines: `FILE`, or `FILE:NAME` where it defines several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import TypeVar

from sparring.cli.usage import UsageError

T = TypeVar("T")


def found(target: str, *kinds: type[T]) -> T:
    """The object of one of `kinds` that `FILE[:NAME]` names.

    Where NAME is missing, it is the only one of the first kind that the file defines any of. Raises `UsageError` for a file
    or name that is not there or is not unique; what the file itself raises is raised.
    """
    path, name = parted(target)
    module = loaded(path)
    if name:
        return _named(module, path, name, kinds)
    for kind in kinds:
        candidates = dict(_defined(module, kind))
        if len(set(map(id, candidates.values()))) == 1:
            return next(iter(candidates.values()))
        if candidates:
            several = ", ".join(candidates)
            raise UsageError(f"{path} defines several ({several}): name one, as in {path}:{next(iter(candidates))}")
    wanted = " or ".join(kind.__name__ for kind in kinds)
    raise UsageError(f"{path} defines no {wanted} at its top level")


def parted(target: str) -> tuple[Path, str]:
    """`FILE[:NAME]` as a file that exists and a name, "" where there is none."""
    path, name = Path(target), ""
    if not path.exists() and ":" in target:
        before, _, name = target.rpartition(":")
        path = Path(before)
    if not path.is_file():
        raise UsageError(f"file {str(path)!r} does not exist: give a Python file, as in examples/addition.py")
    if path.suffix != ".py":
        raise UsageError(f"file {str(path)!r} is no Python file: it must end in .py")
    return path, name


def loaded(path: Path) -> ModuleType:
    """The file as a module of its own name, with its folder on the import path, as `python FILE` would have it."""
    name, full = path.stem, str(path.resolve())
    known = sys.modules.get(name)
    if known is not None:
        if known.__spec__ is not None and known.__spec__.origin == full:
            return known
        raise UsageError(f"file {str(path)!r} has the name of the module {name!r}, which is in use: rename the file")
    spec = spec_from_file_location(name, full, loader=_Script(name, full))
    if spec is None or spec.loader is None:
        raise UsageError(f"file {str(path)!r} cannot be imported as a module: rename it")
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Script(SourceFileLoader):
    """Compiles the file as it is now, as `python FILE` does. What Python keeps compiled counts as the same for a file that was
    changed within a second and is as long as before."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _defined(module: ModuleType, kind: type[T]) -> Iterator[tuple[str, T]]:
    for name, value in vars(module).items():
        if isinstance(value, kind) and not name.startswith("_"):
            yield name, value


def _named(module: ModuleType, path: Path, name: str, kinds: tuple[type[T], ...]) -> T:
    known = {known: value for kind in kinds for known, value in _defined(module, kind)}
    if name in known:
        return known[name]
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if name in vars(module):
        raise UsageError(f"{path}:{name} is a {type(vars(module)[name]).__name__}: give a {wanted}")
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {path}:{near[0]}?" if near else f"it defines {', '.join(known) or 'none'}"
    raise UsageError(f"{path} has no {wanted} {name!r}; {meant}")
