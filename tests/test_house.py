"""The budget of the code base, and proof that each of its checks fails where it should.

What ruff, mypy and import-linter can say, they say (`pyproject.toml`); the command line's exceptions stand there too. Here is
what they cannot say, and for every rule that the house relies on, a planted defect that it catches.
"""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import COLLECTED, NEEDS

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FACADES = ("sparring", *(f"sparring.{room}" for room in ("environments", "agents", "rollout", "learner", "backend")))
FILE_LINES, TEST_FILE_LINES, FUNCTION_LINES, AIMED_LINES, AIMED_SHARE = 400, 600, 50, 30, 0.95

EDGES = {
    "BLE001": {
        "benchmarks/cuda.py",
        "sparring/backend/local/thread.py",
        "sparring/backend/vllm/engine.py",
        "sparring/environments/maths_worker.py",
        "sparring/environments/sandboxing/inside.py",
        "sparring/environments/sandboxing/puzzles.py",
        "sparring/learner/called.py",
        "sparring/rollout/culprit.py",
        "sparring/rollout/episode.py",
        "sparring/rollout/retold.py",
        "tests/rollout/test_episode.py",
        "tests/rollout/test_episode_replay.py",
    },
    "S102": {"sparring/environments/sandboxing/inside.py"},
    "TID251": {"sparring/backend/models.py"},
    "PT017": {"tests/learner/test_faults.py"},
    "ASYNC110": {"tests/learner/test_faults.py"},
}
"""Rule -> files that may break it, with `# noqa: RULE - reason` there. BLE001: the error goes to whoever waits, or counts,
or is what users write. S102: what a sandbox is for.
TID251: the user's cache folder is where the XDG convention says. ASYNC110: a thread ends the wait."""

KEYWORD_EDGES = {
    "sparring/backend/local/attention.py",
    "sparring/backend/local/attention_layer.py",
    "sparring/backend/local/kernel_attention.py",
    "sparring/backend/local/row_attention.py",
    "sparring/environments/environment.py",
}
"""Files where `**keywords` may be taken: transformers' attention interface, and an environment's settings, which are checked
against its signature at once."""

LAZY_EDGES = {
    "sparring/backend/choice.py",
    "sparring/backend/vllm/engine.py",
    "sparring/cli",
    "sparring/environments/cookbook.py",
    "sparring/environments/environment.py",
    "sparring/environments/sandbox.py",
    "sparring/environments/sandboxing/inside.py",
}
"""Files and folders that import a module by its name: a backend when it is opened, vLLM when an engine is
started, a command when it is called, tinker-cookbook when it is played, the function that a stored environment
names, what a warm interpreter has ready, Monty where it is asked for."""


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def over_budget(name: str, source: str) -> list[str]:
    """What in one file is too long."""
    length = len(source.splitlines())
    most = TEST_FILE_LINES if name.startswith("tests/") else FILE_LINES
    found = [f"{name}: {length} lines"] if length > most else []
    return found + [
        f"{name}:{function.lineno} {function.name}: {lines_of(function)} lines"
        for function in functions(source)
        if lines_of(function) > FUNCTION_LINES
    ]


def takes_any_keyword(name: str, source: str) -> list[str]:
    """Functions with `**keywords` that no third-party edge or parameter specification explains."""
    found = []
    for function in functions(source):
        keywords = function.args.kwarg
        if keywords is not None and (
            keywords.annotation is None or not ast.unparse(keywords.annotation).endswith(".kwargs")
        ):
            found.append(f"{name}:{function.lineno} {function.name}(**{keywords.arg})")
    return found


def imports_by_name(name: str, source: str) -> list[str]:
    """Calls that import a module without an import statement, which neither ruff nor import-linter can see."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = [(node.lineno, ast.unparse(node.func).rpartition(".")[2]) for node in calls]
    return [f"{name}:{line} {call}" for line, call in called if call in {"import_module", "__import__"}]


def silenced(name: str, source: str) -> list[str]:
    """Inline exceptions to ruff's rules that give no reason, or stand in a file that `EDGES` does not name for that rule."""
    found = []
    for number, line in enumerate(source.splitlines(), 1):
        noqa = re.search(r"# (?:ruff: *)?noqa(?:: ([A-Z]+[0-9]+)( - \S.*)?)?", line)
        if noqa and (noqa[2] is None or name not in EDGES.get(noqa[1], {})):
            found.append(f"{name}:{number} {noqa[0]}")
    return found


def nothing_in(found: list[str]) -> None:
    assert not found, "\n".join(["", *found])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_and_functions_are_short() -> None:
    files = python_files("sparring", "tests", "examples", "benchmarks")
    nothing_in([line for path in files for line in over_budget(relative(path), path.read_text())])


def test_most_functions_are_very_short() -> None:
    lengths = [lines_of(function) for path in python_files("sparring") for function in functions(path.read_text())]
    assert sum(length <= AIMED_LINES for length in lengths) >= AIMED_SHARE * len(lengths)


