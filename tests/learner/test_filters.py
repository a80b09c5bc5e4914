"""Filters in runs: what is dropped is replaced, up to a ceiling; nothing else of a run changes by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from sparring import Episodes, EqualRewards, Lineup, Policy, Run, ScriptedModels, Seat, environment, grpo, rae
from sparring.errors import SettingError, TooManyFaults
from sparring.learner import train_async
from sparring.learner.checked import schedule_of
from sparring.learner.replay import compare
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import Admitted, AnyEvent, Ended, Planned
from tests.learner.moods import WELL, run_of, trained
from tests.learner.worlds import crash_at_every_commit, events_of


@environment
async def coin(task: int, first: Seat, second: Seat) -> dict[Seat, float]:
    """Rewards of 0 and 1, so that groups of two are equal about every second time."""
    one = (await first.ask(f"task {task}")).text
    return {first: float(one < "e"), second: float((await second.ask(one)).text < "e")}


def coins(folder: Path, *, k: int = 0, policies: int = 1, deterministic: bool = True, **settings: Any) -> Run:
    names = ["alice", "bob"][:policies]
    plain = Run(
        name="coins",
        train=Episodes(coin, range(50), Lineup({"first": names[0], "second": names[-1]})),
        policies={name: Policy(name, grpo(filters=[EqualRewards()])) for name in names},
        steps=3,
        groups_per_step=2,
        group_size=2,
        max_staleness=k,
        evaluate_every=2,
        backend=ScriptedModels(),
        deterministic=deterministic,
        max_refill=200,
        folder=folder,
    )
    return replace(plain, **settings)


def state_of(events: Sequence[AnyEvent], run: Run) -> Coordinator:
    state = Coordinator(schedule_of(run))
    for event in events:
        state.apply(event)
    return state


def returns(events: Sequence[AnyEvent], group: int, seats: Sequence[str]) -> dict[str, set[float | None]]:
    ended = [event for event in events if isinstance(event, Ended) and event.group == group]
    return {seat: {r.value for one in ended for r in one.results if r.seat == seat} for seat in seats}


@pytest.mark.parametrize("policies", [1, 2])
@pytest.mark.parametrize("k", [0, 1])
async def test_every_step_is_full_of_units_that_differ(tmp_path: Path, k: int, policies: int) -> None:
    run = coins(tmp_path, k=k, policies=policies, deterministic=False)
    events = await trained(run)
    seats = {"alice": ["first"], "bob": ["second"]} if policies == 2 else {"alice": ["first", "second"]}
    for event in events:
        if isinstance(event, Planned):
            assert len(event.groups) == 2
            for group in event.groups:
                assert any(len(values) > 1 for values in returns(events, group, seats[event.policy]).values()), event
    state = state_of(events, run)
    dropped = {row.policy: row.dropped["filter"].units for row in state.ledger.table()}
    assert all(count > 0 for count in dropped.values()), dropped
    trained_units = {policy: counts.trained for policy, counts in state.budget.statistics().items()}
    assert trained_units == dict.fromkeys(run.named_policies, 6)
    assert any("dropped (filter)" in line for line in compare(events).lines)


async def test_a_deterministic_run_leaves_holes(tmp_path: Path) -> None:
    events = await trained(coins(tmp_path))
    sizes = [len(event.groups) for event in events if isinstance(event, Planned)]
    assert len(sizes) == 3 and min(sizes) < 2
    assert len([event for event in events if isinstance(event, Admitted)]) == 6


@environment
async def even(task: int, only: Seat) -> float:
    """Every reward is the same."""
    await only.ask(f"task {task}")
    return 1.0


async def test_the_ceiling_names_the_tasks_and_the_remedy(tmp_path: Path) -> None:
    """Resumed, it counts anew, and the message tells of the whole streak."""
    run = run_of(tmp_path, even, policies=Policy("model", grpo(filters=[EqualRewards()])), max_refill=5)
    store = MemorySegments()
    said = (
        r"(\d+) groups in a row had equal rewards for 'policy', the last of them tasks (\d+ of train source 0 \(even\), ){4}"
        r"\d+ of train source 0 \(even\): give tasks .*group_size than 2, a larger max_refill than 5, or leave out the filter"
    )
    for _ in range(2):
        kept = state_of(events_of(store), run).barren["policy"].count  # what was on the disk when the run was stopped
        with anyio.fail_after(20), pytest.raises(TooManyFaults, match=said) as caught:
            await train_async(run, store=store)
        assert int(str(caught.value).split()[0]) >= kept + 5
    assert not [event for event in events_of(store) if isinstance(event, Planned)]


async def test_a_run_that_is_refused_its_refills_can_have_more(tmp_path: Path) -> None:
    """The ceiling decides how a run goes on, not what it is."""
    store, run = MemorySegments(), coins(tmp_path, deterministic=False, max_refill=1)
    with pytest.raises(TooManyFaults, match="1 groups in a row had equal rewards"):
        await train_async(run, store=store)
    assert await train_async(replace(run, max_refill=200), store=store)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("k", "policies"), [(0, 1), (1, 2)])
async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path, k: int, policies: int, after: bool) -> None:
    commits = await crash_at_every_commit(lambda folder: coins(folder, k=k, policies=policies), tmp_path, after=after)
    assert commits > 6


async def test_a_batch_that_the_filter_refuses_is_found_out(tmp_path: Path) -> None:
    """A journal whose rewards were made equal afterwards no longer leads to its batches."""
    events = await trained(coins(tmp_path, deterministic=False))
    group = next(event for event in events if isinstance(event, Planned)).groups[0]
    altered = [
        msgspec.structs.replace(one, results=[msgspec.structs.replace(r, value=1.0) for r in one.results])
        if isinstance(one, Ended) and one.group == group
        else one
        for one in events
    ]
    assert not compare(altered).agrees


def test_the_schedule_says_who_filters(tmp_path: Path) -> None:
    run = coins(tmp_path, policies=2)
    policies = {
        **run.named_policies,
        "bob": Policy("bob", grpo(filters=[EqualRewards()], compare={"first": "episode"})),
    }
    assert schedule_of(replace(run, policies=policies)).equal_rewards == {"alice": {}, "bob": {"first": "episode"}}
    assert schedule_of(replace(run, policies={**policies, "bob": Policy("bob")})).equal_rewards == {"alice": {}}


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    filtered = replace(rae(), filters=[EqualRewards()])
    with pytest.raises(
        SettingError, match=r"group_size=1: .*EqualRewards\(\) of 'policy' would drop every unit; use a"
    ):
        run_of(tmp_path, WELL, group_size=1, policies=Policy("model", filtered))
    alone = replace(filtered, compare={"only": "episode"})
    assert run_of(tmp_path, WELL, group_size=1, policies=Policy("model", alone)), "forks are compared within an episode"
    for wrong in (0, -1, 2.0, True, "many"):
        with pytest.raises(SettingError, match=r"max_refill=.*: must be None or a whole number of groups, at least 1"):
            run_of(tmp_path, WELL, max_refill=wrong)
    values: list[Any] = [EqualRewards(), [EqualRewards], "equal", [3], {"equal": EqualRewards()}]
    for value in values:
        with pytest.raises(
            SettingError, match=r"grpo\(filters=.*must be a list of filters, as in \[EqualRewards\(\)\]"
        ):
            grpo(filters=value)
    assert run_of(tmp_path, WELL).most_refills == 32 and run_of(tmp_path, WELL, groups_per_step=9).most_refills == 36
    assert run_of(tmp_path, WELL, max_refill=3).most_refills == 3
