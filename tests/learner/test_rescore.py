"""Real runs of the scripted backend, scored again: by the same code, which changes nothing, and by other code."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import anyio
import numpy as np
import pytest

from sparring import (
    Comparable,
    Drop,
    Episodes,
    F,
    Lineup,
    MathVerifier,
    Policy,
    Reuse,
    Run,
    Score,
    Scripted,
    ScriptedModels,
    Seat,
    advantages,
    effect,
    environment,
    grpo,
    rae,
)
from sparring.environments import FunctionEnvironment
from sparring.errors import SettingError
from sparring.learner import train_async
from sparring.learner.rescore import rescore, rescore_events
from sparring.learner.rescored import Rescoring
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, Admitted, AnyEvent, Ended, Event, Opened, Planned
from tests.learner.worlds import duel_run, events_of


@dataclass(frozen=True)
class Word:
    text: str
    wanted: str = "a"


async def count(text: str, letter: str) -> int:
    return text.count(letter)


@environment
async def letters(
    task: Word,
    writer: Seat,
    judge: Seat,
    *,
    rng: Random,
    worth: float = 1.0,
    asks: str = "Say",
    strict: str = "",
    broken: str = "",
    judged: bool = True,
) -> dict[Seat, float | Score]:
    """The writer is asked twice where it said little; a script judges; the count is an effect."""
    lucky = rng.random()
    said = await writer.ask(f"{asks} {task.text}.")
    if len(said.text) < 3:
        said = await writer.ask("More.")
    verdict = await judge.ask(f"How is {said}?")
    if broken and broken in said.text:
        raise KeyError(broken)
    if strict and strict in said.text:
        return {writer: 0.0, judge: lucky}
    value = worth * await effect(count, said.text, task.wanted) + len(verdict.text) * 0.0
    return {writer: value if judged else Score(error="no verdict"), judge: lucky}


def letters_run(folder: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {
        "name": "letters",
        "train": Episodes(letters, words(), Lineup({"writer": "policy", "judge": Scripted(lambda talk: "fine")})),
        "policies": Policy("none"),
        "steps": 4,
        "groups_per_step": 3,
        "group_size": 4,
        "backend": ScriptedModels(),
        "folder": folder,
    }
    return Run(**settings | changes)


def words(wanted: str = "a") -> list[Word]:
    return [Word(f"word {number}", wanted) for number in range(9)]


def changed(run: Run, tasks: list[Word] | None = None, **settings: object) -> Run:
    """The run with an environment of other settings: other code, as far as its episodes know."""
    (source,) = run.sources
    assert isinstance(source.environment, FunctionEnvironment)
    other = source.environment(**settings)
    return replace(run, train=replace(source, environment=other, tasks=tasks or source.tasks))


async def trained(run: Run) -> list[AnyEvent]:
    store = MemorySegments()
    assert await train_async(run, store=store)
    return events_of(store)


T = TypeVar("T", bound=Event)


def of(events: list[AnyEvent], kind: type[T]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def replies(events: list[AnyEvent]) -> list[tuple[Acted, str]]:
    """The writer's, in the journal's order."""
    return [(one, one.reply.text) for one in of(events, Acted) if one.seat == "writer" and one.reply is not None]


def planned(events: list[AnyEvent]) -> dict[int, set[int]]:
    """{step: its groups}."""
    return {one.step: set(one.groups) for one in of(events, Planned)}


async def scored(events: list[AnyEvent], run: Run | Episodes, **settings: Any) -> Rescoring:
    with anyio.fail_after(30):
        return await rescore_events(events, run, **settings)


def outcomes(found: Rescoring, seat: str = "writer") -> Mapping[str, int]:
    return next(one.outcomes for one in found.seats if one.seat == seat)


def steps(found: Rescoring, how: str) -> list[int]:
    return [one.step for one in found.steps if one.advantages == how]


# -------------------------------------------------------------------------------------------------------- the same code


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_staleness": 2, "reuse": Reuse(units=2, how="prioritized", max_uses=3, max_age=4)},
        {"policies": Policy("none", rae())},
        {"policies": Policy("none", grpo(deviation=True))},
        {"deterministic": True},
    ],
)
async def test_the_same_code_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = letters_run(tmp_path, **changes)
    events = await trained(run)
    found = await scored(events, run)
    assert found.episodes == len(of(events, Ended)) >= 48
    assert {row.outcome for row in found.rows} == {"equal"}
    assert steps(found, "same") == [0, 1, 2, 3]
    assert (found.unfinished, found.unasked, found.new_tasks, found.tasks, found.accepted) == (0, 0, 0, [], ())
    assert len({row.before for row in found.rows if row.seat == "writer"}) > 1, "rewards that could have been others"


@pytest.mark.parametrize("k", [0, 2])
async def test_two_policies_forks_and_branches_change_nothing_either(tmp_path: Path, k: int) -> None:
    run = duel_run(tmp_path, k=k, deterministic=False, steps=4)
    found = await scored(await trained(run), run)
    assert {row.outcome for row in found.rows} == {"equal"}
    assert {(row.seat, row.fork) for row in found.rows} == {("first", ""), ("second", ""), ("second", "1")}
    assert [(one.policy, one.step) for one in sorted(found.steps, key=lambda one: (one.policy, one.step))] == [
        (policy, step) for policy in ("alice", "bob") for step in range(4)
    ]
    assert {one.advantages for one in found.steps} == {"same"}


# -------------------------------------------------------------------------------------------------------- other rewards


async def test_other_rewards_are_counted_by_seat_task_and_step(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    found = await scored(events, changed(run, worth=2.0))
    rows = [row for row in found.rows if row.seat == "writer"]
    assert all(row.before is not None and row.after == 2 * row.before for row in rows)
    more = sum(bool(row.before) for row in rows)
    assert outcomes(found) == {"equal": len(rows) - more, "higher": more} and 0 < more < len(rows)
    assert set(outcomes(found, "judge")) == {"equal"}, "its reward is chance, which is what it was"
    seat = next(one for one in found.seats if one.seat == "writer")
    assert seat.before == pytest.approx(statistics.fmean(row.before or 0.0 for row in rows))
    assert seat.after == pytest.approx(2 * (seat.before or 0.0))
    for task in found.tasks:
        mine = [row for row in rows if row.index == task.index]
        assert (task.seat, task.source, task.count) == ("writer", 0, len(mine))
        assert task.before == pytest.approx(statistics.fmean(row.before or 0.0 for row in mine))
        assert task.after == pytest.approx(2 * task.before)
    sizes = [abs(task.after - task.before) for task in found.tasks]
    assert sizes == sorted(sizes, reverse=True) and sizes
    assert steps(found, "other"), "advantages scale with the rewards"
    assert not steps(found, "unknown")


async def test_only_the_steps_that_are_concerned_have_other_advantages(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    last, said = [(one, text) for one, text in replies(events) if "a" in text][-1]
    found = await scored(events, changed(run, strict=said))
    lower = {(row.group, row.member) for row in found.rows if row.outcome == "lower"}
    assert (last.group, last.member) in lower
    concerned = {step for step, groups in planned(events).items() if groups & {group for group, _ in lower}}
    assert set(steps(found, "other")) == concerned
    assert set(steps(found, "same")) == set(range(4)) - concerned != set()


async def test_the_state_of_an_estimator_follows_the_new_rewards(tmp_path: Path) -> None:
    """A running baseline that saw other rewards gives other advantages ever after."""
    run = letters_run(tmp_path, policies=Policy("none", rae()))
    events = await trained(run)
    found = await scored(events, changed(run, worth=2.0))
    first = min(steps(found, "other"))
    assert steps(found, "other") == list(range(first, 4))


async def test_other_tasks_are_played_with_the_replies_that_fit(tmp_path: Path) -> None:
    """A gold answer was wrong: what was asked is the same, what it is worth is not."""
    run = letters_run(tmp_path)
    found = await scored(await trained(run), changed(run, tasks=words(wanted="b")))
    assert found.new_tasks == found.episodes == 48
    assert outcomes(found)["higher"] and outcomes(found)["lower"] and "asks" not in outcomes(found)
    assert set(outcomes(found, "judge")) == {"equal"}, "chance is that of the task that was played"


CALLS: list[str] = []


async def graded(text: str) -> float:
    CALLS.append(text)
    return float(len(CALLS))


async def test_effects_are_called_anew_unless_the_journal_is_asked(tmp_path: Path) -> None:
    @environment
    async def exam(task: int, writer: Seat) -> float:
        return float(await effect(graded, (await writer.ask(f"{task}?")).text))

    run = letters_run(tmp_path, train=Episodes(exam, range(9)))
    CALLS.clear()
    events = await trained(run)
    assert len(CALLS) == 48
    assert set(outcomes(await scored(events, run))) == {"higher"}
    assert len(CALLS) == 96
    assert set(outcomes(await scored(events, run, effects="journal"))) == {"equal"}
    assert len(CALLS) == 96


# ------------------------------------------------------------------------------------------------------ what has no answer


async def test_other_questions_are_named_and_nothing_is_made_up(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    found = await scored(await trained(run), changed(run, asks="Write"))
    assert {(row.outcome, row.after) for row in found.rows} == {("asks", None)}
    assert {row.detail for row in found.rows} == {"seat 'writer' asks something else at turn 0"}
    assert steps(found, "unknown") == [0, 1, 2, 3]


async def test_a_step_with_an_episode_that_has_no_answer_is_not_known(tmp_path: Path) -> None:
    """And, under a baseline that runs on, none after it."""

    @environment
    async def picky(task: Word, writer: Seat, *, again: str = "nothing") -> float:
        said = await writer.ask(task.text)
        return float(len((await writer.ask("Again.")).text if again in said.text else said.text))

    for algorithm in (grpo(), rae()):
        run = letters_run(tmp_path / algorithm.name, train=Episodes(picky, words()), policies=Policy("none", algorithm))
        events = await trained(run)
        said = [text for _, text in replies(events)]
        text = said[len(said) // 2]
        found = await scored(events, changed(run, again=text))
        unknown = {row.group for row in found.rows if row.outcome == "asks"}
        concerned = {step for step, groups in planned(events).items() if groups & unknown}
        assert concerned
        expected = concerned if algorithm.name == "grpo" else set(range(min(concerned), 4))
        assert set(steps(found, "unknown")) == expected
        assert set(steps(found, "same")) == set(range(4)) - expected


async def test_faults_and_what_is_judged_no_more(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    found = await scored(events, changed(run, broken="a"))
    failed = [row for row in found.rows if row.outcome == "fault"]
    assert failed and all("KeyError: 'a'" in row.detail and row.after is None for row in failed)
    assert steps(found, "other")
    found = await scored(events, changed(run, judged=False))
    assert set(outcomes(found)) == {"unjudged"} and steps(found, "other") == [0, 1, 2, 3]
    assert {row.detail for row in found.rows if row.seat == "writer"} == {"no verdict"}


async def test_what_failed_then_may_be_judged_now(tmp_path: Path) -> None:
    run = letters_run(tmp_path, max_faults=1.0)
    broken = changed(run, broken="a")
    events = await trained(broken)
    same = await scored(events, broken)
    assert {row.outcome for row in same.rows} == {"equal", "fault"}
    assert steps(same, "same") == [0, 1, 2, 3], "a fault that stays one changes nothing"
    found = await scored(events, run)
    assert {row.outcome for row in found.rows} == {"equal", "judged"}
    assert all(row.before is None and row.after is not None for row in found.rows if row.outcome == "judged")
    assert steps(found, "other")


async def test_what_was_dropped_for_its_age_is_told_apart(tmp_path: Path) -> None:
    """It goes on for longer than the journal does, and changes no step."""
    gone = anyio.Event()

    async def slow(text: str) -> int:
        if text.endswith("0"):
            await gone.wait()
        return 1

    @environment
    async def uneven(task: Word, writer: Seat) -> float:
        said = await writer.ask(task.text)
        await effect(slow, task.text)
        return float(len((await writer.ask(f"And? {said}")).text))

    run = letters_run(tmp_path, train=Episodes(uneven, words()), steps=6, max_staleness=4, pacing=Drop(versions=1))
    events = await trained(run)
    gone.set()
    found = await scored(events, run)
    cut = [row for row in found.rows if row.outcome == "cut"]
    assert cut and all(row.detail == "seat 'writer' asks for more than the journal holds at turn 1" for row in cut)
    assert {row.outcome for row in found.rows} == {"equal", "cut"}
    assert {one.advantages for one in found.steps} == {"same"}


async def test_episodes_that_never_ended_are_counted(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    ends = [place for place, event in enumerate(events) if isinstance(event, Ended)]
    found = await scored(events[: ends[5]], run)
    assert found.episodes == 5
    assert found.unfinished == len(of(events[: ends[5]], Admitted)) * 4 - 5
    assert found.steps == ()


async def test_the_journal_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are cut, the same is found."""
    run = letters_run(tmp_path, max_staleness=1, reuse=Reuse(units=1, max_uses=2, max_age=3))
    events = await trained(run)
    whole = await scored(events, changed(run, worth=3.0))
    for size in (1, 7, 50):
        monkeypatch.setattr("sparring.learner.rescore._CHUNK", size)
        found = await scored(events, changed(run, worth=3.0))
        assert (found.rows, found.steps) == (whole.rows, whole.steps)


