"""Files of mathematical problems, in the forms that the sets have."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from sparring.environments import MathTask, MathVerifier, math_tasks
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
