"""The source of what users write: which statements of their files decide what a function or class does.

It is the statement at the top of a file that defines the thing, each statement there that binds a name which that one uses,
and so on; also in the files that they import from, as far as these lie in the same package, or in the same folder or below
it where there is none. A statement counts by its text and by what the names it uses are imported from. Not seen are other
packages (sparring's own code too), what a file reads from elsewhere when it is imported, and calls by a name that is text.
"""

from __future__ import annotations

import ast
import inspect
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import resolve_name
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}

Origin = tuple[str, str]
"""Where an imported name comes from: (module, its name there), or (module, "") for the module itself."""


def source_digests(thing: Any) -> dict[str, str]:
    """{what: sha256} of all that the source of a function or class consists of; `what` is `module:name` of what a
    statement binds.

    The numbers and texts that a function closes over count too. What has no file (it was typed in) counts by its own lines,
    or by its name where these are lost as well.
    """
    thing = inspect.unwrap(thing.__func__ if inspect.ismethod(thing) else thing)
    traced = _traced(thing)
    name = f"{thing.__module__}:{thing.__qualname__}"
    texts = {what: "\n".join(found[line] for line in sorted(found)) for what, found in traced.items()}
    digests = {what: sha256(text.encode()).hexdigest() for what, text in (texts or {name: _own_lines(thing)}).items()}
    held = {key: value for key, value in closed_over(thing).items() if isinstance(value, bool | int | float | str)}
    if held:
        digests[f"what {name} closes over"] = sha256(repr(sorted(held.items())).encode()).hexdigest()
    return digests


def closed_over(thing: Any) -> dict[str, Any]:
    """What a function closes over by name, but for what is not bound yet; nothing for anything else."""
    held: dict[str, Any] = {}
    if inspect.isfunction(thing):
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            try:
                held[name] = cell.cell_contents
            except ValueError:  # the cell is empty: a name that its function binds later
                continue
    return held


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """A statement at the top of a file, with the lines that it takes and the names that it binds (or alters) and uses."""

    text: str
    first: int
    last: int
    binds: frozenset[str]
    uses: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A module's statements, but for its imports: `imports` says what each imported name may stand for, `stars` are the
    modules of which all names are imported."""

    module: str
    statements: tuple[_Statement, ...]
    imports: Mapping[str, frozenset[Origin]]
    stars: tuple[str, ...]

    def binding(self, name: str) -> list[_Statement]:
        return [one for one in self.statements if name in one.binds]


class _Trace:
    """Follows names from statement to statement, in the files below `root`: a package's folder, or one that holds no package.

    Where a module's file lies follows from its name, so that what was imported so far makes no difference.
    """

    def __init__(self, root: Path, *, package: bool) -> None:
        self.texts: dict[str, dict[int, str]] = {}
        self._root = root
        self._base = root.parent if package else root
        self._files: dict[str, _File | None] = {}
        self._seen: set[tuple[str, str]] = set()

    def statement(self, file: _File, one: _Statement) -> None:
        found = self.texts.setdefault(f"{file.module}:{', '.join(sorted(one.binds))}".removesuffix(":"), {})
        if one.first in found:
            return
        used = [(name, sorted(file.imports[name])) for name in sorted(one.uses) if name in file.imports]
        found[one.first] = "\n".join([one.text, *map(repr, used)])
        for name in sorted(one.uses):
            self._name(file, name)

    def _name(self, file: _File, name: str) -> None:
        if (file.module, name) in self._seen:
            return
        self._seen.add((file.module, name))
        for one in file.binding(name):
            self.statement(file, one)
        for module, there in sorted(file.imports.get(name, ())):
            self._imported(module, there)
        if not file.binding(name) and name not in file.imports:
            for module in file.stars:
                starred = self._file(module)
                if starred is not None:
                    self._name(starred, name)

    def _imported(self, module: str, name: str) -> None:
        inner = self._file(f"{module}.{name}") if name else None
        file = self._file(module)
        if file is not None and (file.binding(name) or name in file.imports):
            self._name(file, name)
        elif inner is None and file is not None:  # the module itself, or a name that nobody knows how it is bound
            self._whole(file)
        if inner is not None:
            self._whole(inner)

    def _whole(self, file: _File) -> None:
        for one in file.statements:
            self.statement(file, one)

    def _file(self, module: str) -> _File | None:
        """The file of a module, if it is one of the user's own."""
        if module not in self._files:
            place = self._base.joinpath(*module.split("."))
            paths = [path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()]
            own = self._root.name not in _INSTALLED and module.partition(".")[0] != "sparring"
            here = [path for path in paths if own and path.is_relative_to(self._root)]
            self._files[module] = _read(module, here[0]) if here else None
        return self._files[module]


