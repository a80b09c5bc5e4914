"""The battery of maths answers, and what users do with it without this library: math-verify here and now, or in threads.

python -m benchmarks._maths plain|threads SECONDS      prints JSON: how many were right, seconds, lag of the event loop
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
from math_verify import parse, verify

Case = tuple[str, str, bool]
"""Gold, answer, whether they are equal."""

HOSTILE = (
    "(a+b+c+d+e+f+g+h)^{40}",
    "(a+b+c+d+e+f+g+h)^{39}",
    "\\left(a+b+c+d+e+f+g+h+k\\right)^{40}",
    "(x+y+z+u+v+w+a+b)^{41}",
)


def cases(golds: int = 40, replies: int = 8) -> list[Case]:
    """Groups of different replies to one question: numbers for half of the questions, expressions for the others."""
    return [
        (gold, answer, bool(reply % 2))
        for n in range(2, golds + 2)
        for reply in range(replies)
        for gold, answer in [_reply(n, reply) if reply % 2 else (_reply(n, 0)[0], _reply(n + reply + 1, 0, n)[1])]
    ]


def _reply(n: int, k: int, kind: int | None = None) -> tuple[str, str]:
    """A gold answer, and the same written in the `k`th way."""
    kinds = [
        (f"{n}", f"{n}.{'0' * (k + 1)}"),
        (f"\\frac{{{n}}}{{7}}", f"\\frac{{{(k + 1) * n}}}{{{7 * (k + 1)}}}"),
        (f"{n * n}", f"{n * n}.{'0' * (k + 1)}"),
        (f"{n},{n:03d}", f"{n}{n:03d}.{'0' * (k + 1)}"),
        (f"2\\sqrt{{{n}}}", f"\\frac{{{2 * (k + 1)}\\sqrt{{{n}}}}}{{{k + 1}}}"),
        (f"x^2+{n}x", f"x(x+{n + k})-{k}x"),
        (f"({n}, {n + 1})", f"({n + k}-{k},{n + 1})"),
        (f"\\{{1,{n}\\}}", f"\\{{{n},{k + 1}-{k}\\}}"),
    ]
    return kinds[(n if kind is None else kind) % len(kinds)]


def boxed(answer: str) -> str:
    """A reply."""
    return f"So the answer is \\boxed{{{answer}}}."


async def lag(until: Callable[[], bool], every: float = 0.005) -> list[float]:
    """How late the event loop came back, in seconds, each time it was asked to."""
    found: list[float] = []
    while not until():
        asked = time.perf_counter()
        await anyio.sleep(every)
        found.append(time.perf_counter() - asked - every)
    return found


async def watched(work: Callable[[], Awaitable[int]]) -> tuple[int, float, list[float]]:
    """What `work` gives, its seconds, and the lag beside it."""
    found: list[int] = []
    lags: list[float] = []

    async def watch() -> None:
        lags.extend(await lag(lambda: bool(found)))

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        found.append(await work())
    return found[0], time.perf_counter() - began, lags


def _compared(case: Case, timeout: int = 5) -> bool:
    """As its documentation says; in threads its timeouts cannot be used, as they are signals."""
    gold, answer, equal = case
    expected, found = (parse(text, parsing_timeout=timeout) for text in (f"${gold}$", boxed(answer)))
    return bool(verify(expected, found, timeout_seconds=timeout)) == equal


def _plain() -> dict[str, float]:
    battery = cases()
    for case in battery[::8]:
        _compared(case)
    began = time.perf_counter()
    right = sum(map(_compared, battery))
    return {"right": right, "seconds": time.perf_counter() - began}


async def _threads(seconds: float) -> dict[str, float]:
    """300 good ones and four hostile ones through two threads: whoever is not done by then is not."""
    battery = [("\\sqrt{2}", hostile, False) for hostile in HOSTILE] + cases()[:300]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(_compared, case, 0) for case in battery]

        async def work() -> int:
            await anyio.sleep(seconds)
            return sum(future.done() and future.result() for future in futures[len(HOSTILE) :])

        right, took, lags = await watched(work)
        print(json.dumps({"right": right, "seconds": took, "lag": max(lags)}), flush=True)
        os._exit(0)  # the threads would be waited for


if __name__ == "__main__":
    if sys.argv[1] == "plain":
        print(json.dumps(_plain()))
    else:
        anyio.run(_threads, float(sys.argv[2]))