def test_there_is_at_least_as_much_test_as_code() -> None:
    code, tests = (
        sum(len(path.read_text().splitlines()) for path in python_files(folder)) for folder in ("sparring", "tests")
    )
    assert tests >= code


def test_keywords_pass_only_at_named_edges() -> None:
    files = [path for path in python_files("sparring") if relative(path) not in KEYWORD_EDGES]
    nothing_in([line for path in files for line in takes_any_keyword(relative(path), path.read_text())])


def test_modules_are_imported_by_name_at_named_edges() -> None:
    files = [path for path in python_files("sparring") if not {relative(path), relative(path.parent)} & LAZY_EDGES]
    nothing_in([line for path in files for line in imports_by_name(relative(path), path.read_text())])


def test_exceptions_to_the_rules_are_named_here() -> None:
    files = [path for path in python_files("sparring", "tests", "examples", "benchmarks") if path != Path(__file__)]
    nothing_in([line for path in files for line in silenced(relative(path), path.read_text())])
    named = {(rule, name) for rule, names in EDGES.items() for name in names}
    assert {(rule, name) for rule, name in named if f"# noqa: {rule} - " not in (ROOT / name).read_text()} == set()


def test_the_code_is_ascii() -> None:
    files = python_files("sparring", "examples")
    nothing_in([relative(path) for path in files if not path.read_text(encoding="utf-8").isascii()])


def test_the_budget_sees_what_is_over_it() -> None:
    long_function = "def f() -> None:\n" + "    pass\n" * FUNCTION_LINES
    assert over_budget("a.py", long_function) == ["a.py:1 f: 51 lines"]
    assert over_budget("a.py", long_function.replace("    pass\n", "", 1)) == []
    assert over_budget("a.py", "x = 1\n" * (FILE_LINES + 1)) == ["a.py: 401 lines"]
    assert takes_any_keyword("a.py", "def f(**options: int) -> None: ...") == ["a.py:1 f(**options)"]
    assert takes_any_keyword("a.py", "def f(*args: P.args, **kwargs: P.kwargs) -> None: ...") == []
    assert imports_by_name("a.py", "importlib.import_module('torch')") == ["a.py:1 import_module"]
    assert silenced("a.py", "x = 1  # noqa\ny = 1  # noqa: BLE001 - why not\n") == [
        "a.py:1 # noqa",
        "a.py:2 # noqa: BLE001 - why not",
    ]
    edge = min(EDGES["BLE001"])
    assert silenced(edge, "x = 1  # noqa: BLE001 - crosses threads\n") == []
    assert silenced(edge, "x = 1  # noqa: BLE001\n") == [f"{edge}:1 # noqa: BLE001"]


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_names_everything_it_offers(name: str) -> None:
    facade = importlib.import_module(name)
    nothing_in(incomplete(facade.__all__, imported_names(Path(str(facade.__file__)).read_text())))
    nothing_in([public for public in facade.__all__ if not hasattr(facade, public)])


def imported_names(source: str) -> set[str]:
    """The public names that the `from ... import` lines of a facade bring in."""
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    names = {
        alias.asname or alias.name
        for node in imports
        if str(node.module).startswith("sparring")
        for alias in node.names
    }
    return {name for name in names if not name.startswith("_")}


def incomplete(offered: list[str], imported: set[str]) -> list[str]:
    twice = [name for name in sorted(set(offered)) if offered.count(name) > 1]
    return twice + sorted(imported - set(offered))


def test_an_incomplete_facade_is_seen() -> None:
    imported = imported_names(
        "from sparring.a import One, Two as Second\nfrom sparring.b import _hidden\nfrom os import path\n"
    )
    assert incomplete(["One", "One"], imported) == ["One", "Second"]


PLANTED = {
    "ANN201": "def f():\n    pass\n",
    "ASYNC230": "async def f() -> None:\n    open('a')\n",
    "BLE001": "try:\n    pass\nexcept Exception:\n    pass\n",
    "C901": "def f(x: int) -> int:\n"
    + "".join(f"    if x > {n}:\n        x += 1\n" for n in range(10))
    + "    return x\n",
    "FIX002": "x = 1  # TODO: later\n",
    "PGH003": "x: int = ''  # type: ignore\n",
    "PLC0415": "def f() -> None:\n    import json\n",
    "PLR0915": "def f() -> None:\n" + "    print()\n" * 41,
    "PLR0917": "def f(a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> None:\n    pass\n",
    "S307": "eval('1')\n",
    "T201": "print(1)\n",
    "TID251": "import asyncio\n",
    "TID252": "from . import arrays\n",
}


