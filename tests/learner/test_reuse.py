"""Reuse in a learner: what a step computes of units used again, runs that are killed, and settings that contradict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from sparring import Comparable, F, Reuse, Run, grpo, rae
from sparring.errors import RunChanged, SettingError
from sparring.learner import train_async
from sparring.learner.checked import schedule_of
from sparring.learner.display import settings_lines
from sparring.learner.replay import compare
from sparring.learner.step import mean_advantage
from sparring.rollout import Batch, Coordinator, MemorySegments, Trajectory, Unit
from sparring.rollout.buffer import ReuseRule
from sparring.rollout.events import AnyEvent, Opened, Planned, Stepped
from tests.learner.moods import WELL, run_of
from tests.learner.sets import Prepared, batch, context, prepare, trajectory
from tests.learner.worlds import crash_at_every_commit, duel_run, events_of

NAMES = ("game", "other")


def with_again(fresh: list[Trajectory], again: list[Trajectory], step: int = 3) -> Batch:
    first, more = batch(*fresh, step=step), batch(*again)
    planned = msgspec.structs.replace(first.planned, reused=more.planned.groups)
    return Batch(planned=planned, units=first.units, again=more.units)


def two(group: int, low: float, high: float, *, tokens: int = 3, version: int = 0) -> list[Trajectory]:
    return [
        trajectory(reward, context([tokens], version=version), group=group, episode=at)
        for at, reward in enumerate((low, high))
    ]


# ---------------------------------------------------------------------------------------------------- what a step computes


def test_all_tokens_of_the_step_divide() -> None:
    """Two fresh trajectories of 3 tokens, two old ones of 6: 18 tokens, and the weights of all of them sum to 1."""
    made = prepare(with_again(two(7, 0.0, 1.0), two(2, 0.0, 4.0, tokens=6)), grpo(), {}, NAMES)
    assert (len(made.data), len(made.again)) == (2, 2)
    assert sum(float(datum.weights.sum()) for datum in (*made.data, *made.again)) == pytest.approx(1.0)
    values = [datum.advantages[datum.mask] * 18 for datum in (*made.data, *made.again)]
    for row, value in zip(values, (-0.5, 0.5, -2.0, 2.0), strict=True):
        np.testing.assert_allclose(row, value, rtol=1e-6)


def test_metrics_stand_apart() -> None:
    fresh = two(7, 0.0, 1.0, version=3)
    alone = prepare(batch(*fresh, step=3), grpo(), {}, NAMES)
    made = prepare(with_again(fresh, two(2, 0.0, 4.0, tokens=6, version=1)), grpo(), {}, NAMES)
    reused = {name: value for name, value in made.metrics.items() if name.startswith("reused/")}
    assert {name: value for name, value in made.metrics.items() if name not in reused} == alone.metrics
    assert reused == {
        "reused/reward": 2.0,
        "reused/length": 6.0,
        "reused/staleness": 2.0,
        "reused/staleness_max": 2.0,
        "reused/units": 1.0,
        "reused/trajectories": 2.0,
        "reused/action_tokens": 12.0,
    }
    assert not any(name.startswith("reused/") for name in alone.metrics)


def test_a_baseline_is_moved_by_first_uses_alone() -> None:
    """Used again, a unit is held against the baseline after the fresh ones, and leaves it where it is."""
    fresh, old = two(7, 1.0, 3.0), two(2, 10.0, 20.0)
    estimator = rae(decay=0.5)
    alone = prepare(batch(*fresh), estimator, {}, NAMES)
    made = prepare(with_again(fresh, old), estimator, {}, NAMES)
    assert made.state == alone.state == {"game/solver/": 1.75}
    values = [float(datum.advantages[datum.mask][0]) * 12 for datum in made.again]
    assert values == pytest.approx([10.0 - 1.75, 20.0 - (1.75 + 10.0) / 2])


def test_weights_are_of_every_unit_in_the_batch() -> None:
    def of(priority: Any) -> Mapping[int, float]:
        made = prepare(with_again(two(7, 0.0, 1.0), two(2, 0.0, 4.0, tokens=6)), grpo(), {}, NAMES, priority)
        return made.weights

    assert of(None) == {}
    assert of(mean_advantage) == {7: 0.5, 2: 2.0}
    assert of(lambda unit, advantage: unit.action_tokens * advantage) == {7: 3.0, 2: 24.0}
    for wrong in (-1.0, float("nan"), float("inf"), None, "much", True):
        with pytest.raises(
            SettingError, match=r"reuse: the priority of group 7 is .*: must be a finite number, at least 0"
        ):
            of(lambda unit, advantage, wrong=wrong: wrong)


def test_the_digest_is_over_all_advantages() -> None:
    def digest(high: float) -> Prepared:
        return prepare(with_again(two(7, 0.0, 1.0), two(2, 0.0, high)), grpo(), {}, NAMES)

    assert digest(1.0).digest != digest(2.0).digest
    assert digest(1.0).digest == digest(1.0).digest


# ------------------------------------------------------------------------------------------------------------------- runs


def reusing(folder: Path, *, k: int = 1, deterministic: bool = True, **reuse: Any) -> Run:
    settings: dict[str, Any] = {"units": 2, "how": "prioritized", "max_uses": 3, "max_age": 3}
    return replace(duel_run(folder, k=k, deterministic=deterministic, steps=5), reuse=Reuse(**settings | reuse))


def check_reused(events: list[AnyEvent], run: Run) -> None:
    """Rule 5 from the events alone; the ages are asserted by the fold."""
    assert run.reuse is not None
    for policy in run.named_policies:
        uses: Counter[int] = Counter()
        for event in events:
            if isinstance(event, Planned) and event.policy == policy:
                assert not set(event.reused) & set(event.groups) and len(set(event.reused)) == len(event.reused)
                assert len(event.reused) <= run.reuse.units and set(event.reused) <= set(uses), (
                    "a first use comes first"
                )
                uses.update([*event.groups, *event.reused])
        assert max(uses.values()) <= run.reuse.max_uses
    state = Coordinator(schedule_of(run))
    for event in events:
        state.apply(event)
    for row in state.ledger.table():
        planned = [len(event.reused) for event in events if isinstance(event, Planned) and event.policy == row.policy]
        assert row.reused.units == sum(planned) > 0


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("how", ["uniform", "prioritized"])
async def test_a_run_reuses_and_is_decided_again(tmp_path: Path, how: str, deterministic: bool) -> None:
    run, store = reusing(tmp_path, how=how, deterministic=deterministic), MemorySegments()
    assert await train_async(run, store=store)
    events = events_of(store)
    check_reused(events, run)
    assert compare(events).agrees, compare(events).lines
    stepped = [event for event in events if isinstance(event, Stepped)]
    assert all(bool(event.weights) == (how == "prioritized") for event in stepped)
    last = stepped[-1]
    assert {"loss", "reused/loss"} <= last.engine.keys() and {"reward", "reused/reward"} <= last.metrics.keys()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_every_commit_changes_nothing(tmp_path: Path, after: bool) -> None:
    assert await crash_at_every_commit(reusing, tmp_path, after=after, every=3) > 10


async def test_what_was_tampered_with_is_found_out(tmp_path: Path) -> None:
    store = MemorySegments()
    assert await train_async(reusing(tmp_path, k=0), store=store)
    events = events_of(store)

    def changed(at: int, **fields: Any) -> list[AnyEvent]:
        return [*events[:at], msgspec.structs.replace(events[at], **fields), *events[at + 1 :]]

    plans = [at for at, event in enumerate(events) if isinstance(event, Planned) and event.reused]
    last = events[plans[-1]]
    assert isinstance(last, Planned)
    found = compare(changed(plans[-1], reused=last.reused[:-1])).differences
    assert any(f"reused {last.reused[:-1]}, decided again" in line for line in found), found
    steps = [at for at, event in enumerate(events) if isinstance(event, Stepped)]
    found = compare(changed(steps[-1], weights={0: 5.0})).differences
    assert any("other weights of units that may be used again" in line for line in found), found


def own(unit: Unit, advantage: float) -> float:
    return 1.0 + unit.action_tokens


async def test_a_priority_of_ones_own_needs_the_run(tmp_path: Path) -> None:
    run, store = reusing(tmp_path, how=own), MemorySegments()
    assert await train_async(run, store=store)
    events = events_of(store)
    assert compare(events, run).agrees, compare(events, run).lines
    with pytest.raises(SettingError, match=r"reuse: how is .*:own'.*name the run's file too"):
        compare(events)
    other = compare(events, replace(run, reuse=reusing(tmp_path).reuse)).differences
    assert any("other weights" in line for line in other)


async def test_reuse_is_a_setting_of_the_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL, reuse=Reuse(units=1, how=own))
    store = MemorySegments()
    opened = (await trained_with(run, store))[0]
    assert isinstance(opened, Opened)
    assert any("reuse=Reuse(units=1, how=" in line and "max_age=4" in line for line in settings_lines(opened.run))
    assert f"code of {__name__}:own" in opened.run["fingerprints"]
    with pytest.raises(RunChanged, match=r"reuse.units = 1, now 2"):
        await train_async(replace(run, reuse=Reuse(units=2, how=own)), store=store)


async def trained_with(run: Run, store: MemorySegments) -> list[AnyEvent]:
    with anyio.fail_after(20):
        assert await train_async(run, store=store)
    return events_of(store)


async def test_an_estimator_that_remembers_sees_each_unit_once(tmp_path: Path) -> None:
    """Its state counts the sets of first uses."""
    run = reusing(tmp_path, how="uniform")
    alice = replace(run.named_policies["alice"], algorithm=grpo(advantages=Counting()))
    run = replace(run, policies={**run.named_policies, "alice": alice})
    store = MemorySegments()
    events = await trained_with(run, store)
    last = [event for event in events if isinstance(event, Stepped) and event.policy == "alice"][-1]
    assert last.durable["advantages"] == {"sets": 5 * 2}


class Counting:
    name = "counting"
    minimum = 1

    def __call__(self, group: Comparable, state: Mapping[str, Any]) -> tuple[F, Mapping[str, Any]]:
        return group.rewards, {"sets": state.get("sets", 0) + 1}


# --------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"units": 0}, r"Reuse\(units=0\): must be a whole number, at least 1"),
        ({"units": 1.0}, r"Reuse\(units=1.0\)"),
        ({"units": True}, r"Reuse\(units=True\)"),
        ({"max_uses": 1}, r"Reuse\(max_uses=1\): must be a whole number, at least 2, as the first use counts"),
        ({"max_age": 0}, r"Reuse\(max_age=0\): must be .* at least 1, as a unit is older on its second use"),
        ({"how": "random"}, r"Reuse\(how='random'\): must be 'uniform', 'prioritized' or a function"),
        ({"how": 3}, r"Reuse\(how=3\)"),
    ],
)
def test_reuse_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    whole: dict[str, Any] = {"units": 1}
    with pytest.raises(SettingError, match=said):
        Reuse(**whole | fields)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"reuse='all': must be None or Reuse\(units=...\)"):
        run_of(tmp_path, WELL, reuse="all")
    with pytest.raises(
        SettingError, match="with max_staleness=3 a unit may be older than max_age on its first use; make"
    ):
        run_of(tmp_path, WELL, max_staleness=3, reuse=Reuse(units=1, max_age=2))
    assert run_of(tmp_path, WELL, max_staleness=2, reuse=Reuse(units=1, max_age=2)).reuse is not None


def test_what_the_coordinator_is_told(tmp_path: Path) -> None:
    rule = ReuseRule(units=1, weighted=False, max_uses=2, max_age=4)
    assert schedule_of(run_of(tmp_path, WELL)).reuse is None
    assert schedule_of(run_of(tmp_path, WELL, reuse=Reuse(units=1))).reuse == rule
    for how in ("prioritized", own):
        chosen: Any = how
        assert schedule_of(run_of(tmp_path, WELL, reuse=Reuse(units=1, how=chosen))).reuse == replace(
            rule, weighted=True
        )
