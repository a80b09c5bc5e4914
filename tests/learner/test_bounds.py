"""Policies with a bound of their own on how old what they are trained on may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring import Drop, Policy, Run
from sparring.errors import SettingError
from sparring.learner import train_async
from sparring.learner.bounds import bounds, most_staleness
from sparring.learner.checked import schedule_of, versions_at_once
from sparring.learner.overrides import override
from sparring.learner.replay import compare
from sparring.rollout import MemorySegments
from sparring.rollout.events import Stepped
from tests.learner.worlds import crash_at_every_commit, duel_run, events_of


def bounded(run: Run, **own: int) -> Run:
    policies = {name: replace(policy, max_staleness=own.get(name)) for name, policy in run.named_policies.items()}
    return replace(run, policies=policies)


def ages(events: list[Any]) -> Mapping[str, float]:
    """The oldest token of each policy's steps, in versions."""
    steps = [event for event in events if isinstance(event, Stepped)]
    return {name: max(one.metrics["staleness_max"] for one in steps if one.policy == name) for name in ("alice", "bob")}


def test_the_run_s_bound_is_that_of_whoever_has_none(tmp_path: Path) -> None:
    run = replace(duel_run(tmp_path, k=2, steps=6), final_staleness=4)
    plain, mixed = bounds(run), bounds(bounded(run, alice=1))
    assert plain["alice"] == plain["bob"] == run.bound
    assert mixed["bob"] == run.bound and mixed["alice"].final_staleness is None
    assert [mixed["alice"].staleness(step) for step in range(3)] == [1, 1, 1]
    assert (most_staleness(run), most_staleness(bounded(run, alice=7))) == (4, 7)
    assert schedule_of(bounded(run, alice=1)).bounds == mixed
    assert versions_at_once(bounded(run, alice=9)) == versions_at_once(run) + 5


@pytest.mark.parametrize("own", [{"alice": 0}, {"bob": 0}, {"alice": 3, "bob": 0}])
async def test_nobody_is_trained_on_what_is_older_than_its_own_bound(tmp_path: Path, own: dict[str, int]) -> None:
    run = bounded(duel_run(tmp_path, k=2, deterministic=False, steps=8), **own)
    store = MemorySegments()
    assert await train_async(run, store=store)
    events = events_of(store)
    found, most = ages(events), {"alice": 2, "bob": 2} | own
    assert all(found[name] <= most[name] for name in found), found
    assert compare(events).agrees


async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path) -> None:
    def run_in(folder: Path) -> Run:
        return bounded(duel_run(folder, k=1), alice=0, bob=2)

    assert await crash_at_every_commit(run_in, tmp_path, after=True) > 10


@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_what_is_no_bound_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match="max_staleness="):
        Policy("model", max_staleness=value)


def test_what_belongs_to_the_bound_is_held_against_the_largest(tmp_path: Path) -> None:
    run = duel_run(tmp_path, k=1, deterministic=False)
    with pytest.raises(SettingError, match="nothing gets older than max_staleness=1"):
        replace(run, pacing=Drop(versions=1))
    assert replace(bounded(run, bob=3), pacing=Drop(versions=1)).pacing == Drop(versions=1)


def test_it_is_set_on_the_command_line(tmp_path: Path) -> None:
    run = override(duel_run(tmp_path), [("policies.bob.max_staleness", "3")])
    assert {name: policy.max_staleness for name, policy in run.named_policies.items()} == {"alice": None, "bob": 3}
