"""What of a user's files counts as the source of a function: what it needs, wherever that stands, and nothing else."""

import importlib
import linecache
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sparring.environments import Environment, FunctionEnvironment, Seat, environment
from sparring.environments.source import closed_over, source_digests

GAME = '''
"""The rules."""

import re
from dataclasses import dataclass

from helpers import WORDS, judge
from sparring import Seat, environment

PATTERN = re.compile("a+")
BONUS: float = 1.0
TABLE = {}
TABLE["a"] = 1
OTHER = 7


@dataclass(frozen=True)
class Task:
    text: str


def bonus(text: str) -> float:
    return BONUS * len(PATTERN.findall(text)) * TABLE["a"]


@environment
async def game(task: Task, solver: Seat) -> float:
    OTHER = await solver.ask(task.text)
    return judge(OTHER.text, WORDS) + bonus(OTHER.text)


def unrelated() -> int:
    return OTHER


if __name__ == "__main__":
    print(unrelated())
'''

HELPERS = """
import math
import textwrap

from deeper.parts import scale as scaled

WORDS = ["x"]
WORDS.append("y")


def judge(text, words):
    import lists

    return scaled(sum(word in text for word in words)) + math.pi * 0 + lists.ALL[0]


def never_used():
    return textwrap.dedent("")
"""

FILES = {
    "rules.py": GAME,
    "helpers.py": HELPERS,
    "lists.py": "from starred import *\n\nALL = [ZERO]\n",
    "starred.py": "ZERO = 0\nONE = 1\n",
    "deeper/__init__.py": "",
    "deeper/parts.py": "from . import numbers\n\n\ndef scale(value):\n    return value * numbers.FACTOR\n",
    "deeper/numbers.py": "FACTOR = 0.5\n\nprint\n",
}

Digests = Callable[..., dict[str, str]]


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digests]:
    """`digests(file=(old, new), ...)`: what counts of `rules:game` where so much of the files is other."""
    before = set(sys.modules)
    folders = iter(range(100))

    def forget() -> None:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("rules", "helpers", "lists", "starred", "deeper"):
                del sys.modules[name]

    def found(name: str = "game", **changes: tuple[str, str]) -> dict[str, str]:
        folder = tmp_path / str(next(folders))
        for path, text in FILES.items():
            old, new = changes.get(path.removesuffix(".py").replace("/", "_"), ("", ""))
            assert old in text
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text.replace(old, new) if old else text)
        forget()
        with monkeypatch.context() as patched:
            patched.syspath_prepend(folder)
            thing = getattr(importlib.import_module("rules"), name)
            return thing.fingerprint() if isinstance(thing, FunctionEnvironment) else source_digests(thing)

    yield found
    forget()


def test_everything_that_a_function_needs_is_named(digests: Digests) -> None:
    assert sorted(digests()) == [
        "deeper.numbers",
        "deeper.numbers:FACTOR",
        "deeper.parts:scale",
        "helpers:WORDS",
        "helpers:judge",
        "lists:ALL",
        "rules:BONUS",
        "rules:PATTERN",
        "rules:TABLE",
        "rules:Task",
        "rules:bonus",
        "rules:game",
        "starred:ZERO",
    ]
    assert sorted(digests("unrelated")) == ["rules:OTHER", "rules:unrelated"]
    assert sorted(digests("Task")) == ["rules:Task"]


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("rules", "task.text)", 'task.text + "?")', ["rules:game"]),
        ("rules", "@environment\n", '@environment(headline="x")\n', ["rules:game"]),
        ("rules", "BONUS: float = 1.0", "BONUS: float = 2.0", ["rules:BONUS"]),
        ("rules", '"a+"', '"b+"', ["rules:PATTERN"]),
        ("rules", 'TABLE["a"] = 1', 'TABLE["a"] = 2', ["rules:TABLE"]),
        ("rules", "text: str\n", 'text: str = "x"\n', ["rules:Task"]),
        ("rules", "WORDS, judge", "judge\nfrom helpers import WORDS", []),
        ("rules", "WORDS, judge", "judge\nfrom starred import ZERO as WORDS", ["helpers:WORDS", "rules:game"]),
        ("helpers", 'append("y")', 'append("z")', ["helpers:WORDS"]),
        ("helpers", "math.pi * 0", "math.e * 0", ["helpers:judge"]),
        ("lists", "[ZERO]", "[ZERO, 1]", ["lists:ALL"]),
        ("starred", "ZERO = 0", "ZERO = 2", ["starred:ZERO"]),
        ("deeper_numbers", "0.5", "0.25", ["deeper.numbers:FACTOR"]),
        ("deeper_parts", "value *", "2 * value *", ["deeper.parts:scale"]),
        ("rules", "OTHER = 7", "OTHER = 8", []),
        ("rules", "return OTHER", "return -OTHER", []),
        ("rules", '"""The rules."""', '"""The rules, once more."""\n\n\n', []),
        ("rules", "print(unrelated())", "print(2)", []),
        ("rules", "import Seat, environment", "import Run, Seat, environment", []),
        ("helpers", "import textwrap", "import textwrap, string", []),
        ("helpers", 'textwrap.dedent("")', "2", []),
        ("starred", "ONE = 1", "ONE = 3", []),
    ],
)
def test_a_change_is_named_where_it_is_made(
    digests: Digests, file: str, old: str, new: str, changed: list[str]
) -> None:
    before, now = digests(), digests(**{file: (old, new)})
    assert sorted(name for name in {**before, **now} if before.get(name) != now.get(name)) == changed


