"""Symbolic answers: right and wrong ones, hostile ones, and workers that are killed at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from sparring.environments import MathVerifier, Score
from sparring.environments.expressions import _workers, compared, explosive
from sparring.errors import SettingError
from tests.environments.conftest import episode, saying

ROOT = Path(__file__).parents[2]
VERIFY = MathVerifier(symbolic=True, deadline=10)


def boxed(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("42", "42.0"),
        ("\\frac{1}{2}", "0.5"),
        ("x^2+2x+1", "(x+1)^2"),
        ("2\\sqrt{3}", "\\sqrt{12}"),
        ("\\{1,2\\}", "\\{2,1\\}"),
        ("[0,1)", "[0, 1)"),
        ("\\left(\\frac{2}{3}\\right)^{10}", "\\frac{1024}{59049}"),
        ("5", "5\\text{ apples}"),
        ("5", "x = 5"),
        ("y=2x+1", "y=1+2x"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"),
        ("\\text{B}", "B"),
    ],
)
async def test_equal_expressions(gold: str, answer: str) -> None:
    assert (await VERIFY(boxed(answer), gold)).value == 1.0


@pytest.mark.parametrize(
    "gold, answer",
    [
        ("42", "43"),
        ("\\frac{1}{3}", "0.333333"),
        ("\\pi", "3.141593"),
        ("x^2", "x^3"),
        ("42", "41,42"),
        ("42", "42 \\text{ or } 43"),
        ("\\{1,2\\}", "\\{1,2,3\\}"),
        ("(0,1)", "[0,1]"),
        ("x", "__import__('os').system('touch /tmp/reached')"),
        ("x", ""),
        ("2", "1} \\text{ no, } \\boxed{2"),
    ],
)
async def test_other_expressions(gold: str, answer: str) -> None:
    assert (await VERIFY(boxed(answer), gold)).value == 0.0


EXPLOSIVE = [
    "9^{9^{9^9}}", "9^{9^9}", "10^{10^{10}}", "2^{999999999}", "2^{99999999999}", "99999999!", "(20!)!", "((100!)!)!",
    "\\binom{10^9}{5\\cdot10^8}", "\\sum_{k=1}^{10^9} k", "\\prod_{k=1}^{1000000}k", "\\Gamma(10^9)", "10^{99999999} \\mod 7",
    "\\sqrt2+10^{-10^7}", "(" * 200 + "x" + ")" * 200, "1 " * 50000, "7" * 20000, "\\sin(" * 60 + "x" + ")" * 60,
    "\\{" + ",".join(map(str, range(3000))) + "\\}", "1} + {2",
]  # fmt: skip


@pytest.mark.parametrize("answer", EXPLOSIVE)
def test_what_would_explode_is_seen_at_once(answer: str) -> None:
    before = time.process_time()
    assert explosive(answer)
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize(
    "answer",
    ["x^{100}", "2^{2023}", "10^{-9}", "20!", "n!", "(n+1)!", "\\binom{100}{50}", "\\sum_{k=1}^{100} k^2", "e^{x^2}",
     "\\frac{1}{2}", "[0, 1)", "\\left(\\frac{2}{3}\\right)^{10}", "\\int_0^1 x^2 dx"],
)  # fmt: skip
def test_what_answers_look_like_passes(answer: str) -> None:
    assert not explosive(answer)


@pytest.mark.parametrize("answer", EXPLOSIVE)
async def test_an_answer_beyond_bounds_is_wrong(answer: str) -> None:
    assert (await VERIFY(boxed(answer), "\\sqrt{2}")).value == 0.0


HANGS = "(a+b+c+d+e+f+g+h)^{40}"


async def test_a_comparison_that_takes_long_is_an_error_and_harms_no_other() -> None:
    verify = MathVerifier(symbolic=True, deadline=3)
    scores: dict[int, Score] = {}

    async def one(n: int) -> None:
        scores[n] = await verify(boxed(HANGS if n % 5 == 0 else f"\\sqrt{{{4 * n}}}"), f"2\\sqrt{{{n}}}")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for n in range(1, 21):
                group.start_soon(one, n)
    hung = {n for n in scores if n % 5 == 0}
    assert {scores[n].error for n in hung} == {"MathVerifier: comparing took longer than 3 s"}
    assert {scores[n].value for n in scores.keys() - hung} == {1.0}


async def test_workers_may_be_killed_at_any_time() -> None:
    assert (await VERIFY(boxed("\\sqrt{12}"), "2\\sqrt{3}")).value == 1.0
    for worker in list(_workers(2)._idle):
        os.kill(worker.process.pid, signal.SIGKILL)
    assert (await VERIFY(boxed("\\sqrt{12}"), "2\\sqrt{3}")).value == 1.0


async def test_a_worker_killed_while_it_compares_is_replaced_and_another_asked() -> None:
    verify = MathVerifier(symbolic=True, deadline=3, workers=1)
    scores, began = [], anyio.current_time()

    async def hostile() -> None:
        scores.append(await verify(boxed(HANGS), "2\\sqrt{3}"))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(hostile)
            await anyio.sleep(2)
            await anyio.to_thread.run_sync(kill_busiest)
    assert scores[0].error.endswith("took longer than 3 s")
    assert anyio.current_time() - began > 4.5, "the other one had its own three seconds"


def kill_busiest() -> None:
    """Kill the worker that computes most."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    workers = [pid for pid in children if "maths_worker" in Path(f"/proc/{pid}/cmdline").read_text()]
    before = {pid: used(pid) for pid in workers}
    threading.Event().wait(0.2)
    os.kill(int(max(workers, key=lambda pid: used(pid) - before[pid])), signal.SIGKILL)


