"""Evaluations apart from training: who is measured, what is kept of each episode, that an end in the middle changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

from sparring import Episodes, Frozen, Lineup, Outcome, Policy, Run, Scripted, ScriptedModels, Seat, effect, environment
from sparring.agents import EndpointAgent
from sparring.errors import RunChanged, SettingError
from sparring.learner import train_async
from sparring.learner.cast import Cast, Endpoint, Subject, Weights, for_all, of_run, policies_of
from sparring.learner.evaluation import Evaluation, Sitting, Told, evaluate_apart, scores
from sparring.learner.history import read_events
from sparring.rollout.events import Evaluated
from tests.learner.worlds import duel_run


@environment(headline="longest")
async def duel(task: int, first: Seat, second: Seat) -> Outcome:
    one = await first.ask(f"task {task}")
    two = await second.ask(one.text)
    if one.text.startswith("a"):
        raise KeyError("planted")
    rewards = {first: float(len(one.text) > len(two.text)), second: float(len(one.text) < len(two.text))}
    return Outcome(rewards=rewards, metrics={"longest": float(max(len(one.text), len(two.text)))})


def said(conversation: object) -> str:
    return "bbbb"


def sets() -> dict[str, Episodes]:
    return {
        "self": Episodes(duel, range(6)),
        "fixed": Episodes(duel, range(6), Lineup({"first": "policy", "second": Scripted(said)})),
    }


async def evaluation_of(cast: Cast, subject_sets: Mapping[str, Episodes], **settings: Any) -> Evaluation:
    sittings = {
        name: await cast.sitting(name, one, temperature=None, max_tokens=None) for name, one in subject_sets.items()
    }
    return Evaluation(who=cast.who, sittings=sittings, **settings)


async def measured(path: Path, subject: Subject | None = None, **settings: Any) -> tuple[Evaluation, list[Told]]:
    async with ScriptedModels().open(deterministic=False) as backend:
        cast = Cast(backend, subject or for_all(["policy"], Weights(model="m")), None)
        evaluation = await evaluation_of(cast, sets(), **settings)
        with anyio.fail_after(30):
            return evaluation, await evaluate_apart(evaluation, path)


async def test_every_episode_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    _, told = await measured(path, attempts=3)
    keys = [(one.held_out, one.task, one.attempt) for one in told]
    assert keys == [(name, task, attempt) for name in ("self", "fixed") for task in range(6) for attempt in range(3)]
    first, *lines = path.read_bytes().splitlines()
    assert {msgspec.json.decode(line, type=Told).task for line in lines} == set(range(6)) and len(lines) == 36
    about = msgspec.json.decode(first)["about"]
    assert about["who"]["policy at 1.0"]["model"] == "m"
    failed = [one for one in told if one.fault]
    assert failed and all(one.fault == "KeyError" and not one.rewards and "planted" in one.detail for one in failed)
    well = next(one for one in told if not one.fault)
    assert set(well.rewards) == {"first", "second"} and well.transcripts["first"][0] == ("user", f"task {well.task}")


async def test_scores_are_by_seat_and_opponent(tmp_path: Path) -> None:
    evaluation, told = await measured(tmp_path / "out.jsonl", attempts=4)
    found = scores(evaluation, told, [1, 4], 1.0)
    assert [(one.held_out, one.seat, one.against) for one in found] == [
        ("self", "first", "second: policy"),
        ("self", "second", "first: policy"),
        ("self", "longest", ""),
        ("fixed", "first", "second: said"),
        ("fixed", "longest", ""),
    ]
    fixed = [one for one in told if one.held_out == "fixed"]
    by_task = [[one.rewards["first"] for one in fixed if one.task == task and not one.fault] for task in range(6)]
    wanted = [sum(row) / len(row) for row in by_task if row]
    assert found[3].mean is not None and found[3].mean.mean == pytest.approx(sum(wanted) / len(wanted))
    assert found[3].failed == sum(bool(one.fault) for one in fixed)
    one, four = found[3].passed[1], found[3].passed[4]
    assert one is not None and one.mean == pytest.approx(sum(wanted) / len(wanted)), (
        "pass@1 of zeros and ones is the mean"
    )
    assert four is None or four.mean >= one.mean
    with pytest.raises(SettingError, match="pass@5 with attempts=4"):
        scores(evaluation, told, [5], 1.0)


async def test_what_is_there_is_not_played_again(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    _, wanted = await measured(whole, attempts=2)
    lines = whole.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:8]) + lines[8][:20])
    _, told = await measured(part, attempts=2)
    assert told == wanted
    assert sorted(part.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    _, more = await measured(part, attempts=3)
    assert [one for one in more if one.attempt < 2] == wanted, "more attempts go on in the same file"
    _, fewer = await measured(part, attempts=1, tasks=2)
    assert fewer == [one for one in wanted if one.attempt == 0 and one.task < 2]


async def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    await measured(path)
    with pytest.raises(RunChanged, match="seed = 0, now 1: use the same, or another file"):
        await measured(path, seed=1)
    with pytest.raises(RunChanged, match=r"who\.policy at 1\.0\.model = 'm', now 'n'"):
        await measured(path, for_all(["policy"], Weights(model="n")))
    (tmp_path / "other.jsonl").write_text("hello\n")
    with pytest.raises(SettingError, match="is no file of an evaluation"):
        await measured(tmp_path / "other.jsonl")


CROWD = {"now": 0, "most": 0}


async def in_the_crowd() -> None:
    CROWD["now"] += 1
    CROWD["most"] = max(CROWD.values())
    await anyio.sleep(0.02)
    CROWD["now"] -= 1


@environment
async def crowded(task: int, only: Seat) -> float:
    await effect(in_the_crowd)
    return float(len((await only.ask(f"task {task}")).text))


@pytest.mark.parametrize("concurrent", [1, 5])
async def test_as_many_play_at_once_as_may(concurrent: int, tmp_path: Path) -> None:
    CROWD.update(now=0, most=0)
    async with ScriptedModels().open(deterministic=False) as backend:
        cast = Cast(backend, for_all(["policy"], Weights(model="m")), None)
        evaluation = await evaluation_of(cast, {"set": Episodes(crowded, range(12))}, concurrent=concurrent)
        with anyio.fail_after(30):
            told = await evaluate_apart(evaluation, tmp_path / "out.jsonl")
    assert CROWD["most"] == concurrent and not CROWD["now"]
    assert len(told) == 12 and not any(one.fault for one in told)


def evaluations(folder: Path) -> dict[int, Evaluated]:
    return {one.version: one for one in read_events(folder) if isinstance(one, Evaluated)}


async def test_a_run_at_a_step_is_what_it_was_then(tmp_path: Path) -> None:
    """The first attempt is the episode that the run itself played for its evaluation: same weights, same seeds."""
    run = duel_run(tmp_path, deterministic=False)
    with anyio.fail_after(20):
        assert await train_async(run)
    evaluated = await anyio.to_thread.run_sync(evaluations, run.path)
    for step in (3, 0):
        subject, chosen = await anyio.to_thread.run_sync(of_run, run.path, step)
        assert chosen == step
        async with run.backend.open(deterministic=False) as backend:
            cast = Cast(backend, subject, run)
            evaluation = await evaluation_of(cast, run.named_held_out)
            told = await evaluate_apart(evaluation, tmp_path / f"{step}.jsonl")
        (sitting,) = evaluation.sittings.values()
        assert sitting.measured == ["first"]
        assert [one.rewards.get("first") for one in told] == evaluated[step].rewards
        assert set(cast.who) == {"alice at 1.0", "bob@0 at 1.0"}
    assert (await anyio.to_thread.run_sync(of_run, run.path, None))[1] == 3
    with pytest.raises(
        SettingError, match=r"duel@1: no checkpoint of that step is kept, as no resume needs it; there are .*duel@0"
    ):
        await anyio.to_thread.run_sync(of_run, run.path, 1)


async def test_what_cannot_be_seated(tmp_path: Path) -> None:
    async with ScriptedModels().open(deterministic=False) as backend:
        cast = Cast(backend, {"other": Weights(model="m")}, None)
        with pytest.raises(
            SettingError, match="policy 'policy' plays a seat, and the run that is measured has other alone"
        ):
            await evaluation_of(cast, sets())
        everybody = {"fixed": Episodes(duel, [1], Lineup({"first": Scripted(said), "second": Scripted(said)}))}
        with pytest.raises(SettingError, match="nobody is measured"):
            await evaluation_of(cast, everybody)
        frozen = {"old": Episodes(duel, [1], Lineup({"first": "other", "second": Frozen("other@0")}))}
        with pytest.raises(SettingError, match="name a file with the Run that has this policy"):
            await evaluation_of(cast, frozen)
        several = {"two": Episodes(duel, [1], [Lineup(), Lineup()])}
        with pytest.raises(SettingError, match="has 2 line-ups: give each a name of its own"):
            await evaluation_of(cast, several)
        greedy = {"greedy": Episodes(duel, [1], Lineup({"first": "other", "second": "other"}), greedy=True)}
        await evaluation_of(cast, greedy)
        with pytest.raises(SettingError, match="attempts=2 of greedy play in held-out 'greedy'"):
            await evaluation_of(cast, greedy, attempts=2)
    for wrong in ({"attempts": 0}, {"concurrent": 0}, {"tasks": 0}):
        with pytest.raises(SettingError, match=f"{next(iter(wrong))}=0: must be at least 1"):
            Evaluation(who={}, sittings={}, **wrong)


async def test_an_endpoint_plays_the_policies_seats_alone() -> None:
    run = Run(
        name="r",
        train=Episodes(duel, range(9), Lineup({"first": "policy", "second": Scripted(said)})),
        policies=Policy("m"),
        steps=1,
        backend=ScriptedModels(),
    )
    assert policies_of(run, {}) == ("policy",)
    async with run.backend.open(deterministic=False) as backend:
        cast = Cast(backend, Endpoint(url="http://x", model="y", key="secret"), run)
        sitting: Sitting = await cast.sitting("fixed", sets()["fixed"], temperature=0.3, max_tokens=5)
    assert isinstance(sitting.agents["first"], EndpointAgent) and sitting.measured == ["first"]
    assert not isinstance(sitting.agents["second"], EndpointAgent)
    assert "secret" not in str(cast.who) + repr(Endpoint(url="http://x", model="y", key="secret"))
    assert cast.who["policy at 0.3"]["sampling"] == {"temperature": 0.3, "max_tokens": 5, "top_p": 1.0, "top_k": -1}


def test_names_of_policies_without_a_run() -> None:
    assert policies_of(None, sets()) == ("policy",)
    assert policies_of(None, {"a": Episodes(duel, [1], Lineup({"first": "x", "second": "y"}))}) == ("x", "y")


def test_without_its_extra_a_task_of_inspect_says_what_to_install() -> None:
    blocked = "import sys; sys.modules['inspect_ai'] = None; import sparring.learner.inspect_task"
    done = subprocess.run([sys.executable, "-c", blocked], check=False, capture_output=True, text=True, timeout=60)
    expected = (
        "sparring.errors.UnsupportedError: tasks of inspect-ai need 'inspect_ai': pip install 'sparring[inspect]'"
    )
    assert done.stderr.splitlines()[-1] == expected
