"""Puzzles of reasoning-gym: every generator, scored as upstream scores, by scorers that no answer leads astray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import reasoning_gym as upstream
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import DATASETS

from sparring.environments import Limits, Sandbox
from sparring.environments.reasoning_gym import _PROGRAM, Puzzle, generators, puzzles, reasoning_gym, scored
from sparring.environments.sandbox import Call
from sparring.environments.sandboxing.result import Ending
from sparring.errors import SettingError
from sparring.rollout.check import check_environment
from tests.environments.conftest import played

SETTINGS: dict[str, dict[str, Any]] = {
    "composite": {"datasets": [{"name": "leg_counting", "weight": 1.0, "config": {}}]},
}
NONE_KNOWN = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Many answers are right, and upstream names none."""
BY_HASH = {
    "isomorphic_strings",
    "knight_swap",
    "list_functions",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}
"""Upstream makes others in each process, as it goes through sets; in the sandbox all begin with the same hashes."""
LENIENT = {"game_of_life_halting"}
"""Upstream takes whatever does not say True for False."""


def from_upstream(puzzle: Puzzle) -> tuple[Any, dict[str, Any]]:
    """The same made here, in this process."""
    settings = dict(puzzle.settings)
    if "datasets" in settings:
        settings["datasets"] = [DatasetSpec(**spec) for spec in settings["datasets"]]
    made = upstream.create_dataset(puzzle.name, seed=puzzle.seed, **settings)
    return made, made[puzzle.index]


async def made(name: str, start: int = 0) -> Puzzle:
    (puzzle,) = await anyio.to_thread.run_sync(lambda: puzzles(name, 1, start=start))
    return puzzle


async def score(puzzle: Puzzle, answer: str) -> float:
    said = await scored("", puzzle.name, puzzle.seed, puzzle.index, puzzle.settings, answer)
    assert said["error"] == ""
    return float(said["score"])


def test_all_generators_are_there() -> None:
    assert set(generators()) == set(DATASETS)
    assert len(DATASETS) > 100


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves a file open
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_generator_makes_and_scores_what_upstream_does(name: str) -> None:
    (puzzle,) = puzzles(name, 1, seed=3, start=7, settings=SETTINGS.get(name))
    assert puzzles(name, 1, seed=3, start=7, settings=SETTINGS.get(name)) == [puzzle]
    gold, garbage = anyio.run(scores, puzzle, puzzle.answer, "zzz garbage")
    theirs, entry = from_upstream(puzzle)
    if name not in BY_HASH:
        assert (puzzle.question, puzzle.answer) == (entry["question"], entry["answer"] or "")
        assert gold == theirs.score_answer(entry["answer"] or "", entry)
    assert gold == 1.0 if name not in NONE_KNOWN else gold < 0.1
    assert garbage <= 0.1 or name in LENIENT  # upstream gives up to a tenth for trying


async def scores(puzzle: Puzzle, *answers: str) -> list[float]:
    return [await score(puzzle, answer) for answer in answers]


# -------------------------------------------------------------------------------------------------------------- hostile


REACHED = Path("/tmp/sparring_reasoning_gym_reached")
TOUCH = f"__import__('os').system('touch {REACHED}') or open('{REACHED}', 'w')"
EXECUTING = [
    "binary_matrix",
    "n_queens",
    "polynomial_multiplication",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
]
"""Upstream runs an answer as Python there."""


@pytest.mark.parametrize("name", EXECUTING)
async def test_an_answer_that_is_a_program_reaches_nothing(name: str) -> None:
    puzzle = await made(name)
    assert await score(puzzle, TOUCH) < 0.1
    assert not REACHED.exists()