def used(pid: str) -> float:
    return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


async def test_a_gold_that_cannot_be_read_is_an_error() -> None:
    score = await VERIFY(boxed("1"), "\\undefined{?}{")
    assert score.value is None
    assert "cannot be read" in score.error


async def test_an_episode_journals_what_a_worker_said_and_nothing_else() -> None:
    with episode(saying()) as running:
        assert (await VERIFY(boxed("\\sqrt{12}"), "2\\sqrt{3}")).value == 1.0
        assert (await VERIFY(boxed("2\\sqrt{3}"), "2\\sqrt{3}")).value == 1.0
        assert (await VERIFY(boxed("0.50"), "1/2")).value == 1.0
        assert (await VERIFY("?", "\\pi")).value == 0.0
    assert [name for name, _, _ in running.effects] == ["sparring.environments.expressions:compared"]


def test_it_works_from_any_thread_and_loop() -> None:
    async def once() -> float:
        return float(await VERIFY(boxed("\\sqrt{12}"), "2\\sqrt{3}"))

    async def main() -> list[float]:
        found = []

        async def one(backend: str) -> None:
            found.append(await anyio.to_thread.run_sync(lambda: anyio.run(once, backend=backend)))

        async with anyio.create_task_group() as group:
            for n in range(4):
                group.start_soon(one, ("asyncio", "trio")[n % 2])
        return found

    assert anyio.run(main) == [1.0] * 4


def test_nothing_outlives_a_killed_host() -> None:
    program = (
        "import anyio, os\nfrom sparring.environments.expressions import compared\n"
        "async def main():\n    await compared('x', 'y', 10, 60, 1)\n    print('ready', flush=True)\n"
        f"    await compared('2', {HANGS!r}, 10, 2, 1)\nanyio.run(main)"
    )
    host = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    assert host.stdout.readline() == "ready\n"
    pids = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
    pids += [p for t in Path(f"/proc/{host.pid}/task").iterdir() for p in (t / "children").read_text().split()]
    assert pids
    host.kill()
    host.communicate()
    for _ in range(1000):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"still there: {pids}")


@pytest.mark.parametrize(
    "settings, message",
    [({"deadline": 0}, "deadline=0"), ({"decimals": 0}, "decimals=0"), ({"workers": True}, "workers=True")],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MathVerifier(**settings)


async def test_expressions_need_the_setting() -> None:
    with pytest.raises(SettingError, match="symbolic=True"):
        await MathVerifier()("\\boxed{1}", "\\pi")


def test_without_math_verify_it_is_named() -> None:
    program = (
        "import sys\nfrom sparring.environments import MathVerifier\nMathVerifier(symbolic=True)\nprint('there')\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\nMathVerifier(symbolic=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "there\n"
    assert "pip install 'sparring[maths]'" in done.stderr


async def test_a_comparison_alone() -> None:
    assert await compared("x+x", "2x", 10, 10, 2) == {"equal": True}
