"""Every environment of the package keeps its contract: the games, Gymnasium's, those of the examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from sparring import Checked, Run, check_environment
from sparring.environments import Environment, games
from sparring.environments.games import Heaps, Word
from sparring.environments.gymnasium import gymnasium_environment
from tests.examples.short import FOLDER, example
from tests.rollout import planted

TASKS: dict[str, Any] = {
    "connect_four": range(3),
    "describe": [Word("river", ("water",)), Word("cloud", ("rain", "sky"))],
    "matching_pennies": range(3),
    "nim": [Heaps(), Heaps((2, 3))],
    "rock_paper_scissors": range(3),
    "tic_tac_toe": range(3),
}
ELSEWHERE = {"crash", "primitives"}
"""Examples without environments that are a part of the package: one kills runs, one has a loop of its own."""

NOT_CHECKED: dict[str, set[str]] = {
    "addition": set(),
    "gymnasium_blackjack": {"hidden", "gold"},
    "debate": {"gold"},
    "gsm8k": set(),
    "humaneval": set(),
    "kuhn": {"gold"},
    "opo": {"hidden"},
    "program": {"gold"},
    "prover_verifier": {"gold"},
    "research": {"gold"},
    "warm_start": {"hidden"},
}
"""Example -> the checks that do not apply to it."""


def check(of: Environment[Any], tasks: Any) -> Checked:
    async def run() -> Checked:
        return await check_environment(of, tasks, count=4)

    return anyio.run(run)


def skipped(found: Checked) -> set[str]:
    return {row.check for row in found.rows if row.verdict == "not checked"}


@pytest.mark.parametrize("name", TASKS)
def test_games(name: str) -> None:
    found = check(getattr(games, name), TASKS[name])
    assert found.passed, str(found)
    assert skipped(found) == ({"gold"} if name == "describe" else {"hidden", "gold"}), str(found)


def test_every_game_is_checked() -> None:
    there = {name for name in games.__all__ if isinstance(getattr(games, name), Environment)}
    assert there == TASKS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FrozenLake-v1", "Blackjack-v1"])
def test_gymnasium(name: str) -> None:
    found = check(gymnasium_environment(name), range(4))
    assert found.passed and skipped(found) == {"hidden", "gold"}, str(found)


def parts(run: Run) -> Iterator[tuple[Environment[Any], Any]]:
    seen: list[Environment[Any]] = []
    for episodes in (*run.sources, *run.named_held_out.values()):
        if episodes.environment not in seen:
            seen.append(episodes.environment)
            yield episodes.environment, episodes.tasks


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_CHECKED)
def test_examples(name: str) -> None:
    for of, tasks in parts(example(name).run):
        found = check(of, tasks)
        assert found.passed, str(found)
        assert skipped(found) == NOT_CHECKED[name], str(found)


def test_every_example_is_checked() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == NOT_CHECKED.keys() | ELSEWHERE


def test_a_verdict_that_play_goes_on_by_must_be_revealed() -> None:
    """Planted: the game of describing as it was, whose guesser hears without a mark whether it is right."""
    found = check(planted.describe_unmarked, TASKS["describe"])
    (row,) = [row for row in found.rows if row.verdict == "failed"]
    assert row.check == "hidden" and "is asked 'That is not it. Guess again.', and was not" in row.failures[0]