def test_upstream_alone_runs_it(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    theirs, entry = from_upstream(puzzles("spiral_matrix", 1)[0])
    theirs.score_answer(f"__import__('pathlib').Path({str(tmp_path / 'reached')!r}).touch()", entry)
    assert (tmp_path / "reached").exists()


FORGED = "sympify(__import__('sys')._getframe(3).f_locals['entry']['answer'])"
WATCHED = "    sys.addaudithook(_watch)\n"


async def test_an_answer_does_not_fetch_the_right_one_from_the_scorer() -> None:
    puzzle = await made("polynomial_multiplication")
    box = Sandbox(modules=("reasoning_gym",), limits=Limits(memory=2 << 30))
    call = Call(name="score", args=[puzzle.name, puzzle.seed, puzzle.index, {}, FORGED])
    assert WATCHED in _PROGRAM
    assert (await box.run(_PROGRAM.replace(WATCHED, ""), calls=[call])).values == (1.0,)
    assert (await box.run(_PROGRAM, calls=[call])).values == (0.0,)


FORGERIES = [
    FORGED, "x.__class__", "(lambda: 1)()", "[y for y in (1, 2)]", "(y for y in (1,)).gi_frame", "exec('1')",
    "getattr(x, 'func')",
    "sympify('exec(1)')", "open('/proc/self/maps')", "exit()", "lambdify(x, x)(1)", "S('__import__(1)')",
]  # fmt: skip


@pytest.mark.parametrize("answer", FORGERIES)
async def test_a_formula_is_no_program(answer: str) -> None:
    puzzle = await made("polynomial_multiplication")
    assert await score(puzzle, answer) < 0.1


@pytest.mark.parametrize("answer", ["entry['answer'].split()", "[int(n) for n in entry['answer'].split()]", "self"])
async def test_a_list_is_a_list(answer: str) -> None:
    puzzle = await made("spiral_matrix")
    assert await score(puzzle, answer) == 0.0


async def test_upstream_still_reads_lists_and_formulas() -> None:
    lists, product = await made("spiral_matrix"), await made("polynomial_multiplication")
    assert 0 < await score(lists, str([int(n) for n in lists.answer.split()])) < 1
    assert await score(product, f"2*({product.answer}) - ({product.answer}) + 3 - sqrt(9)") == 1.0


async def test_an_answer_that_never_ends_is_an_error() -> None:
    box = Sandbox(modules=("reasoning_gym",), limits=Limits(memory=2 << 30, seconds=2))
    call = Call(name="score", args=["polynomial_multiplication", 0, 0, {}, "factorial(99999999)"])
    assert (await box.run(_PROGRAM, calls=[call])).ending in (Ending.TIME, Ending.KILLED)


# ------------------------------------------------------------------------------------------------------- the environment


async def said(puzzle: Puzzle, reply: str) -> tuple[float | None, dict[str, float]]:
    (result, _) = await played(reasoning_gym, puzzle, lambda conversation, request: reply)
    return result.value, dict(result.parts)  # type: ignore[union-attr]


async def test_one_answer_is_scored() -> None:
    puzzle = await made("leg_counting")
    right = f"<answer>{puzzle.answer}</answer>"
    assert await said(puzzle, f"so {right}") == (1.0, {"answered": 1.0})
    assert await said(puzzle, f"{right} that is {right}") == (1.0, {"answered": 1.0})
    for reply in (puzzle.answer, f"<answer>1</answer> or {right}", "<answer>", ""):
        assert await said(puzzle, reply) == (0.0, {"answered": 0.0})


async def test_it_keeps_the_contract() -> None:
    report = await check_environment(reasoning_gym, [await made("leg_counting", start) for start in range(3)])
    assert report.passed, str(report)


def test_equal_arguments_make_equal_puzzles_wherever_one_begins() -> None:
    tasks = puzzles("basic_arithmetic", 5, seed=1)
    assert puzzles("basic_arithmetic", 2, seed=1, start=3) == tasks[3:]
    assert len({task.question for task in tasks}) == 5
    assert puzzles("basic_arithmetic", 1, seed=2)[0] != tasks[0]


def test_settings_reach_the_generator() -> None:
    (puzzle,) = puzzles("basic_arithmetic", 1, settings={"min_terms": 6, "max_terms": 6})
    assert sum(puzzle.question.count(sign) for sign in "+-*/") >= 5


@pytest.mark.parametrize(
    "name, count, more, message",
    [
        ("leg_count", 1, {}, "Dataset 'leg_count' not registered"),
        ("leg_counting", 0, {}, "count=0"),
        ("leg_counting", 1, {"start": -1}, "start=-1"),
        ("leg_counting", 1, {"settings": {"legs": 5}}, "unexpected keyword argument 'legs'"),
    ],
)
def test_what_upstream_refuses_is_named(name: str, count: int, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        puzzles(name, count, **more)
