"""What verifiers and sandboxes cost, and that hostile answers do not hold anybody up.

    python -m benchmarks.environments [--runs 300]

Maths: a battery of 40 questions with 8 replies each, half of them plain numbers, through `MathVerifier(symbolic=True)` with
two workers, against math-verify alone on one core; then 300 good answers with four that never end, beside the same through a
pool of two threads. Sandboxes: runs of `print(1)` one after the other and four at once, against a bare `python -I -S` process;
the solutions of HumanEval; 200 runs and 200 comparisons at once, with the memory of all processes but this one (Linux only).
Needs the extras `maths`, `monty` and `humaneval`, and bubblewrap.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np

from benchmarks._maths import HOSTILE, boxed, cases, watched
from benchmarks._rows import Row, at_least, at_most, report
from sparring import Call, CodeVerifier, Limits, MathVerifier, Sandbox, human_eval

THREADS_SECONDS = 30.0
AT_ONCE = 200


def main() -> int:
    """Print the rows; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    rows = [*anyio.run(_speed), *anyio.run(_hostile), *anyio.run(_sandboxes, runs), *anyio.run(_human_eval)]
    return 0 if report("verifiers and sandboxes", [*rows, *anyio.run(_crowd)]) else 1


async def _speed() -> list[Row]:
    """Answers per second and core."""
    plain = _child("plain", "0")
    verify, battery = MathVerifier(symbolic=True), cases()
    for _ in range(2):  # the first time, one of the workers may still start
        await _right(verify, battery[::8])
    began = time.perf_counter()
    right = await _right(verify, battery)
    ours = time.perf_counter() - began
    per_core = (len(battery) / ours / verify.workers, len(battery) / plain["seconds"])
    return [
        Row(name="maths, answers per second and core, math-verify alone", figure=f"{per_core[1]:.0f}"),
        Row(name="maths, answers per second and core, MathVerifier", figure=f"{per_core[0]:.0f}"),
        at_least("maths, MathVerifier / math-verify", per_core[0] / per_core[1], 1.5),
        _all("maths, judged right, MathVerifier", right, len(battery)),
        Row(name="maths, judged right, math-verify", figure=f"{plain['right']} of {len(battery)}"),
    ]


async def _right(verify: MathVerifier, battery: list[tuple[str, str, bool]]) -> int:
    """How many of the battery were judged as they should be, all asked at once."""
    found: list[bool] = []

    async def one(gold: str, answer: str, equal: bool) -> None:
        found.append((await verify(boxed(answer), gold)).value == float(equal))

    async with anyio.create_task_group() as group:
        for case in battery:
            group.start_soon(one, *case)
    return sum(found)


async def _hostile() -> list[Row]:
    """300 good answers beside four that never end."""
    verify, battery = MathVerifier(symbolic=True, deadline=2.0), cases()[:300]
    errors: list[str] = []

    async def bad(answer: str) -> None:
        errors.append((await verify(boxed(answer), "\\sqrt{2}")).error)

    async def work() -> int:
        async with anyio.create_task_group() as group:
            for answer in HOSTILE:
                group.start_soon(bad, answer)
            return await _right(verify, battery)

    right, seconds, lags = await watched(work)
    threads = _child("threads", str(THREADS_SECONDS))
    return [
        _all("hostile, good answers judged right", right, len(battery)),
        _all("hostile, errors", sum("took longer" in error for error in errors), len(HOSTILE)),
        Row(name="hostile, seconds", figure=f"{seconds:.1f}"),
        at_most("hostile, lag of the event loop, p99, ms", 1000 * float(np.percentile(lags, 99)), 50),
        Row(name=f"threads, good ones right after {threads['seconds']:.0f} s", figure=f"{threads['right']:.0f} of 300"),
        Row(name="threads, longest lag of the event loop, ms", figure=f"{1000 * threads['lag']:.0f}"),
    ]


async def _sandboxes(runs: int) -> list[Row]:
    """Ways in turn, so that a noisy machine is noisy for all."""
    box = Sandbox(at_once=4)
    command = [sys.executable, "-I", "-S", "-c", "print(1)"]
    alone: list[float] = []
    bare: list[float] = []
    await box.run("")
    for _ in range(runs):
        began = time.perf_counter()
        assert (await box.run("print(1)")).output == "1\n"
        between = time.perf_counter()
        await anyio.run_process(command)
        alone.append(1000 * (between - began))
        bare.append(1000 * (time.perf_counter() - between))
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(runs):
            group.start_soon(box.run, "print(1)")
    rate = runs / (time.perf_counter() - began)
    monty = await _monty(runs)
    middle = statistics.median(alone), statistics.median(bare)
    return [
        at_most("sandbox, a run, median ms", middle[0], 6),
        Row(name="bare python -I -S, median ms", figure=f"{middle[1]:.1f}"),
        at_most("sandbox / bare python", middle[0] / middle[1], 1.0),
        at_least("sandbox, runs per second, four at once", rate, 200),
        at_most("monty, a call, median ms", monty, 1),
    ]


async def _monty(runs: int) -> float:
    """Milliseconds, the median."""
    box, took = Sandbox(tier="monty"), list[float]()
    for n in range(runs):
        began = time.perf_counter()
        result = await box.run("def double(x):\n    return 2 * x", calls=[Call(name="double", args=[n])])
        took.append(1000 * (time.perf_counter() - began))
        assert result.values == (2 * n,)
    return statistics.median(took)


async def _human_eval() -> list[Row]:
    """The solutions, one after the other."""
    verify, passed, took = CodeVerifier(), 0, list[float]()
    for task in human_eval():
        began = time.perf_counter()
        passed += (await verify(task.solution, task.entry, task.tests)).passed
        took.append(1000 * (time.perf_counter() - began))
    return [
        _all("HumanEval, solutions that pass", passed, len(took)),
        at_most("HumanEval, mean ms", statistics.mean(took), 25),
        Row(name="HumanEval, median ms", figure=f"{statistics.median(took):.1f}"),
        Row(name="HumanEval, slowest, ms", figure=f"{max(took):.0f}"),
    ]


async def _crowd() -> list[Row]:
    """The memory of everything that was started, while 200 sandboxes and 200 comparisons are there at once."""
    box = Sandbox(at_once=AT_ONCE, limits=Limits(seconds=60))
    verify, peak = MathVerifier(symbolic=True), 0.0
    done: list[str] = []

    async def run() -> None:
        done.append((await box.run("import time\ntime.sleep(5)\nprint(1)")).output)

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(run)
        for n in range(AT_ONCE):
            group.start_soon(verify, boxed(f"\\sqrt{{{4 * n + 8}}}"), f"2\\sqrt{{{n + 2}}}")
        while len(done) < AT_ONCE:
            await anyio.sleep(0.5)
            peak = max(peak, sum(map(_mib, _descendants("self"))))
    return [
        _all("200 sandboxes beside 200 comparisons, done", done.count("1\n"), AT_ONCE),
        at_most("and the memory of their processes, MiB", peak, 1536),
    ]


def _descendants(process: str) -> Iterator[str]:
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _read(task).split():
            yield child
            yield from _descendants(child)


def _mib(process: str) -> float:
    """Its share of memory: what several have together is divided among them."""
    found = re.search(r"^Pss:\s+(\d+)", _read(Path(f"/proc/{process}/smaps_rollup")), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


def _child(way: str, seconds: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks._maths", way, seconds]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def _all(name: str, count: int, of: int) -> Row:
    return Row(name=name, figure=f"{count} of {of}", target=f"{of}", met=count == of)


if __name__ == "__main__":
    sys.exit(main())
