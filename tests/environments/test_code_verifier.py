"""The code verifier: right functions pass, wrong and forged ones do not, and what nobody can judge is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from sparring.environments import CodeTask, CodeVerifier, Ending, Example, Report, code_tasks, human_eval
from sparring.environments.code_verifier import code_of
from sparring.errors import SettingError
from tests.environments.conftest import episode, saying

ROOT = Path(__file__).parents[2]
VERIFY = CodeVerifier(deadline=5)
TESTS = ["assert double(2) == 4", "assert double([1]) == [1, 1]", "assert abs(double(0.1) - 0.2) < 1e-6"]


async def judged(code: str, tests: Any = None) -> Report:
    with anyio.fail_after(60):
        return await VERIFY(f"Here it is:\n```python\n{code}\n```\n", "double", TESTS if tests is None else tests)


async def test_a_right_function_passes() -> None:
    report = await judged("def double(x):\n    return x + x")
    assert report.passed
    assert (report.score.value, report.score.parts) == (1.0, {"passed": 1.0, "tampered": 0.0})
    assert report.text == "All tests passed (3)."


async def test_a_wrong_function_fails_with_the_test_that_found_it() -> None:
    report = await judged("def double(x):\n    return x * 2 if x != [1] else []")
    assert not report.passed
    assert (report.ending, report.score.value) == (Ending.WRONG, 0.0)
    assert report.score.parts["passed"] == pytest.approx(1 / 3)
    assert "assert double([1]) == [1, 1]" in report.text


async def test_a_failing_function_shows_its_own_traceback() -> None:
    report = await judged("def double(x):\n    return 2 * y")
    assert report.ending is Ending.EXCEPTION
    assert 'File "solution.py", line 2, in double' in report.text
    assert "NameError: name 'y' is not defined" in report.text


CHEATS = {
    "it exits": "import os\ndef double(x): os._exit(0)",
    "it exits at once": "import sys\nsys.exit(0)",
    "it is never equal to less than everything": (
        "class A:\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0\n"
        "    def __abs__(self): return 0\ndef double(x): return A()"
    ),
    "a kind of int": "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef double(x): return A()",
    "patched assertions": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.AssertionError = KeyError\ndef double(x): return 0"
    ),
    "it looks for what is expected": (
        "import gc\ndef double(x):\n    found = [o for o in gc.get_objects() if 'assert double' in repr(o)]\n"
        "    return 4 if found else 0"
    ),
    "it walks the frames": (
        "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name in frame.f_locals: frame.f_locals[name] = 4\n        frame = frame.f_back\n    return None"
    ),
    "it prints what a test would": "def double(x):\n    print('All tests passed (3).')",
    "it answers before it is asked": (
        "import os\nm = b'{\"value\": 4}'\nfor _ in range(5): os.write(3, len(m).to_bytes(4, 'big') + m)\n"
        "def double(x): return 4"
    ),
    "it never answers": "def double(x):\n    while True: pass",
    "it fills the memory": "def double(x): return [0] * 10**10",
    "nothing": "",
}


@pytest.mark.parametrize("name", CHEATS)
async def test_no_cheat_passes(name: str) -> None:
    report = await judged(CHEATS[name])
    assert report.score.value == 0.0, report


async def test_leaving_is_counted_as_tampering() -> None:
    assert (await judged(CHEATS["it exits"])).score.parts["tampered"] == 1.0
    assert (await judged(CHEATS["it never answers"])).ending is Ending.TIME
    assert (await judged(CHEATS["it fills the memory"])).ending is Ending.EXCEPTION


@pytest.mark.parametrize("tests", ["x = 1", "assert 1 == 2", "def broken(:", ["import nowhere_to_be_found"]])
async def test_tests_that_do_not_test_are_an_error(tests: Any) -> None:
    report = await judged("def double(x): return x + x", tests)
    assert report.score.value is None
    assert "do not call double" in report.score.error


async def test_programs_are_compared_by_what_they_print() -> None:
    examples = [Example("1 2\n", "3\n"), Example("4 5\n", "9")]
    right = "import sys\na, b = map(int, input().split())\nprint(a + b, ' ')\nsys.stderr.write('a remark')"
    assert (await judged(right, examples)).passed
    wrong = await judged("print(3)", examples)
    assert (wrong.ending, wrong.score.parts["passed"]) == (Ending.WRONG, 0.5)
    assert "With the input\n4 5\n\nit printed\n3\n\ninstead of\n9" in wrong.text
    assert (await judged("print(3)\nraise KeyError(1)", examples)).ending is Ending.EXCEPTION
    assert (await judged("import os\nos._exit(0)", examples)).score.value == 0.0


async def test_the_deadline_is_for_all_inputs_together() -> None:
    slow = "import time\ntime.sleep(0.5)\nprint(input())"
    report = await CodeVerifier(deadline=1)(slow, "", [Example(str(n), str(n)) for n in range(5)])
    assert (report.ending, report.score.value) == (Ending.TIME, 0.0)


SLOW_AT_1 = "import time\ndef double(x):\n    time.sleep(60 if x == 1 else 0.4)\n    return 2 * x"


async def test_one_test_may_have_less_time_than_all() -> None:
    verify, began = CodeVerifier(deadline=30, test_deadline=1), anyio.current_time()
    report = await verify(SLOW_AT_1, "double", [f"assert double({n}) == {2 * n}" for n in (3, 2, 4, 1)])
    assert anyio.current_time() - began < 20
    assert (report.ending, report.score.value, report.score.parts["passed"]) == (Ending.TIME, 0.0, 0.75)
    assert "This test took longer than 1 s:\nassert double(1) == 2" in report.text


async def test_one_input_may_have_less_time_than_all() -> None:
    verify = CodeVerifier(deadline=30, test_deadline=1)
    slow = "import time\nn = int(input())\ntime.sleep(60 if n == 1 else 0.4)\nprint(n)"
    report = await verify(slow, "", [Example(str(n), str(n)) for n in (3, 2, 4, 1)])
    assert (report.ending, report.score.parts["passed"]) == (Ending.TIME, 0.75)
    assert "With the input\n1\nit took longer than 1 s" in report.text


async def test_without_tests_nothing_failed_but_nobody_is_rewarded() -> None:
    report = await judged("def double(x): return 0", [])
    assert report.passed
    assert report.score.error == "CodeVerifier: there are no tests"


async def test_tests_of_other_kinds_are_refused() -> None:
    for tests in (["assert double(1) == 2", Example("1", "2")], [("1", "2")]):
        with pytest.raises(SettingError, match="must be Python as text"):
            await judged("def double(x): return 0", tests)


async def test_more_replies_than_places_are_judged_in_turn() -> None:
    found = []

    async def one(n: int) -> None:
        found.append((await judged("def double(x):\n    return x + x" if n % 2 else "def double(x): return x")).passed)

    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(one, n)
    assert sorted(found) == [False] * 10 + [True] * 10


async def test_an_episode_journals_the_verdict() -> None:
    with episode(saying()) as running:
        assert (await judged("def double(x): return x + x")).passed
    assert [name for name, _, _ in running.effects] == ["sparring.environments.code_verifier:judged"]


@pytest.mark.parametrize(
    "reply, code",
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb\n```\nx = 2\n```", "x = 2\n"),
        ("```py\nx = 1\n", "```py\nx = 1\n"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
    ],
)
def test_the_last_block_is_the_code(reply: str, code: str) -> None:
    assert code_of(reply) == code


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="seconds=0"):
        CodeVerifier(deadline=0)
    for wrong in (0, -1, float("nan"), True, 11.0):
        with pytest.raises(SettingError, match=f"test_deadline={wrong!r}"):
            CodeVerifier(test_deadline=wrong)
    with pytest.raises(SettingError, match="tier='container'"):
        CodeVerifier(tier="container")  # type: ignore[arg-type]


def test_without_a_sandbox_nobody_judges() -> None:
    program = (
        "import anyio\nfrom sparring.environments import CodeVerifier\n"
        "print(anyio.run(CodeVerifier(), 'def f(): return 1', 'f', 'assert f() == 1').score)"
    )
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "value=None" in done.stdout
    assert "apt-get install bubblewrap" in done.stdout


def test_problems_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(
        json.dumps({"prompt": "Write f.", "entry": "f", "tests": ["assert f() == 1"], "more": 1, "solution": "s"})
    )
    (task,) = code_tasks(file)
    assert task.solution == "s"
    assert (task.prompt, task.entry, task.tests, task.examples) == ("Write f.", "f", ["assert f() == 1"], [])


def test_human_eval_is_read_from_its_package() -> None:
    tasks = human_eval()
    assert len(tasks) == 164
    assert tasks[0].entry == "has_close_elements"
    assert tasks[0].examples == [
        "assert has_close_elements([1.0, 2.0, 3.0], 0.5) == False",
        "assert has_close_elements([1.0, 2.8, 3.0, 4.0, 5.0, 2.0], 0.3) == True",
    ]
    assert all("canonical" not in task.prompt for task in tasks)


def test_every_solution_of_human_eval_passes_and_no_empty_function_does() -> None:
    verify = CodeVerifier(at_once=os.cpu_count() or 1, deadline=30)
    failed, passed = [], []

    async def one(task: CodeTask) -> None:
        report = await verify(task.solution, task.entry, task.tests)
        if not report.passed:
            failed.append((task.name, report))
        empty = await verify(f"def {task.entry}(*args): pass", task.entry, task.tests)
        if empty.score.value != 0.0:
            passed.append((task.name, empty))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for task in human_eval():
                group.start_soon(one, task)

    anyio.run(main)
    assert (failed, passed) == ([], [])


def test_the_examples_of_human_eval_are_right_for_its_solutions() -> None:
    async def main() -> tuple[list[str], int]:
        rows = [task for task in human_eval() if task.examples]
        wrong = [task.name for task in rows if not (await VERIFY(task.solution, task.entry, task.examples)).passed]
        return wrong, len(rows)

    wrong, with_examples = anyio.run(main)
    assert (wrong, with_examples > 60) == (["HumanEval/47"], True), "that docstring is wrong itself, as is known"