def test_the_same_files_elsewhere_are_the_same(digests: Digests) -> None:
    assert digests() == digests()


def test_what_is_not_needed_any_more_or_newly_is_named(digests: Digests) -> None:
    before, now = digests(), digests(rules=(" + bonus(OTHER.text)", ""))
    assert before.keys() - now.keys() == {"rules:bonus", "rules:BONUS", "rules:PATTERN", "rules:TABLE"}


# --------------------------------------------------------------------------------------------- functions that close over


def made(rounds: int, extra: Any = None) -> FunctionEnvironment[Any]:
    @environment
    async def closing(task: int, one: Seat) -> float:
        assert extra is None or later
        return float(rounds + helper())

    later: list[int] = []

    def helper() -> int:
        return 1 if rounds else later[0]

    return closing


def test_numbers_and_texts_that_a_function_closes_over_count() -> None:
    one, other = made(1).fingerprint(), made(2).fingerprint()
    held = f"what {__name__}:made.<locals>.closing closes over"
    assert one.keys() == other.keys() == {f"{__name__}:made", held}
    assert {name for name in one if one[name] != other[name]} == {held}
    assert made(1, extra=[3]).fingerprint() == made(1, extra={}).fingerprint(), "other things have no digest"


def test_what_is_bound_later_is_no_obstacle() -> None:
    """Decorating reads annotations in what the function closes over, where cells may still be empty."""

    def early() -> int:
        return late + sooner

    sooner = 3
    assert closed_over(early) == {"sooner": 3}
    late = 2
    assert closed_over(early) == {"late": 2, "sooner": 3}
    assert closed_over(Table) == closed_over(len) == {}

    @environment
    async def recursive(task: int, one: Seat) -> float:
        return float(recursive.name == "recursive")

    assert recursive.seats == ("one",)


def doubled(function: Callable[[], int]) -> Callable[[], int]:
    @wraps(function)
    def twice() -> int:
        return 2 * function()

    return twice


@doubled
def wrapped() -> int:
    return 1


class Table(Environment[int]):
    seats = ("one",)

    async def play(self, task: int, *players: Seat) -> float:
        return float(wrapped())


def test_classes_methods_wrappers_and_lambdas() -> None:
    here = __name__
    assert set(source_digests(wrapped)) == {f"{here}:wrapped", f"{here}:doubled"}
    assert set(Table().fingerprint()) == {f"{here}:Table", f"{here}:wrapped", f"{here}:doubled"}
    assert source_digests(Table().play) == source_digests(Table.play) == source_digests(Table)
    assert set(source_digests(SQUARES[0])) == {f"{here}:SQUARES"}


SQUARES: list[Callable[[int], int]] = [lambda x: x * x]


def test_what_has_no_file_counts_by_its_lines_or_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of a notebook, say."""
    path = tmp_path / "gone_cell.py"
    path.write_text("async def one(task, solver): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    cell = importlib.import_module("gone_cell")
    path.write_text("async def one(task solver): ...\n")
    by_lines = source_digests(cell.one)
    path.unlink()
    assert source_digests(cell.one) == {"gone_cell:one": sha256(b"gone_cell:one").hexdigest()}
    lines = ["async def one(task, solver):\n", "    return 1.0\n"]
    monkeypatch.setitem(linecache.cache, str(path), (sum(map(len, lines)), None, lines, str(path)))
    assert source_digests(cell.one) == {"gone_cell:one": sha256("".join(lines).encode()).hexdigest()}
    assert by_lines.keys() == {"gone_cell:one"}
    assert source_digests(int) == {"builtins:int": sha256(b"builtins:int").hexdigest()}


def test_sparring_and_installed_packages_are_not_followed() -> None:
    found = source_digests(test_classes_methods_wrappers_and_lambdas)
    assert not [name for name in found if name.startswith(("sparring", "pytest"))]
    assert {name.partition(":")[0] for name in found} == {__name__}
