"""The program that makes and scores puzzles of reasoning-gym, inside a sandbox that has it imported.

Sent as text, never imported here. Several scorers run an answer as Python (`eval`, sympy's `parse_expr`). The sandbox keeps
that from the machine; the watch below keeps it from the score: an answer may be a literal or a formula, no program.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS

_NO_FORMULA = frozenset(
    ["breakpoint", "compile", "delattr", "eval", "exec", "exit", "getattr", "globals", "help", "input", "lambdify", "locals",
     "open", "preview", "print", "quit", "setattr", "source", "vars"]
)  # fmt: skip


def names() -> list[str]:
    """The generators there are."""
    return sorted(DATASETS)


def make(name: str, seed: int, indices: list[int], settings: dict[str, Any]) -> list[list[str]]:
    """Questions, each with the answer that is known, or an empty text where only the scorer can tell."""
    dataset = _dataset(name, seed, settings)
    return [[entry["question"], entry["answer"] or ""] for entry in (dataset[index] for index in indices)]


def score(name: str, seed: int, index: int, settings: dict[str, Any], answer: str) -> float:
    """What reasoning-gym says of an answer, from 0 to 1. An answer that its scorer fails at is wrong."""
    dataset = _dataset(name, seed, settings)
    entry = dataset[index]
    dataset.score_answer(entry["answer"] or "", entry)  # it imports what it needs, before the watch
    sys.addaudithook(_watch)
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:  # noqa: BLE001 - whatever an answer brings about in a scorer, it is no right answer
        return 0.0


def _dataset(name: str, seed: int, settings: dict[str, Any]) -> Any:
    given = dict(settings)
    if "datasets" in given:
        given["datasets"] = [DatasetSpec(**spec) for spec in given["datasets"]]
    return reasoning_gym.create_dataset(name, seed=seed, **given)


def _watch(event: str, seen: tuple[Any, ...]) -> None:
    """Refuses to run a text that is more than a literal, or for sympy more than a formula. It cannot be taken away again."""
    if event != "exec" or not isinstance(seen[0], CodeType) or not seen[0].co_filename.startswith("<"):
        return
    code, asking = seen[0], str(sys._getframe(1).f_globals.get("__name__"))  # pyright: ignore[reportPrivateUsage]
    literal = not code.co_names and not any(isinstance(constant, CodeType) for constant in code.co_consts)
    if not literal and (asking.startswith("reasoning_gym.") or not _formula(code)):
        raise RuntimeError("an answer is no program")


def _formula(code: CodeType) -> bool:
    inner = any(isinstance(constant, CodeType) for constant in code.co_consts)
    return not inner and not any(name.startswith("_") or name in _NO_FORMULA for name in code.co_names)
