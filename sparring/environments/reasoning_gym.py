"""The puzzles of reasoning-gym (https://github.com/open-thought/reasoning-gym, arXiv 2505.24760), all generators, by seed and
index; made and scored in a sandbox, since several of its scorers run an answer as Python.

Needs the extra `reasoning-gym`; `from sparring.environments.reasoning_gym import puzzles, reasoning_gym`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio

from sparring.environments import sandboxing
from sparring.environments.environment import environment
from sparring.environments.running import effect
from sparring.environments.sandbox import Call, Sandbox
from sparring.environments.sandboxing.result import Ending, Limits, SandboxResult
from sparring.environments.score import Score
from sparring.environments.seat import Seat
from sparring.errors import SettingError, UnsupportedError

if find_spec("reasoning_gym") is None:
    raise UnsupportedError("puzzles of reasoning-gym need 'reasoning_gym': pip install 'sparring[reasoning-gym]'")

_VERSION = version("reasoning_gym")
_PROGRAM = Path(sandboxing.__file__).with_name("puzzles.py").read_text()
_BOX = Sandbox(modules=("reasoning_gym",), limits=Limits(memory=2 << 30), at_once=4)
_MAKING, _DEADLINE = 120.0, 10.0  # seconds
_PATIENCE = 600.0  # seconds, most of which pass in the queue for a sandbox
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_UNJUDGED = (Ending.REFUSED, Ending.LOST, Ending.TIME, Ending.MEMORY, Ending.KILLED)
RULES = (
    "You are given a puzzle. Put your final answer, and nothing else, between <answer> and </answer>, in the form that the "
    "puzzle asks for."
)


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Puzzle `index` of generator `name`; `answer` is empty where several are right and upstream names none."""

    question: str
    answer: str
    name: str
    seed: int
    index: int
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


def generators() -> tuple[str, ...]:
    """The names that `puzzles` takes. Starts the sandbox (seconds). Raises `UnsupportedError` where it cannot."""
    return tuple(_now("names"))


def puzzles(
    name: str, count: int, *, seed: int = 0, start: int = 0, settings: Mapping[str, Any] | None = None
) -> list[Puzzle]:
    """Puzzles `start` to `start + count` of a generator. Equal arguments make equal puzzles (with one version of the package).

    settings  the fields of the generator's own configuration, as JSON data; for "composite" its `datasets`, as dictionaries

    Blocks; the first call starts the sandbox. Raises `SettingError` for what the generator refuses.
    """
    if count < 1 or start < 0:
        raise SettingError(f"puzzles(count={count!r}, start={start!r}): must be at least 1, and at least 0")
    given = dict(settings or {})
    made = _now("make", name, seed, list(range(start, start + count)), given)
    return [Puzzle(question, answer, name, seed, start + n, given) for n, (question, answer) in enumerate(made)]


def _gold(task: Puzzle) -> str:
    return f"<answer>{task.answer}</answer>"


@environment(hidden={"*": ("answer",)}, gold=_gold)
async def reasoning_gym(task: Puzzle, solver: Seat) -> Score:
    """One question, one reply. Its reward is upstream's score of the one answer in it, from 0 to 1; 0 without one."""
    solver.system(RULES)
    reply = await solver.ask(task.question)
    answers = {answer.strip() for answer in _ANSWER.findall(reply.text)}
    if len(answers) != 1:
        return Score(0.0, parts={"answered": 0.0})
    asked = (task.name, task.seed, task.index, task.settings, answers.pop())
    said = await effect(scored, _VERSION, *asked, timeout=_PATIENCE)
    return Score(said["score"], error=said["error"], parts={"answered": 1.0})


async def scored(_: str, name: str, seed: int, index: int, settings: dict[str, Any], answer: str) -> dict[str, Any]:
    """Upstream's score (of the version that is named first), or why nobody could say. An answer that ends or leaves the sandbox
    is wrong."""
    result = await _run("score", (name, seed, index, settings, answer), _DEADLINE)
    if result.ending in _UNJUDGED:
        return {"score": None, "error": f"reasoning_gym: {result.ending}: {result.error}"}
    (value,) = result.values or (0.0,)
    return {"score": min(max(value, 0.0), 1.0) if isinstance(value, float) else 0.0, "error": ""}


async def _run(function: str, args: tuple[object, ...], seconds: float) -> SandboxResult:
    limits = Limits(seconds=seconds, memory=_BOX.limits.memory, value=16 << 20)
    return await _BOX.run(_PROGRAM, calls=[Call(name=function, args=args)], limits=limits)


def _now(function: str, *args: object) -> Any:
    """The value of a function in the sandbox, also where an event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(anyio.run, _run, function, args, _MAKING).result()
    if result.ending is Ending.REFUSED:
        raise UnsupportedError(f"puzzles are made in a sandbox: {result.error}")
    if result.ending is not Ending.OK:
        raise SettingError(f"reasoning-gym, {function}{args!r}: {result.error}")
    return result.values[0]