def ruff_codes(source: str, file: str = "sparring/rollout/planted.py") -> set[str]:
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", f"--stdin-filename={file}", "-"]
    done = subprocess.run(command, check=False, cwd=ROOT, input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return set(re.findall(r": ([A-Z]+\d+) ", done.stdout))


@pytest.mark.parametrize("code", PLANTED)
def test_ruff_catches(code: str) -> None:
    assert code in ruff_codes(PLANTED[code])


def test_ruff_notices_a_folder_that_is_no_package() -> None:
    assert ruff_codes("", "sparring/attic/planted.py") == {"INP001"}


@pytest.mark.parametrize(
    "source",
    [
        "from asyncio import gather\n",
        "import asyncio.queues\n",
        "import time\n\ntime.sleep(1)\n",
        "import os\n\nprint(os.environ)\n",
        "import os\n\nos.getenv('A')\n",
        "from unittest.mock import patch\n",
    ],
)
def test_ruff_bans(source: str) -> None:
    assert "TID251" in ruff_codes(source)


def test_only_the_command_line_prints_and_reads_the_environment() -> None:
    source = "import os\n\nprint(os.environ)\n"
    assert ruff_codes(source, "sparring/cli/planted.py") == set()
    assert ruff_codes(source, "sparring/learner/planted.py") == {"T201", "TID251"}


ROOMS = ("environments", "agents", "rollout", "learner", "cli", "backend")
PLANTED_IMPORTS = {
    "environments/a.py": "import sparring.backend\nimport math_verify\n",
    "backend/a.py": "import sparring.agents\nimport torch\n",
    "learner/a.py": "import torch\n",
    "rollout/a.py": "import wandb\n",
    "rollout/b.py": "import inspect_ai\n",
    "agents/one/a.py": "import sparring.agents.two.b\n",
    "agents/two/a.py": "import sparring.agents.one.b\n",
}


def lint_imports(folder: Path, planted: dict[str, str]) -> dict[str, bool]:
    """Contract name -> kept, for a tree of empty rooms with some files in them."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    package = folder / "sparring"
    for name in ("__init__.py", "errors.py", "arrays.py", *(f"{room}/__init__.py" for room in ROOMS)):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    for part in ("one", "two"):
        for name in ("__init__.py", "b.py"):
            (package / "agents" / part / name).parent.mkdir(exist_ok=True)
            (package / "agents" / part / name).touch()
    for name, source in planted.items():
        (package / name).write_text(source)
    program = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    command = [sys.executable, "-I", "-c", program, "--no-cache"]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    results = re.findall(r"^(.+?) (KEPT|BROKEN)", done.stdout, flags=re.MULTILINE)
    assert done.returncode == any(kept == "BROKEN" for _, kept in results), done.stdout + done.stderr
    return {name: kept == "KEPT" for name, kept in results}


@pytest.mark.parametrize(("planted", "kept"), [({}, True), (PLANTED_IMPORTS, False)], ids=["sound", "planted"])
def test_every_import_contract_can_fail(tmp_path: Path, planted: dict[str, str], kept: bool) -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert lint_imports(tmp_path, planted) == {contract["name"]: kept for contract in contracts}


def test_a_new_room_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "sparring").mkdir()
    (tmp_path / "sparring" / "attic.py").touch()
    contracts = lint_imports(tmp_path, {})
    assert [name for name, kept in contracts.items() if not kept] == [contract_named("Rooms")]


def contract_named(start: str) -> str:
    (name,) = (
        contract["name"]
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        if contract["name"].startswith(start)
    )
    return str(name)


def unchecked_shapes(makefile: str, sources: dict[str, str]) -> list[str]:
    """Modules with jaxtyping annotations that no test run hooks, and hooked modules that do not exist."""
    hooked = {
        name for line in re.findall(r"^SHAPED\w* := (.+)$", makefile, flags=re.MULTILINE) for name in line.split(",")
    }
    hooked -= {"$(SHAPED)", "$(SHAPED_LEARNER)"}
    typed = {
        module for module, source in sources.items() if re.search(r"^from jaxtyping import", source, flags=re.MULTILINE)
    }
    return sorted((typed - hooked) | (hooked - sources.keys()))


def test_every_shape_annotation_is_checked() -> None:
    sources = {
        relative(path).removesuffix(".py").replace("/", "."): path.read_text() for path in python_files("sparring")
    }
    nothing_in(unchecked_shapes((ROOT / "Makefile").read_text(), sources))


def test_an_unchecked_shape_is_seen() -> None:
    makefile = "SHAPED := a.one,a.gone\nSHAPED := $(SHAPED),a.three\n"
    sources = {"a.one": "from jaxtyping import Float\n", "a.two": "from jaxtyping import Int\n", "a.three": ""}
    assert unchecked_shapes(makefile, sources) == ["a.gone", "a.two"]


def unrun_markers(makefile: str, markers: set[str]) -> list[str]:
    """Markers that some test carries although no make target insists on running their tests."""
    return sorted(name for name in markers if f"--must-run={name}" not in makefile)


def test_every_marked_test_is_run_by_some_make_target(pytestconfig: pytest.Config) -> None:
    gated = pytestconfig.stash[COLLECTED] & {"slow", *NEEDS}
    nothing_in(unrun_markers((ROOT / "Makefile").read_text(), gated))


def test_a_marker_that_runs_nowhere_is_seen() -> None:
    assert unrun_markers("test:\n\tpytest --must-run=model\n", {"model", "vllm"}) == ["vllm"]
