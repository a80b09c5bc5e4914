"""Files of mathematical problems, in the forms that the sets have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from sparring.environments import MathTask, MathVerifier, math_tasks
from sparring.environments.hub import hub
from sparring.errors import SettingError


def written(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gsm8k(tmp_path: Path) -> None:
    file = written(
        tmp_path / "train.jsonl",
        {"question": "a?", "answer": "3 - 1 = <<3-1=2>>2\n#### 2"},
        {"question": "b?", "answer": "That is a lot.\n#### 1,234"},
    )
    assert math_tasks(file) == [MathTask("a?", "2"), MathTask("b?", "1,234")]


def test_math_and_what_is_like_it(tmp_path: Path) -> None:
    file = written(
        tmp_path / "test.jsonl",
        {"problem": "c?", "level": "Level 5", "type": "Algebra", "solution": "It is $\\boxed{\\frac{\\pi}{2}}$."},
        {"problem": "d?", "solution": "as in $\\boxed{1}$", "answer": "x+1", "unique_id": "test/1.json"},
    )
    tasks = math_tasks(file)
    assert tasks == [MathTask("c?", "\\frac{\\pi}{2}"), MathTask("d?", "x+1")]
    for task in tasks:
        assert anyio.run(MathVerifier(symbolic=True), f"\\boxed{{{task.answer}}}", task.answer).value == 1.0


@pytest.mark.parametrize(
    "row",
    [
        {"question": "e?"},
        {"answer": "1"},
        {"problem": "f?", "solution": "one"},
        {"problem": "g?", "solution": "\\boxed{1} or \\boxed{2}"},
    ],
)
def test_a_problem_without_question_or_answer_is_named(row: dict[str, str], tmp_path: Path) -> None:
    file = written(tmp_path / "some.jsonl", {"question": "a?", "answer": "#### 2"}, row)
    with pytest.raises(SettingError, match=r"some\.jsonl, problem 2: it needs a `question` or `problem`"):
        math_tasks(file)


# The real library, on a folder that is laid out as a set of the hub is.

ROWS = [{"question": f"{n}+1?", "answer": f"one more\n#### {n + 1}"} for n in range(3)]


@dataclass(frozen=True)
class Question:
    question: str


@dataclass(frozen=True)
class Other:
    question: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set")
    written(path / "train.jsonl", *ROWS)
    written(path / "test.jsonl", ROWS[2])
    return path


def test_a_set_of_the_hub_is_read(folder: Path, tmp_path: Path) -> None:
    assert math_tasks(hub(folder, cache=tmp_path)) == [MathTask(f"{n}+1?", str(n + 1)) for n in range(3)]
    assert hub(folder, Question, split="test", cache=tmp_path) == [Question("2+1?")]


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"split='valid'.*Unknown split"):
        hub(folder, split="valid", cache=tmp_path)
    with pytest.raises(SettingError, match="nowhere"):
        hub(tmp_path / "nowhere", cache=tmp_path)
    with pytest.raises(SettingError, match="Expected `int`, got `str`"):
        hub(folder, Other, cache=tmp_path)


def test_rows_without_an_answer_are_named() -> None:
    with pytest.raises(SettingError, match="rows, problem 2"):
        math_tasks([*ROWS[:1], {"question": "?"}])
