"""The tier `monty`: quick where it can run the code, and never the judge of what it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparring.environments import Call, Ending, Limits, Sandbox
from sparring.environments.sandboxing.monty import attempted

ROOT = Path(__file__).parents[2]
BOX = Sandbox(tier="monty", limits=Limits(seconds=5))
SIMPLE = "def f(x, *, y=1):\n    print('f', x)\n    return (x + y, {x: [y]})"


def test_what_it_can_run_it_runs() -> None:
    assert attempted(SIMPLE, [("f", [2], {}), ("f", [3], {"y": 4})], Limits()) == (
        [(3, {2: [1]}), (7, {3: [4]})],
        "f 2\nf 3\n",
    )


BEYOND = {
    "a module that it lacks": "import heapq\ndef f(x): return heapq.nsmallest(1, [x, 9])[0]",
    "a class": "class A(int): pass\ndef f(x): return int(A(x))",
    "a file": "def f(x):\n    open('/tmp/x', 'w').write(str(x))\n    return int(open('/tmp/x').read())",
    "a pattern": "import re\ndef f(x): return len(re.findall(r'(?<=a)b', 'ab' * x))",
}


@pytest.mark.parametrize("returned", ["f", "[f]", "{1: f}", "(f,)", "'<b>'", "{'...'}", "print"])
def test_a_text_that_may_stand_for_something_else_is_not_believed(returned: str) -> None:
    assert attempted(f"def f(): return {returned}", [("f", [], {})], Limits()) is None


@pytest.mark.parametrize("name", BEYOND)
async def test_what_it_cannot_run_is_run_by_the_zygote(name: str) -> None:
    result = await BOX.run(BEYOND[name], calls=[Call(name="f", args=[2])])
    assert (result.ending, result.values, result.error) == (Ending.OK, (2,), "")


@pytest.mark.parametrize(
    "code, ending",
    [
        ("def f(x): return 1 / 0", Ending.EXCEPTION),
        ("def f(x):\n    while True: pass", Ending.TIME),
        ("def f(x): return 'x' * 10**10", Ending.MEMORY),
        ("def f(x): print('x' * 10**6)", Ending.OUTPUT),
        ("def f(x): return 'x' * 10**6", Ending.PROTOCOL),
        ("def f(x): return f", Ending.EXCEPTION),
        ("def g(x): return 1", Ending.EXCEPTION),
    ],
)
async def test_what_fails_is_judged_by_the_zygote(code: str, ending: Ending) -> None:
    limits = Limits(seconds=1)
    assert attempted(code, [("f", [2], {})], limits) is None
    result = await BOX.run(code, calls=[Call(name="f", args=[2])], limits=limits)
    assert result.ending is ending


async def test_programs_go_to_the_zygote() -> None:
    assert (await BOX.run("print(input())", stdin="a")).output == "a\n"


def test_without_it_its_package_is_named() -> None:
    program = (
        "import sys\nfrom sparring.environments import Sandbox\nSandbox(tier='monty')\nprint('there')\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\nSandbox(tier='monty')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "there\n"
    assert "pip install 'sparring[monty]'" in done.stderr
