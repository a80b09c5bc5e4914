"""Runs whose replies go on with the weights that are published while they are made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sparring import Episodes, Policy, Run, Sampling, ScriptedModels, Seat, environment, grpo
from sparring.backend import Capabilities, SamplingParams, ScriptedBackend
from sparring.errors import SettingError, UnsupportedError
from sparring.learner import train_async
from sparring.learner.checked import check_capabilities
from sparring.learner.replay import compare
from sparring.learner.versions import Versions
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, AnyEvent, Evaluated, Stepped, encode
from tests.learner.worlds import Crash, CrashingSegments, duel_run, events_of

_FIRST: dict[str, float] = {}
LONG = 100_000


def until_new_weights(prompt: str, rng: Random) -> str:
    """Whoever is first asked about a task whose number ends in 3 goes on until the weights change; all others are short."""
    chance = rng.random()
    if "task 3" in prompt and _FIRST.setdefault(prompt, chance) == chance:
        return "a" * (LONG - 2)
    return "b" * rng.randint(1, 5)


@environment
async def talk(task: int, player: Seat) -> float:
    reply = await player.ask(f"task {task % 4}, {task}")
    return float(len(reply.text) % 3)


def talking(folder: Path, **settings: Any) -> Run:
    _FIRST.clear()
    made = Run(
        name="talking",
        train=Episodes(talk, range(64)),
        policies=Policy("m", grpo(), sampling=Sampling(max_tokens=LONG)),
        steps=6,
        groups_per_step=2,
        group_size=2,
        max_staleness=2,
        weights="inflight",
        backend=ScriptedModels(reply=until_new_weights),
        folder=folder,
    )
    return replace(made, **settings)


def stamps(events: Sequence[AnyEvent]) -> list[list[int]]:
    """The versions of each reply, in order."""
    return [[version for version, _ in e.sample.versions] for e in events if isinstance(e, Acted) and e.sample]


def assert_holds(run: Run, events: Sequence[AnyEvent]) -> None:
    """Nothing is stamped that was not made yet, versions go up, none is trained too old; every decision can be made again."""
    committed = dict.fromkeys(run.named_policies, 0)
    for event in events:
        if isinstance(event, Stepped):
            committed[event.policy] = event.step + 1
            assert event.metrics["staleness_max"] <= run.max_staleness
        if isinstance(event, Acted) and event.sample is not None:
            versions = [version for version, _ in event.sample.versions]
            assert versions == sorted(set(versions)) and versions[-1] <= max(committed.values())
    assert set(committed.values()) == {run.steps}
    assert compare(events, run).agrees


async def test_replies_go_on_with_what_is_published(tmp_path: Path) -> None:
    store, run = MemorySegments(), talking(tmp_path)
    with anyio.fail_after(60):
        assert await train_async(run, store=store)
    events = events_of(store)
    assert_holds(run, events)
    assert any(len(versions) > 1 for versions in stamps(events)), "no reply saw a publication"


async def test_replies_of_snapshots_do_not(tmp_path: Path) -> None:
    """The same with short replies, as the long ones would never end."""
    store, run = MemorySegments(), talking(tmp_path, weights="snapshot", backend=ScriptedModels())
    assert await train_async(run, store=store)
    assert_holds(run, events_of(store))
    assert all(len(versions) == 1 for versions in stamps(events_of(store)))


async def test_a_run_that_crashes_goes_on_with_what_was_said(tmp_path: Path) -> None:
    run, kept, finished = talking(tmp_path), MemorySegments(), False
    while not finished:
        before = [encode(event) for event in events_of(kept)]
        with anyio.fail_after(60), suppress(Crash):
            finished = await train_async(run, store=CrashingSegments(kept, 4, after=len(kept.blobs) % 2 == 0))
        assert [encode(event) for event in events_of(kept)][: len(before)] == before, "history was rewritten"
    assert_holds(run, events_of(kept))


async def test_held_out_tasks_and_frozen_opponents_are_played_by_snapshots(tmp_path: Path) -> None:
    run, store = replace(duel_run(tmp_path, k=2, deterministic=False), weights="inflight"), MemorySegments()
    with anyio.fail_after(60):
        assert await train_async(run, store=store)
    assert_holds(run, events_of(store))
    assert [event.version for event in events_of(store) if isinstance(event, Evaluated)] == [0, 2, 3]


async def test_a_player_follows_and_one_of_a_version_does_not() -> None:
    versions = Versions(await ScriptedBackend(lambda prompt, rng: "x" * 40).create_model("m"), keep=1, follow=True)
    with pytest.raises(SettingError, match="nothing is installed yet"):
        versions.player()
    await versions.install(0)
    follower, fixed = versions.player(), versions.player(0)
    versions.hold(0)
    found: dict[str, Any] = {}

    async def sample() -> None:
        found["follower"] = await follower.sample([5], SamplingParams(max_tokens=40, seed=1))

    async with anyio.create_task_group() as group:
        group.start_soon(sample)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        await versions.install(1)
        await versions.install(2)
    (mixed,), (still,) = found["follower"], await fixed.sample([5], SamplingParams(max_tokens=40, seed=1))
    assert (mixed.versions[0][0], mixed.versions[-1][0]) == (0, 2)
    assert still.versions == ((0, 40),)
    assert (follower.version, fixed.version) == (2, 0)


class SnapshotsOnly(ScriptedBackend):
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), kinds=frozenset({"snapshot"}))


def test_what_cannot_be_is_refused_at_start(tmp_path: Path) -> None:
    run = talking(tmp_path)
    check_capabilities(run, ScriptedBackend())
    check_capabilities(replace(run, weights="snapshot"), SnapshotsOnly())
    with pytest.raises(UnsupportedError, match="weights='inflight': this backend samples from snapshot only"):
        check_capabilities(run, SnapshotsOnly())
    with pytest.raises(SettingError, match="weights='inflight': when new weights meet a reply depends on the clock"):
        replace(run, deterministic=True)
    with pytest.raises(SettingError, match="weights='live': must be 'snapshot' or 'inflight'"):
        talking(tmp_path, weights="live")
