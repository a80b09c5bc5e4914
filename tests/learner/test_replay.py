"""A replay agrees with the run it replays, and says where a journal was tampered with."""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sparring import Comparable, F, Run, grpo
from sparring.errors import SettingError
from sparring.learner import train, train_async
from sparring.learner.lines import LinesState
from sparring.learner.replay import compare, replay
from sparring.learner.snapshots import RunState, readable
from sparring.rollout import MemorySegments
from sparring.rollout.events import Admitted, AnyEvent, Ended, Planned, Stepped
from sparring.rollout.snapshot import packed
from tests.learner.worlds import duel_run, events_of


async def history(tmp_path: Path, *, deterministic: bool = False) -> list[AnyEvent]:
    store = MemorySegments()
    await train_async(duel_run(tmp_path, k=2, deterministic=deterministic, steps=5), store=store)
    return events_of(store)


@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_replay_agrees(tmp_path: Path, deterministic: bool) -> None:
    events = await history(tmp_path, deterministic=deterministic)
    comparison = compare(events)
    assert comparison.agrees, comparison.lines
    counted = (comparison.admissions, comparison.batches, comparison.steps)
    assert counted == (10, 10, 10), "two policies, five steps of two groups"


def altered(events: list[AnyEvent], kind: type, change: dict[str, object]) -> list[AnyEvent]:
    index = [number for number, event in enumerate(events) if isinstance(event, kind)][-1]
    return [*events[:index], msgspec.structs.replace(events[index], **change), *events[index + 1 :]]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (Stepped, {"advantages": "0" * 64}, "other advantages"),
        (Stepped, {"metrics": {"reward": 9.0}}, "reward"),
        (Stepped, {"durable": {"advantages": {"duel/second/": 7.0}}}, "state differs"),
        (Admitted, {"index": 99}, "was admitted as"),
    ],
)
async def test_a_tampered_journal_is_found_out(
    tmp_path: Path, kind: type, change: dict[str, object], said: str
) -> None:
    comparison = compare(altered(await history(tmp_path), kind, change))
    assert not comparison.agrees
    assert any(said in line for line in comparison.differences), comparison.lines


async def test_a_changed_reward_changes_the_advantages(tmp_path: Path) -> None:
    events = await history(tmp_path)
    first = next(number for number, event in enumerate(events) if isinstance(event, Ended))
    ended = events[first]
    assert isinstance(ended, Ended)
    results = [msgspec.structs.replace(result, value=99.0) for result in ended.results]
    comparison = compare([*events[:first], msgspec.structs.replace(ended, results=results), *events[first + 1 :]])
    assert any("other advantages" in line for line in comparison.differences)


async def test_another_batch_is_found_out(tmp_path: Path) -> None:
    events = await history(tmp_path)
    planned = next(number for number, event in enumerate(events) if isinstance(event, Planned))
    event = events[planned]
    assert isinstance(event, Planned)
    turned = msgspec.structs.replace(event, groups=event.groups[::-1])
    comparison = compare([*events[:planned], turned, *events[planned + 1 :]])
    first, second = comparison.differences[:2]
    assert first.startswith(f"step 0 of {event.policy!r} took {event.groups[::-1]}, ")
    assert "Planned 1 cannot follow what is before it" in second
    assert comparison.steps == 0 and not comparison.agrees


def test_a_folder_without_a_journal(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="journal"):
        replay(tmp_path)


class Halved:
    """An estimator of the user's, of which a journal holds the name alone."""

    name = "halved"
    minimum = 1

    def __call__(self, group: Comparable, state: Mapping[str, Any]) -> tuple[F, Mapping[str, Any]]:
        return group.rewards / np.float32(2), {"sets": state.get("sets", 0) + 1}


def with_own_estimator(folder: Path) -> Run:
    run = duel_run(folder, steps=2)
    policies = run.named_policies
    return replace(run, policies={**policies, "bob": replace(policies["bob"], algorithm=grpo(advantages=Halved()))})