def _traced(thing: Any) -> dict[str, dict[int, str]]:
    """{what: {line: text}}; empty where there is no file, or no statement in it that defines the thing."""
    path = _path(thing)
    file = None if path is None else _read(thing.__module__, path)
    if file is None or path is None:
        return {}
    depth = thing.__module__.count(".") + (path.name == "__init__.py")
    trace = _Trace(path.parents[max(depth - 1, 0)], package=depth > 0)
    if inspect.isfunction(thing):
        line = thing.__code__.co_firstlineno
        defining = [one for one in file.statements if one.first <= line <= one.last]
    else:
        defining = file.binding(thing.__qualname__.partition(".")[0])
    for one in defining:
        trace.statement(file, one)
    return trace.texts


def _path(thing: Any) -> Path | None:
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:  # built in
        return None
    return Path(path).resolve() if path and Path(path).is_file() else None


def _own_lines(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (TypeError, OSError):
        return f"{thing.__module__}:{thing.__qualname__}"


def _read(module: str, path: Path) -> _File | None:
    """None for a file that cannot be read as Python (any more)."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        tree = ast.parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError):
        return None
    lines = text.split("\n")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: dict[str, frozenset[Origin]] = {}
    stars: list[str] = []
    for name, origin in _imports(tree, package):
        if name == "*":
            stars.append(origin[0])
        else:
            imports[name] = imports.get(name, frozenset()) | {origin}
    statements = [_statement(node, lines) for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return _File(module=module, statements=tuple(statements), imports=imports, stars=tuple(stars))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, Origin]]:
    """(name, where it comes from), wherever in the tree it is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], (alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            origin = resolve_name(module, package) if node.level and package else module
            for alias in node.names:
                yield alias.asname or alias.name, (origin, alias.name)


def _statement(node: ast.stmt, lines: list[str]) -> _Statement:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
    first, last = min([node.lineno, *(one.lineno for one in decorators)]), node.end_lineno or node.lineno
    text = "\n".join(lines[first - 1 : last])
    top = symtable(ast.unparse(node), "", "exec")
    binds = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    inner = {name for name, _ in _imports(node, "")}
    return _Statement(
        text=text,
        first=first,
        last=last,
        binds=frozenset(binds | set(_altered(node))),
        uses=frozenset(inner | set(_used(top, top))),
    )


def _used(table: SymbolTable, top: SymbolTable) -> Iterator[str]:
    """The names that a statement takes from the top of its file."""
    for one in table.get_symbols():
        if one.is_referenced() if table is top else one.is_global():
            yield one.get_name()
    for child in table.get_children():
        yield from _used(child, top)


def _altered(node: ast.stmt) -> Iterator[str]:
    """The names whose values a statement alters in place: `TABLE["a"] = 1`, `WORDS.append("b")`."""
    places: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        places = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        places = [node.target]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        places = [node.value.func]
    for place in places:
        held = place
        while isinstance(held, ast.Attribute | ast.Subscript):
            held = held.value
        if held is not place and isinstance(held, ast.Name):
            yield held.id
