"""Leagues and frozen players in runs: who is met, what is kept, and that a run which was cut off draws the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import anyio.to_thread
import msgspec
import pytest

from sparring import (
    Episodes,
    Frozen,
    League,
    Lineup,
    Policy,
    Run,
    Sampling,
    Scripted,
    ScriptedModels,
    Seat,
    environment,
    rae,
)
from sparring.backend import Lora, ScriptedBackend
from sparring.backend.scripted import ScriptedModel
from sparring.learner import train, train_async
from sparring.learner.checked import schedule_of, versions_at_once
from sparring.learner.continuity import decided_again
from sparring.learner.folder import RunFolder
from sparring.learner.history import read_events
from sparring.learner.replay import compare, replay
from sparring.learner.resume import folded
from sparring.rollout import Journal, MemorySegments
from sparring.rollout.events import Acted, Admitted, AnyEvent, Ended, Evaluated, Opened, Stepped, canonical
from tests.learner.test_going_on import KilledBy
from tests.learner.worlds import Crash, CrashingSegments, crash_at_every_commit, events_of


@environment
async def contest(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
    """Whose word comes first in the alphabet wins."""
    said, other = (await one.ask(f"{task}")).text, (await two.ask(f"{task}!")).text
    won = float(said < other) - float(said > other)
    return {one: won, two: -won}


def league_run(folder: Path, *, deterministic: bool = True, k: int = 1, steps: int = 6, **league: Any) -> Run:
    """Alice in both seats against her past, every second version, two at a time; held-out against version 3."""
    past = League("alice", **{"sampler": "prioritised", "every": 2, "size": 2, **league})
    seats = [Lineup({"one": "alice", "two": past}), Lineup({"one": past, "two": "alice"})]
    return Run(
        name="league",
        train=Episodes(contest, range(20), seats),
        held_out=Episodes(contest, range(20, 22), Lineup({"one": "alice", "two": Frozen("alice@3")})),
        policies={"alice": Policy("one", rae())},
        steps=steps,
        groups_per_step=2,
        group_size=2,
        max_staleness=k,
        evaluate_every=5,
        backend=ScriptedModels(),
        deterministic=deterministic,
        folder=folder,
    )


async def trained(run: Run, store: MemorySegments | None = None) -> list[AnyEvent]:
    store = store or MemorySegments()
    assert await train_async(run, store=store)
    return events_of(store)


def draws(events: Sequence[AnyEvent]) -> list[int]:
    return [version for one in events if isinstance(one, Admitted) for version in one.opponents.values()]


def kept_on_disk(run: Run) -> set[str]:
    return {one.name for one in (run.path / "checkpoints" / "alice").iterdir()}


@pytest.mark.parametrize("deterministic", [True, False])
async def test_who_is_met_in_which_seat_and_what_is_kept(tmp_path: Path, deterministic: bool) -> None:
    run = league_run(tmp_path, deterministic=deterministic, steps=9)
    events = await trained(run)
    groups = {one.group: one for one in events if isinstance(one, Admitted)}
    assert [sorted(one.opponents) for _, one in sorted(groups.items())] == [["two"], ["one"]] * 9, "in turn"
    made = 0
    for event in events:
        if isinstance(event, Stepped):
            made += 1
        if isinstance(event, Acted) and event.seat in groups[event.group].opponents:
            assert event.sample is not None
            assert {version for version, _ in event.sample.versions} == {groups[event.group].opponents[event.seat]}
        if isinstance(event, Admitted):
            (version,) = event.opponents.values()
            assert version % 2 == 0 and made - 6 < version <= made, "the newest two, at most a step behind"
    assert len(set(draws(events))) > 3
    assert {"3", "6", "8", "9"} <= kept_on_disk(run) and not {"2", "4"} & kept_on_disk(run), "while it is named"
    steps = [one for one in events if isinstance(one, Stepped)]
    assert all(0 <= one.metrics["won"] <= 1 for one in steps)
    comparison = compare(events)
    assert comparison.agrees, comparison.lines
    assert any(line.startswith("alice@2 against alice@0: ") for line in comparison.standings)
    assert any(line.startswith("rating of alice@2: ") for line in comparison.lines)
    games = sum(isinstance(one, Ended) for one in events)
    counted = [
        int(word) for line in comparison.standings for word in line.split() if " against " in line and word.isdigit()
    ]
    assert deterministic or sum(counted) == games


@pytest.mark.parametrize(("sampler", "met"), [("latest", 1), ("uniform", 2), ("prioritised", 2)])
async def test_samplers_in_a_run(tmp_path: Path, sampler: str, met: int) -> None:
    events = await trained(league_run(tmp_path, sampler=sampler, k=0, steps=8))
    late = draws(events)[-4:]
    assert set(late) <= {4, 6} and (set(late) == {6}) == (met == 1)


async def test_a_draw_that_was_another_is_found(tmp_path: Path) -> None:
    """Planted: the journal says that another member was met."""
    events = await trained(league_run(tmp_path))
    place = next(i for i, one in enumerate(events) if isinstance(one, Admitted) and one.group == 9)
    admitted = events[place]
    assert isinstance(admitted, Admitted)
    ((seat, version),) = admitted.opponents.items()
    events[place] = msgspec.structs.replace(admitted, opponents={seat: 2 if version != 2 else 4})
    comparison = compare(events)
    assert not comparison.agrees and comparison.differences[0].startswith("group 9 was admitted as")


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_at_any_commit_ends_in_the_same_history(tmp_path: Path, after: bool) -> None:
    assert await crash_at_every_commit(league_run, tmp_path, after=after, every=2) > 20


@pytest.mark.parametrize("commit", [9, 17, 23])
async def test_without_a_pinned_schedule_it_goes_on_from_what_was_drawn(tmp_path: Path, commit: int) -> None:
    run, kept = league_run(tmp_path, deterministic=False, k=2), MemorySegments()
    with pytest.raises(Crash):
        await train_async(run, store=CrashingSegments(kept, commit, after=True))
    before = draws(events_of(kept))
    events = await trained(run, kept)
    assert draws(events)[: len(before)] == before
    assert decided_again(events, run, kept.snapshots()).wrong == ()


async def test_what_a_league_needs_is_loaded_from_its_own_checkpoints(tmp_path: Path) -> None:
    """Planted: the checkpoint of a member is gone, so that the run must do its steps again from an older one."""
    undisturbed = canonical(await trained(league_run(tmp_path / "undisturbed", steps=9)))
    for gone in (False, True):
        run, kept = league_run(tmp_path / str(gone), steps=9), MemorySegments()
        with pytest.raises(Crash):
            await train_async(run, store=KilledBy(kept, lambda event: isinstance(event, Stepped) and event.step == 5))
        assert {"3", "4", "5"} <= kept_on_disk(run)
        if gone:
            shutil.rmtree(run.path / "checkpoints" / "alice" / "4")
        found = await anyio.to_thread.run_sync(folded, run, schedule_of(run), await opened(kept), RunFolder(run.path))
        assert found.since == {"alice": 3 if gone else 5}
        assert canonical(await trained(run, kept)) == undisturbed


@pytest.mark.parametrize("deterministic", [True, False])
async def test_two_that_learn_meet_and_nothing_else_is_told_of_it(tmp_path: Path, deterministic: bool) -> None:
    """Each has a row against the other. `won` is of games against players that do not learn: none is won against "", which
    nothing comes before."""
    plain = league_run(tmp_path, deterministic=deterministic)
    lineups = [Lineup({"one": "alice", "two": who}) for who in ("bob", Scripted(lambda conversation: ""))]
    policies = {"alice": Policy("one", rae()), "bob": Policy("two", rae())}
    events = await trained(
        replace(plain, train=Episodes(contest, range(20), lineups), held_out=None, policies=policies)
    )
    won = {
        name: [one.metrics.get("won") for one in events if isinstance(one, Stepped) and one.policy == name]
        for name in policies
    }
    assert 0.0 in won["alice"] and set(won["alice"]) <= {0.0, None} and set(won["bob"]) == {None}
    comparison = compare(events)
    assert comparison.agrees, comparison.lines
    rows = {line.partition(": ")[0]: line.partition(": ")[2] for line in comparison.standings}
    assert {"rating of alice", "rating of bob", "rating of <lambda>"} == {one for one in rows if "rating" in one}
    assert {one for one in rows if "against" in one} == {
        "alice against bob",
        "bob against alice",
        "alice against <lambda>",
    }
    won_by_alice, drawn, lost = (int(part.split()[0]) for part in rows["alice against bob"].split(", "))
    assert rows["bob against alice"] == f"{lost} won, {drawn} drawn, {won_by_alice} lost" and won_by_alice and lost


async def opened(kept: MemorySegments) -> Journal:
    async with Journal.open(kept) as journal:
        return journal


def test_a_league_that_is_killed_ends_in_the_same_journal(tmp_path: Path) -> None:
    """`kill -9`, again and again, wherever the process is once another two steps are on the disk."""
    undisturbed = league_run(tmp_path / "undisturbed", steps=9)
    assert train(undisturbed)
    run, kills = league_run(tmp_path / "killed", steps=9), 0
    while kills < 4:
        program = [sys.executable, "-m", "tests.learner.league_program", str(tmp_path / "killed")]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            steps = (line for line in process.stdout if line.startswith("Stepped"))
            if len(list(islice(steps, 2))) < 2:
                break
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 2 and train(run)
    assert canonical(list(read_events(run.path))) == canonical(list(read_events(undisturbed.path)))
    assert replay(run.path).agrees


def test_members_count_among_the_versions_at_once(tmp_path: Path) -> None:
    """The newest, the next, k, the evaluated; two members, and alice@3."""
    assert versions_at_once(league_run(tmp_path)) == 1 + 1 + 1 + 1 + 2 + 1


async def test_a_held_out_set_waits_for_whom_it_names(tmp_path: Path) -> None:
    events = await trained(league_run(tmp_path))
    assert [one.version for one in events if isinstance(one, Evaluated)] == [5, 6]


async def test_a_line_up_is_played_from_when_its_opponent_is_there(tmp_path: Path) -> None:
    for deterministic in (True, False):
        plain = league_run(tmp_path / str(deterministic), deterministic=deterministic, k=0)
        seats = [Lineup({"one": "alice", "two": Frozen(name)}) for name in ("alice@0", "alice@3")]
        events = await trained(replace(plain, train=Episodes(contest, range(20), seats)))
        lineups = [one.lineup for one in events if isinstance(one, Admitted)]
        assert lineups[:6] == [0] * 6 and lineups[6:] == [1, 0, 1, 0, 1, 0] and compare(events).agrees


class Named(ScriptedBackend):
    """Says which model replies."""

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        def reply(prompt: str, rng: Random) -> str:
            return f"{model}{rng.randrange(10)}"

        return ScriptedModel(model, seed, reply)


class NamedModels:
    def open(self, *, deterministic: bool) -> Named:
        return Named()


async def test_another_model_plays_and_is_never_trained(tmp_path: Path) -> None:
    lineup = Lineup({"one": "alice", "two": Frozen("judge", sampling=Sampling(max_tokens=3))})
    plain = replace(league_run(tmp_path, steps=2, deterministic=False), backend=NamedModels())
    assert isinstance(plain.held_out, Episodes)
    run = replace(plain, train=Episodes(contest, range(20), lineup), held_out=replace(plain.held_out, lineup=lineup))
    events = await trained(run)
    said = {(one.seat, one.reply.text[:3]) for one in events if isinstance(one, Acted) and one.reply is not None}
    assert said == {("one", "one"), ("two", "jud")}
    opened = events[0]
    assert isinstance(opened, Opened) and opened.run["models"]["frozen judge"]["model"] == "judge"
    assert "renderer of frozen judge" in opened.run["fingerprints"]
    assert compare(events).standings[0].startswith("rating of ")
    judged = [one for one in events if isinstance(one, Evaluated)]
    assert any("jud" in text for one in judged for lines in one.transcripts for _, text in lines)
