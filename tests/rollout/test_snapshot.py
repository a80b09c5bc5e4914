"""The coordinator's state as bytes: whole, equal for equal histories, and gone on from as if nothing had been left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
import pytest

from sparring.agents import League
from sparring.errors import RunChanged
from sparring.rollout import Bound, Coordinator, Curriculum, Schedule
from sparring.rollout.buffer import ReuseRule
from sparring.rollout.events import Accepted, AnyEvent, Checkpointed, Died, Evaluated, Planned, Restarted, Retried
from sparring.rollout.league import Opponent
from sparring.rollout.snapshot import SCHEMA, CoordinatorState, differing, packed, unpacked
from tests.rollout.told import TWO_SEATS, Story, schedule


def eventful(*, pinned: bool = False) -> Story:
    """Something for every part of the state: drops, faults, restarts, deaths, reuse, curriculum, league, a planned batch."""
    plan = schedule([TWO_SEATS, {"one": "alice"}], [{"one": "bob"}], k=2, steps=9, pinned=pinned)
    past = Opponent(name="League(alice)", policy="alice", league=League("alice", sampler="prioritised", every=1))
    first = replace(plan.sources[0], curriculum=Curriculum(window=2), opponents=({}, {"two": past}))
    sources = (first, plan.sources[1])
    plan = replace(
        plan,
        sources=sources,
        reuse=ReuseRule(units=1, weighted=True, max_uses=3, max_age=4),
        equal_rewards={"bob": {"one": "group", "two": "group"}},
    )
    story = Story(plan)
    story.tell(Evaluated(name="h", version=0, headline="", values=[], rewards=[], transcripts=[]))
    for _ in range(4):
        story.admit_all()
        for group in list(story.state.groups):
            live = story.state.groups[group]
            if live.playing and group % 7 != 6:
                oldest = max(story.state.budget.version(policy) for policy in live.admitted.trained)
                version = live.admitted.pinned.get("alice", min(oldest, *live.since.values()))
                story.end(group, fault="RuntimeError" if group % 5 == 3 else "", version=version, rewards=[1.0, 0.5])
        for policy in ("alice", "bob"):
            if not isinstance(story.state.next_batch(policy), Planned):
                continue
            groups = story.plan(policy)
            story.step(policy, weights=dict.fromkeys(groups, 0.5), to=0)
            story.tell(Checkpointed(policy=policy, step=story.state.budget.version(policy)))
    story.admit_all()
    playing = [group for group, live in story.state.groups.items() if live.playing]
    seat = next(iter(story.state.trained_seats(story.state.groups[playing[-1]].admitted)))
    story.act(playing[-1], 0, seat, turn=1)
    story.tell(Restarted(group=playing[-1], member=0))
    story.act(playing[-1], 0, seat, turn=1)
    while not isinstance(story.state.next_batch("alice"), Planned):
        story.end(playing.pop(0), version=story.state.budget.version("alice"), rewards=[1.0, 0.5])
    story.plan("alice")
    for group in playing[:-1]:
        story.end(group, fault="all")
    story.act(playing[-1], 1, seat)
    story.tell(Retried(group=playing[-1], member=1, fault="KeyError", detail="'x'"))
    story.tell(Died(life="a", group=99, member=0))
    story.tell(Accepted(changes=["one"], fingerprints={"one": "two"}))
    return story


def folded(plan: Schedule, events: list[AnyEvent]) -> Coordinator:
    state = Coordinator(plan)
    for event in events:
        state.apply(event)
    return state


def restored(plan: Schedule, blob: bytes) -> Coordinator:
    state = Coordinator(plan)
    state.restore(unpacked(blob))
    return state


@pytest.mark.parametrize("pinned", [False, True])
def test_from_any_point_on_the_rest_leads_to_the_same_state(pinned: bool) -> None:
    story = eventful(pinned=pinned)
    plan, whole = story.state.schedule, packed(story.state.state())
    running = Coordinator(plan)
    for at, event in enumerate(story.events):
        running.apply(event)
        again = restored(plan, packed(running.state()))
        assert packed(again.state()) == packed(running.state()), at
        assert (again.next_group(), again.waits()) == (running.next_group(), running.waits()), at
        for later in story.events[at + 1 :]:
            again.apply(later)
        assert packed(again.state()) == whole, at
    assert running.bias.lines == again.bias.lines and running.ledger.table() == again.ledger.table()


def taken_apart(value: Any) -> Any:
    """All that an object holds, down to numbers and text, whether it is part of any state or not."""
    if isinstance(value, np.ndarray):
        return [f"{value.dtype}", value.tolist()]
    if isinstance(value, Mapping):
        return [[taken_apart(key), taken_apart(item)] for key, item in value.items()]
    if isinstance(value, set):
        return sorted(taken_apart(item) for item in value)
    if isinstance(value, list | tuple | deque):
        return [taken_apart(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return {name: taken_apart(getattr(value, name)) for name in value.__struct_fields__}
    if is_dataclass(value):
        return {field.name: taken_apart(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "__dict__"):
        return {name: taken_apart(item) for name, item in vars(value).items()}
    return value


@pytest.mark.parametrize("pinned", [False, True])
def test_nothing_that_a_coordinator_holds_is_left_out(pinned: bool) -> None:
    """Whoever gives it, or a part of it, another attribute must put that into the state too."""
    story = eventful(pinned=pinned)
    again = restored(story.state.schedule, packed(story.state.state()))
    whole, parts = taken_apart(story.state), taken_apart(again)
    for name in whole:
        assert parts[name] == whole[name], name
    again.buffer._used["alice"].clear()
    assert taken_apart(again) != whole, "a part of a part is looked at"


def test_the_story_has_something_for_every_part() -> None:
    """Else a part that is forgotten would not be missed."""
    story = eventful()
    fresh = Coordinator(story.state.schedule).state()
    assert differing(fresh, story.state.state()) == list(CoordinatorState.__struct_fields__)
    state = story.state.state()
    assert state.buffer.units and state.buffer.used and state.batches
    assert any(recent and recent.counted for recent in state.successes)
    assert state.standings.ratings and state.standings.matrix and state.standings.recent
    assert {"alice", "bob"} <= set(state.standings.matrix)
    waiting = eventful(pinned=True).state.state().standings.waiting
    assert any(one.games for one in waiting) and any(one.meetings for one in waiting)
    assert any(recent and recent.waiting for recent in eventful(pinned=True).state.state().successes)
    assert any(episode.past for group in state.groups.values() for episode in group.members)


@pytest.mark.parametrize("part", CoordinatorState.__struct_fields__)
def test_a_part_that_is_forgotten_is_named(part: str) -> None:
    story = eventful()
    fresh = Coordinator(story.state.schedule).state()
    forgetful = msgspec.structs.replace(story.state.state(), **{part: getattr(fresh, part)})
    assert differing(story.state.state(), forgetful) == [part]


def test_arrays_come_back_as_they_were() -> None:
    story = eventful()
    before, after = story.state.state().buffer.units, unpacked(packed(story.state.state())).buffer.units
    for one, other in zip(before, after, strict=True):
        for mine, theirs in zip(one.trajectories, other.trajectories, strict=True):
            for context, again in zip(mine.contexts, theirs.contexts, strict=True):
                for name in ("tokens", "action_mask", "logprobs", "versions", "turn"):
                    was, now = getattr(context, name), getattr(again, name)
                    assert was.dtype == now.dtype and now.flags.writeable
                    np.testing.assert_array_equal(was, now)


def test_a_state_does_not_change_with_what_follows() -> None:
    story = eventful()
    blob = packed(story.state.state())
    kept = unpacked(blob)
    going_on = restored(story.state.schedule, blob)
    going_on.apply(Died(life="b", group=99, member=0))
    going_on.apply(Checkpointed(policy="alice", step=77))
    assert packed(kept) == blob
    assert packed(going_on.state()) != blob


def test_other_bounds_are_refused_and_more_steps_are_not() -> None:
    story = eventful()
    plan, blob = story.state.schedule, packed(story.state.state())
    more: dict[str, Any] = {name: replace(bound, steps=20) for name, bound in plan.bounds.items()}
    assert restored(replace(plan, bounds=more), blob).budget.version("alice") == story.state.budget.version("alice")
    other = dict.fromkeys(plan.bounds, Bound(units_per_step=3, max_staleness=2, steps=9))
    with pytest.raises(RunChanged, match="was started with"):
        restored(replace(plan, bounds=other), blob)


def test_what_is_no_state_is_refused() -> None:
    blob = packed(eventful().state.state())
    for broken in (b"", blob[:-3], packed({"budget": {}}), packed(7)):
        with pytest.raises(msgspec.MsgspecError):
            unpacked(broken)


def test_the_schema_stands_for_these_bytes() -> None:
    """Where this fails, states that lie in journals would be read as something else: raise SCHEMA, put in the new digest."""
    digest = sha256(packed(eventful().state.state()) + packed(eventful(pinned=True).state.state())).hexdigest()
    assert (SCHEMA, digest[:16]) == (6, "f9d53bb60abfc536")
