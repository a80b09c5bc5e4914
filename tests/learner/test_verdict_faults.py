"""Runs whose rewards come from outside: workers that are killed, sandboxes that refuse, comparisons that never end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sparring import CodeVerifier, MathVerifier, Run, ScriptedModels, Seat, environment
from sparring.environments import Score
from sparring.errors import TooManyFaults
from sparring.learner import train_async
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Ended, Stepped
from tests.learner.moods import run_of, trained

SAME, HANGS = "\\boxed{x^2+2x+1}", "\\boxed{(a+b+c+d+e+f+g+h)^{40}}"


def killed() -> int:
    """How many of this process's workers there were, all of which are killed."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    workers = [pid for pid in children if "maths_worker" in Path(f"/proc/{pid}/cmdline").read_text()]
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    return len(workers)


KILLED: list[int] = []


@environment
async def expressions(task: int, only: Seat, *, kill: bool = False, deadline: float = 20.0) -> Score:
    """A reply is right; twice all workers are killed before one is judged: whoever loses three in a row has no verdict."""
    reply = await only.ask(f"task {task}")
    if kill and (at := len(KILLED)) < 2:
        KILLED.append(0)
        KILLED[at] = await anyio.to_thread.run_sync(killed)
    return await MathVerifier(symbolic=True, deadline=deadline)(reply.text, "(x+1)^2")


@environment
async def programs(task: int, only: Seat) -> Score:
    """Judged in a sandbox that nobody can have."""
    reply = await only.ask(f"task {task}")
    report = await CodeVerifier(tier="docker", image="sparring.invalid/nothing:0")(reply.text, "f", "assert f(1) == 1")
    return report.score


def saying(text: str, run: Run, **settings: Any) -> Run:
    def reply(prompt: str, rng: Random) -> str:
        return text

    return run_of(run.folder, run.sources[0].environment, backend=ScriptedModels(reply=reply), **settings)


def verdicts(events: list[AnyEvent]) -> Counter[tuple[float | None, str]]:
    return Counter((one.value, one.unjudged) for event in events if isinstance(event, Ended) for one in event.results)


async def test_a_run_goes_on_where_its_verifier_s_workers_are_killed(tmp_path: Path) -> None:
    """Each verdict is that of another worker: none is missing, none is wrong."""
    KILLED.clear()
    assert (await MathVerifier(symbolic=True)(SAME, "(x+1)^2")).value == 1.0  # there are workers from now on
    events = await trained(saying(SAME, run_of(tmp_path, expressions(kill=True)), max_faults=0.0))
    assert sum(KILLED) > 0
    assert set(verdicts(events)) == {(1.0, "")}
    assert sum(isinstance(event, Stepped) for event in events) == 3


@pytest.mark.parametrize(
    ("game", "text", "said"),
    [
        (programs, "def f(x): return x", "CodeVerifier: refused: "),
        (expressions(deadline=0.3), HANGS, "comparing took longer than 0.3 s"),
    ],
    ids=["a sandbox that refuses", "comparisons that hang"],
)
async def test_a_run_whose_replies_cannot_be_judged_stops_and_says_why(
    tmp_path: Path, game: Any, text: str, said: str
) -> None:
    """And is told of nothing but errors: none of them is a reward."""
    store = MemorySegments()
    with (
        anyio.fail_after(60),
        pytest.raises(TooManyFaults, match=r"(?s)of them with NotJudged, the first of these") as caught,
    ):
        await train_async(saying(text, run_of(tmp_path, game), max_faults=0.1, steps=50), store=store)
    assert said in str(caught.value)
