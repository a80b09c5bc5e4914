"""Phases in runs: who trains when, with which version the others play, and that a run which was cut off goes the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring import Episodes, Frozen, Lineup, Phase, Policy, Run, Sampling, ScriptedModels, rae
from sparring.errors import RunChanged, SettingError
from sparring.learner import train, train_async
from sparring.learner.accounts import accounts
from sparring.learner.checked import schedule_of, versions_at_once
from sparring.learner.history import read_events
from sparring.learner.overrides import override
from sparring.learner.replay import compare, replay
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import Acted, Admitted, AnyEvent, Stepped
from tests.learner.test_league import contest
from tests.learner.worlds import crash_at_every_commit, events_of

PHASES = (Phase("alice", steps=2), Phase("bob", steps=3))
BOTH = Lineup({"one": "alice", "two": "bob"})


def phased_run(
    folder: Path, *, deterministic: bool = True, k: int = 1, phases: Sequence[Phase] = PHASES, **settings: Any
) -> Run:
    """Two policies against each other, six steps each: two of alice's, three of bob's, and so on."""
    return Run(
        **{
            "name": "phased",
            "train": Episodes(contest, range(40), BOTH),
            "held_out": Episodes(contest, range(40, 42), BOTH),
            "policies": {"alice": Policy("one", rae()), "bob": Policy("two", rae())},
            "steps": 6,
            "groups_per_step": 2,
            "group_size": 2,
            "max_staleness": k,
            "evaluate_every": 2,
            "backend": ScriptedModels(),
            "deterministic": deterministic,
            "folder": folder,
            "phases": phases,
            **settings,
        }
    )


async def trained(run: Run) -> list[AnyEvent]:
    store = MemorySegments()
    assert await train_async(run, store=store)
    return events_of(store)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("k", [0, 2])
async def test_who_trains_and_who_plays_frozen(tmp_path: Path, deterministic: bool, k: int) -> None:
    events = await trained(phased_run(tmp_path, deterministic=deterministic, k=k))
    order = [(event.policy, event.step) for event in events if isinstance(event, Stepped)]
    alice, bob = ([(name, step) for step in range(6)] for name in ("alice", "bob"))
    assert order == [*alice[:2], *bob[:3], *alice[2:4], *bob[3:], *alice[4:]]
    groups = {event.group: event for event in events if isinstance(event, Admitted)}
    seats, made = {"one": "alice", "two": "bob"}, {"alice": 0, "bob": 0}
    assert all(len(event.trained) == 1 for event in groups.values())
    for event in events:
        if isinstance(event, Stepped):
            made[event.policy] += 1
        if isinstance(event, Admitted):
            (active,) = event.trained
            (resting,) = set(made) - {active}
            assert event.pinned[resting] == made[resting], "the last that it made"
            assert deterministic or active not in event.pinned
        if isinstance(event, Acted) and seats[event.seat] not in groups[event.group].trained:
            assert event.sample is not None
            played = {version for version, _ in event.sample.versions}
            assert played == {groups[event.group].pinned[seats[event.seat]]}
    assert compare(events).agrees


async def test_frozen_play_has_a_column_of_the_ledger(tmp_path: Path) -> None:
    """Two seats, six steps of two groups of each policy: as many groups trained as played frozen."""
    events = await trained(phased_run(tmp_path))
    found = accounts(events)
    assert found is not None
    for row in found.ledger:
        assert (row.trained.units, row.frozen.units, row.dispatched.units) == (12, 12, 12)
        tokens = [
            event.sample.count
            for event in events
            if isinstance(event, Acted) and event.seat == row.seat and event.sample is not None
        ]
        assert row.frozen.tokens == sum(tokens) - row.trained.tokens > 0
    plain = accounts(await trained(phased_run(tmp_path, phases=())))
    assert plain is not None and all(row.frozen.units == 0 for row in plain.ledger)


async def test_the_report_shows_the_column_where_there_is_something_in_it(tmp_path: Path) -> None:
    for phases, shown in ((PHASES, True), ((), False)):
        run = phased_run(tmp_path / str(shown), phases=phases)
        assert await train_async(run)
        assert ("played frozen" in (run.path / "report.html").read_text(encoding="utf-8")) is shown


async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path) -> None:
    """In the middle of a phase, at its end, at the beginning of the next."""
    assert await crash_at_every_commit(phased_run, tmp_path, after=True) > 20


def test_phases_cannot_change_when_a_run_goes_on(tmp_path: Path) -> None:
    run = phased_run(tmp_path)
    assert train(run)
    with pytest.raises(RunChanged, match=r"phases\.0\.steps = 2, now 1"):
        train(replace(run, phases=(Phase("alice", steps=1), PHASES[1])))
    assert replay(run.path).agrees
    assert train(run), "it is complete, and stays so"


def test_a_replay_finds_a_group_that_was_admitted_in_another_s_phase(tmp_path: Path) -> None:
    run = phased_run(tmp_path)
    assert train(run)
    events = list(read_events(run.path))
    at = next(at for at, event in enumerate(events) if isinstance(event, Admitted))
    first = events[at]
    assert isinstance(first, Admitted)
    forged = Admitted(
        group=first.group,
        source=0,
        index=first.index,
        task=first.task,
        lineup=0,
        trained=["alice"],
        pinned={"alice": 0},
    )
    compared = compare([*events[:at], forged])
    assert len(compared.differences) == 1 and "group 0 was admitted as" in compared.differences[0]


async def test_three_policies_of_which_two_train_together(tmp_path: Path) -> None:
    """A line-up of the third alone is played in its phase alone; a source of both others goes on beside."""
    lineups = [BOTH, Lineup({"one": "carol", "two": "alice"})]
    run = phased_run(
        tmp_path,
        train=Episodes(contest, range(40), lineups),
        held_out=None,
        policies={name: Policy(name, rae()) for name in ("alice", "bob", "carol")},
        phases=[Phase(("alice", "bob"), steps=3), Phase("carol", steps=6)],
        deterministic=False,
    )
    events = await trained(run)
    phases = [event.policy for event in events if isinstance(event, Stepped)]
    assert set(phases[:6]) == {"alice", "bob"} and phases[6:12] == ["carol"] * 6
    assert set(phases[12:]) == {"alice", "bob"} and len(phases) == 18
    assert compare(events).agrees


async def test_a_phase_that_both_are_in_comes_after_one_alone(tmp_path: Path) -> None:
    events = await trained(phased_run(tmp_path, phases=[Phase("alice", steps=2), Phase(("alice", "bob"), steps=2)]))
    trained_ = [tuple(event.trained) for event in events if isinstance(event, Admitted)]
    assert trained_ == [("alice",)] * 4 + [("alice", "bob")] * 4 + [("alice",)] * 4 + [("bob",)] * 8
    assert compare(events).agrees


async def test_temperatures_follow_each_policy_s_own_steps(tmp_path: Path) -> None:
    """From 1.5 to 0.5 in six steps: who is paused stays where it is."""
    cooling = Policy("one", rae(), sampling=Sampling(temperature=1.5), final_temperature=0.5)
    run = phased_run(tmp_path, policies={"alice": cooling, "bob": Policy("two", rae())}, held_out=None, k=0)
    events = await trained(run)
    groups = {event.group: event for event in events if isinstance(event, Admitted)}
    drawn: dict[int, set[float]] = {}
    for event in events:
        if isinstance(event, Acted) and event.seat == "one" and event.sample is not None:
            step = groups[event.group].pinned["alice"]
            drawn.setdefault(step, set()).add(round(event.sample.unpacked().temperature, 6))
    assert drawn == {step: {round(1.5 - 0.2 * min(step, 5), 6)} for step in range(5 + 1)}


def test_what_waits_for_a_phase_says_so(tmp_path: Path) -> None:
    state = Coordinator(schedule_of(phased_run(tmp_path)))
    assert "learner of bob: bob: paused after 0 steps, while others train" in state.waits()


def test_a_line_up_that_no_phase_can_play(tmp_path: Path) -> None:
    """Bob is to learn against an alice that her first phase does not make: refused, unless he can begin with another."""
    later = [Lineup({"one": "alice", "two": Frozen("bob@0")}), Lineup({"one": Frozen("alice@3"), "two": "bob"})]
    run = phased_run(tmp_path, train=Episodes(contest, range(40), later), held_out=None)
    with pytest.raises(SettingError, match=r"line-ups wait for alice@3.*played from the start of its first phase"):
        train(run)
    for phases in (PHASES[::-1], (Phase("bob", steps=6), Phase("alice", steps=6))):
        with pytest.raises(SettingError, match="line-ups wait for alice@3"):
            train(replace(run, phases=phases))
    assert train(replace(run, phases=(Phase("alice", steps=3), PHASES[1])))


def test_versions_that_wait_for_an_evaluation_count(tmp_path: Path) -> None:
    """Alice is at most four steps ahead of bob, and evaluated at every second; each model counts by itself."""
    plain = versions_at_once(phased_run(tmp_path, phases=()))
    ahead = phased_run(tmp_path, phases=[Phase("alice", steps=4), Phase("bob", steps=4)])
    assert versions_at_once(ahead) == plain + 2
    assert versions_at_once(replace(ahead, held_out=None)) == plain - 1


def test_phases_on_the_command_line(tmp_path: Path) -> None:
    run = override(phased_run(tmp_path), [("phases.1.steps", "5")])
    assert run.phases == (PHASES[0], Phase("bob", steps=5))
    with pytest.raises(SettingError, match=r"Phase\('alice', steps=0\): must be a whole number, at least 1"):
        override(phased_run(tmp_path), [("phases.0.steps", "0")])