async def test_an_estimator_of_ones_own_needs_the_run(tmp_path: Path) -> None:
    run, store = with_own_estimator(tmp_path), MemorySegments()
    assert await train_async(run, store=store)
    events = events_of(store)
    assert compare(events, run).agrees
    with pytest.raises(
        SettingError, match=f"advantages of policy 'bob' are '{__name__}:Halved'.*name the run's file too"
    ):
        compare(events)


async def test_another_estimator_is_found_out(tmp_path: Path) -> None:
    store = MemorySegments()
    assert await train_async(with_own_estimator(tmp_path), store=store)
    found = compare(events_of(store), duel_run(tmp_path, steps=2)).differences
    assert any("of 'bob': other advantages" in line for line in found)
    assert not any("of 'alice'" in line for line in found)


async def test_a_run_of_other_policies_is_refused(tmp_path: Path) -> None:
    run = duel_run(tmp_path)
    other = replace(run, policies={"alice": run.named_policies["alice"], "carol": run.named_policies["bob"]})
    with pytest.raises(
        SettingError, match=r"\['alice', 'carol'\], the journal those of \['alice', 'bob'\]: name the file"
    ):
        compare(await history(tmp_path), other)


async def recorded(tmp_path: Path) -> MemorySegments:
    store = MemorySegments()
    await train_async(duel_run(tmp_path, k=2, deterministic=False, steps=5), store=store)
    return store


async def test_every_snapshot_is_folded_again(tmp_path: Path) -> None:
    store = await recorded(tmp_path)
    comparison = compare(events_of(store), snapshots=store.snapshots())
    assert comparison.agrees, comparison.lines
    assert comparison.snapshots == len(store.snapshots()) >= 1
    assert "folded again: all agree" in comparison.lines[0]


def changed_state(state: RunState, change: Mapping[str, object]) -> RunState:
    """The same with something else in it."""
    coordinator = msgspec.structs.replace(state.unpacked(), **change)
    return msgspec.structs.replace(state, coordinator=msgspec.Raw(packed(coordinator)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: packed(changed_state(state, {"restarts": 7})), "come to: restarts"),
        (lambda state: packed(changed_state(state, {"restarts": 7, "groups": {}, "barren": {}})), "come to: "),
        (lambda state: packed(msgspec.structs.replace(state, versions={"alice": 0, "bob": 9})), "come to: versions"),
        (lambda state: packed(msgspec.structs.replace(state, lines=LinesState())), "come to: lines"),
        (lambda state: packed(msgspec.structs.replace(state, step=99)), "no such checkpoint"),
        (lambda state: packed(msgspec.structs.replace(state, coordinator=msgspec.Raw(packed(7)))), "is damaged"),
        (lambda state: packed(state)[:-1], "is damaged"),
    ],
)
async def test_a_planted_difference_in_a_snapshot_is_named(
    tmp_path: Path, change: Callable[[RunState], bytes], said: str
) -> None:
    store = await recorded(tmp_path)
    (segment, state) = readable(store.snapshots())[-1]
    others = store.snapshots()[:-1]
    comparison = compare(events_of(store), snapshots=[*others, (segment, change(state))])
    assert not comparison.agrees and comparison.snapshots == len(others)
    (difference,) = comparison.differences
    assert said in difference, difference


async def test_a_snapshot_of_another_schema_is_not_looked_at(tmp_path: Path) -> None:
    store = await recorded(tmp_path)
    foreign = [(segment, packed({"schema": 99})) for segment, _ in store.snapshots()]
    comparison = compare(events_of(store), snapshots=foreign)
    assert comparison.agrees and comparison.snapshots == 0


def test_a_folder_s_snapshots_are_replayed(tmp_path: Path) -> None:
    run = duel_run(tmp_path)
    train(run)
    assert replay(run.path).agrees and replay(run.path).snapshots >= 1
    with closing(sqlite3.connect(run.path / "journal.db")) as database, database:
        database.execute("UPDATE snapshots SET blob = ?", (b"nothing",))
    assert any("is damaged" in line for line in replay(run.path).differences)
