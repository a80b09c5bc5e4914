"""The checks of a run that was cut off and gone on with: each holds for a run that did, and finds a planted defect.

What is doubled or lost is planted in `test_random_runs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sparring import Reuse, Run
from sparring.errors import ReplayDiverged
from sparring.learner import train_async
from sparring.learner.continuity import Verdict, decided_again, equal, exactly_once, trained_again, unchanged
from sparring.rollout import MemorySegments
from sparring.rollout.events import Acted, Admitted, AnyEvent, Ended, Planned, Stepped
from tests.learner.worlds import duel_run, events_of

Change = Callable[[Any], AnyEvent]


async def told(run: Run) -> list[AnyEvent]:
    store = MemorySegments()
    assert await train_async(run, store=store)
    return events_of(store)


def changed(events: list[AnyEvent], kind: type, change: Change, which: int = 0) -> list[AnyEvent]:
    """The events, one of which is another."""
    at = [place for place, event in enumerate(events) if isinstance(event, kind)][which]
    return [*events[:at], change(events[at]), *events[at + 1 :]]


def wrong(verdicts: list[Verdict]) -> dict[str, str]:
    """The first line of each check that fails."""
    return {verdict.name: verdict.wrong[0] for verdict in verdicts if not verdict.holds}


def setting(**fields: Any) -> Change:
    return lambda event: msgspec.structs.replace(event, **fields)


async def test_a_journal_that_only_grew(tmp_path: Path) -> None:
    events = await told(duel_run(tmp_path))
    assert unchanged([], events).holds and unchanged(events[:20], events).holds and unchanged(events, events).holds
    assert unchanged(events[:20], events).figure == "20 events"
    other = changed(events, Acted, setting(message="other"))
    assert "was Acted(" in unchanged(events[:20], other).wrong[0]
    assert not unchanged(events, events[:-1]).holds


async def test_two_runs_that_are_equal(tmp_path: Path) -> None:
    run = duel_run(tmp_path / "one", k=1)
    events, others = await told(run), await told(replace(run, folder=tmp_path / "two"))
    assert [(verdict.name, verdict.holds) for verdict in equal(events, others)] == [
        ("weights as undisturbed", True),
        ("metrics as undisturbed", True),
        ("canonical journal as undisturbed", True),
    ]


@pytest.mark.parametrize(
    ("kind", "change", "found"),
    [
        (Stepped, setting(digest="0" * 64), {"weights", "canonical journal"}),
        (Stepped, setting(metrics={"reward": 1.0}), {"metrics", "canonical journal"}),
        (Stepped, setting(advantages=""), {"metrics", "canonical journal"}),
        (Stepped, setting(policy="carol"), {"weights", "canonical journal"}),
        (Ended, setting(fault="KeyError"), {"canonical journal"}),
        (Acted, setting(turn=7), {"canonical journal"}),
    ],
)
async def test_two_runs_that_are_not(tmp_path: Path, kind: type, change: Change, found: set[str]) -> None:
    events = await told(duel_run(tmp_path))
    verdicts = equal(changed(events, kind, change), events)
    assert wrong(verdicts).keys() == {f"{name} as undisturbed" for name in found}
    assert "instead of" in wrong(verdicts)["canonical journal as undisturbed"]


async def test_a_run_that_is_longer_is_not_equal(tmp_path: Path) -> None:
    events = await told(duel_run(tmp_path))
    last = max(at for at, event in enumerate(events) if isinstance(event, Stepped))
    shorter = [*events[:last], *events[last + 1 :]]
    assert "is in one of the two alone" in wrong(equal(events, shorter))["weights as undisturbed"]
    assert "events instead of" in wrong(equal(shorter, events))["canonical journal as undisturbed"]


@pytest.mark.parametrize(
    ("kind", "change", "name", "said"),
    [
        (Admitted, setting(group=1), "groups admitted, in order", "1 is there 2 times"),
        (Planned, setting(groups=[0, 0]), "units trained, once each", "group 0 is in it 2 times"),
        (Planned, setting(groups=[0, 99]), "units trained, once each", "group 99 is not its own"),
        (Planned, setting(reused=[1]), "units trained, once each", "group 1 was not trained before"),
        (Planned, setting(step=1), "steps planned, then made", "Planned 1"),
    ],
)
async def test_what_is_not_as_planned_is_found(
    tmp_path: Path, kind: type, change: Change, name: str, said: str
) -> None:
    run = duel_run(tmp_path)
    events = await told(run)
    assert wrong(exactly_once(events, run)) == {}
    assert said in wrong(exactly_once(changed(events, kind, change), run))[name]


async def test_groups_out_of_order_are_found(tmp_path: Path) -> None:
    run = duel_run(tmp_path)
    events = await told(run)
    swapped = changed(changed(events, Admitted, setting(group=1)), Admitted, setting(group=0), which=1)
    assert "in the order [1, 0" in wrong(exactly_once(swapped, run))["groups admitted, in order"]


async def test_uses_that_are_not_allowed_are_found(tmp_path: Path) -> None:
    run = replace(duel_run(tmp_path, k=1, deterministic=False, steps=5), reuse=Reuse(units=1, max_uses=2))
    events = await told(run)
    assert wrong(exactly_once(events, run)) == {}
    name = "units trained, once each"
    plans = [event for event in events if isinstance(event, Planned) and event.policy == "alice"]
    first = plans[0].groups
    again = setting(groups=first)
    which = [event for event in events if isinstance(event, Planned)].index(plans[1])
    assert "was trained before" in wrong(exactly_once(changed(events, Planned, again, which), run))[name]
    crowded = setting(reused=first)
    assert "more than there are places" in wrong(exactly_once(changed(events, Planned, crowded, which), run))[name]
    often = replace(run, reuse=Reuse(units=1, max_uses=2))
    for at in (1, 2, 3):
        which = [event for event in events if isinstance(event, Planned)].index(plans[at])
        events = changed(events, Planned, setting(reused=first[:1]), which)
    assert "is used too often" in wrong(exactly_once(events, often))[name]


async def test_other_decisions_are_found(tmp_path: Path) -> None:
    events = await told(duel_run(tmp_path))
    assert decided_again(events).holds and "3 steps" not in decided_again(events).figure
    assert decided_again(events).figure == "6 admissions, 6 batches, 6 steps, 0 snapshots"
    assert not decided_again(changed(events, Stepped, setting(advantages=""))).holds


@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_run_is_trained_again_from_its_journal(tmp_path: Path, deterministic: bool) -> None:
    run = duel_run(tmp_path, k=1, deterministic=deterministic, steps=4)
    assert await train_async(run)
    verdict = await trained_again(run)
    assert verdict.holds and verdict.figure == "8 steps of 2 policies"
    other = replace(run, seed=3)
    if deterministic:
        with pytest.raises(ReplayDiverged, match="ended in other weights"):
            await trained_again(other)
    else:
        found = (await trained_again(other)).wrong
        assert len(found) == 8 and "ended in other weights" in found[0]