# ------------------------------------------------------------------------------------------------------------ what is given


async def test_episodes_are_enough_unless_the_estimator_is_ones_own(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    (source,) = run.sources
    assert {row.outcome for row in (await scored(events, source)).rows} == {"equal"}

    def halved(group: Comparable) -> F:
        return group.rewards / np.float32(2)

    own = letters_run(tmp_path / "own", policies=Policy("none", grpo(advantages=advantages(halved))))
    events = await trained(own)
    assert steps(await scored(events, own), "same") == [0, 1, 2, 3]
    with pytest.raises(SettingError, match="name the run's file too"):
        await scored(events, source)


@environment
async def renamed(task: Word, author: Seat) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (lambda one: [one, one], "the run has 1 training sources, the file 2"),
        (lambda one: replace(one, environment=renamed, lineup=Lineup()), r"trained the seats \['writer'\], renamed"),
        (lambda one: replace(one, tasks=one.tasks[:1]), r"task \d of train source 0 of the file raised IndexError"),
    ],
)
async def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, sources: Callable[[Episodes], Any], said: str
) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    with pytest.raises(SettingError, match=said):
        await scored(events, replace(run, train=sources(run.sources[0])))


async def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    run = letters_run(tmp_path)
    events = await trained(run)
    assert isinstance(events[0], Opened)
    with pytest.raises(SettingError, match="does not begin with a run's settings"):
        await scored(events[1:], run)


def test_a_folder_is_scored(tmp_path: Path) -> None:
    """The real journal on the disk, and a verifier that was too lenient."""
    verify = {extract: MathVerifier(extract=extract) for extract in ("last", "whole")}

    @environment
    async def sums(task: int, solver: Seat, *, extract: str = "last") -> Score:
        return await verify[extract]((await solver.ask(f"{task} + 0 =")).text, task)

    def reply(prompt: str, rng: Random) -> str:
        number = prompt.partition(" + ")[0][-2:]
        return rng.choice([number, f"It is {number}", "7"])

    run = Run(
        name="sums",
        train=Episodes(sums, range(10, 20)),
        policies=Policy("m"),
        steps=3,
        groups_per_step=2,
        backend=ScriptedModels(reply=reply),
        folder=tmp_path,
    )
    assert anyio.run(train_async, run)
    assert {row.outcome for row in rescore(run.path, run).rows} == {"equal"}
    found = rescore(run.path, changed(run, extract="whole"))
    assert set(outcomes(found, "solver")) == {"equal", "lower"}
    with pytest.raises(SettingError, match=r"has no journal\.db"):
        rescore(tmp_path, run)
