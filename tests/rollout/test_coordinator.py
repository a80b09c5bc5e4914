"""The coordinator: a run's state, folded from its events, and what it decides from that alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sparring.rollout import Coordinator, Waiting
from sparring.rollout.events import (
    AnyEvent,
    Checkpointed,
    Ended,
    Evaluated,
    Installed,
    Noted,
    Restarted,
    SeatResult,
    Timed,
)
from tests.rollout.told import ONE_POLICY, TWO_SEATS, Story, schedule


def test_a_whole_run() -> None:
    story = Story(schedule([TWO_SEATS]))
    for step in range(2):
        groups = story.admit_all()
        assert groups == [2 * step, 2 * step + 1]
        assert story.state.next_group() == (None if step else "alice: waits for step 0")
        for group in groups[::-1]:
            story.end(group, version=step)
        for policy in ("alice", "bob"):
            assert story.plan(policy) == groups
            assert [unit.group for unit in story.state.batches[policy].units] == groups
            assert isinstance(story.state.next_batch(policy), Waiting), "one plan at a time"
            story.step(policy)
            assert story.state.durable[policy] == {"at": step}
    assert story.state.finished and not story.state.groups and story.state.next_group() is None


def test_a_group_lives_while_a_unit_of_it_is_left() -> None:
    story = Story(schedule([TWO_SEATS]))
    story.admit_all()
    story.end(0)
    story.end(1)
    story.plan("alice")
    story.step("alice")
    assert {group: live.left for group, live in story.state.groups.items()} == {0: ["bob"], 1: ["bob"]}
    story.plan("bob")
    story.step("bob")
    assert story.state.groups == {}


def test_two_seats_of_one_policy_are_one_unit() -> None:
    story = Story(schedule([ONE_POLICY], steps=1, batch=1))
    assert story.admit().trained == ["alice"]
    story.end(0)
    assert story.plan("alice") == [0]
    (unit,) = story.state.batches["alice"].units
    assert [(one.episode, one.seat) for one in unit.trajectories] == [(0, "one"), (0, "two"), (1, "one"), (1, "two")]
    assert {row.seat: row.buffered.units for row in story.state.ledger.table()} == {"one": 1, "two": 1}


def test_line_ups_take_turns_and_closed_policies_drop_out() -> None:
    """Bob plays in every second group: alice's admission ends first, and her seat is then played without being trained."""
    story = Story(schedule([TWO_SEATS, {"one": "alice"}], steps=1, batch=2, k=0))
    admitted = [story.admit() for _ in range(2)]
    assert [(one.lineup, one.trained) for one in admitted] == [(0, ["alice", "bob"]), (1, ["alice"])]
    third = story.admit()
    assert (third.lineup, third.trained) == (0, ["bob"]), "a turn in which nobody is left to train is passed over"
    assert story.state.trained_seats(third) == {"two": "bob"}
    assert story.state.next_group() is None


def test_a_turn_that_is_passed_over_gives_nobody_two() -> None:
    """Alice is closed after two groups; bob's two line-ups go on taking turns."""
    lineups = [{"one": "alice"}, {"one": "bob"}, {"one": "alice"}, {"two": "bob"}]
    story = Story(schedule(lineups, steps=1, batch=2))
    for group in [story.admit().group for _ in range(4)]:
        story.end(group, fault="all" if group in (1, 3) else "")
    assert [story.admit().lineup for _ in range(2)] == [1, 3]
    story.end(4, fault="all")
    assert story.admit().lineup == 1


def test_sources_take_turns_with_cursors_of_their_own() -> None:
    story = Story(schedule([{"one": "alice"}], [{"one": "alice"}], steps=1, batch=6, members=1))
    admitted = [story.admit() for _ in range(6)]
    assert [one.source for one in admitted] == [0, 1] * 3
    assert len({one.index for one in admitted if one.source == 0}) == 3, (
        "each goes through its tasks in an order of its own"
    )


def test_a_group_that_failed_is_replaced() -> None:
    story = Story(schedule([TWO_SEATS], steps=1))
    story.admit_all()
    story.end(0, fault="all")
    assert 0 not in story.state.groups and story.state.faults.kinds.total() == 2 and story.state.episodes == 2
    assert story.admit_all() == [2], "its places are free again"
    story.end(1, fault="KeyError")
    story.end(2)
    assert story.plan("alice") == [1, 2], "one failed episode is not a failed group"
    rows = {row.policy: row for row in story.state.ledger.table()}
    assert rows["alice"].dropped["fault"].units == 1, rows["alice"]
    assert rows["alice"].dropped["fault"].tokens == rows["alice"].dispatched.tokens - rows["alice"].buffered.tokens > 0
    assert [len(unit.trajectories) for unit in story.state.batches["alice"].units] == [1, 2]
    assert story.state.faults.details == {"all": "because", "KeyError": "because"}


def test_a_policy_that_never_spoke_is_dropped_alone() -> None:
    story = Story(schedule([TWO_SEATS], steps=1, batch=1))
    story.admit()
    story.end(0, silent=["two"])
    assert story.state.groups[0].left == ["alice"]
    rows = {row.policy: row for row in story.state.ledger.table()}
    assert rows["bob"].dropped["empty"].units == 1 and rows["alice"].buffered.units == 1
    again = story.admit()
    assert again.trained == ["bob"], "alice has her unit"
    assert {policy: barren.count for policy, barren in story.state.barren.items()} == {"alice": 0, "bob": 1}
    assert story.state.barren["bob"].detail == "no seat that is trained spoke and was rewarded"
    story.end(1)
    assert not any(barren.count for barren in story.state.barren.values())


def test_why_nothing_was_left_to_train_on() -> None:
    story = Story(schedule([{"one": "alice"}], steps=1, batch=1))
    for count, (case, said) in enumerate(
        [({"fault": "all"}, "all: because"), ({"unjudged": "no"}, "seat 'one' was not judged: no")]
    ):
        options: dict[str, Any] = case
        story.end(story.admit().group, **options)
        assert story.state.barren["alice"].detail == said
        assert story.state.barren["alice"].count == count + 1


def test_a_pinned_schedule_leaves_holes() -> None:
    story = Story(schedule([{"one": "alice"}], steps=3, batch=2, k=1, pinned=True))
    assert story.admit_all() == [0, 1, 2, 3]
    assert [live.admitted.pinned for live in story.state.groups.values()] == [{"alice": 0}] * 4
    story.end(2)
    story.end(0, fault="all")
    story.end(1, fault="all")
    assert story.plan("alice") == [], "both its places are holes"
    story.step("alice")
    assert [story.admit().pinned, story.admit().pinned] == [{"alice": 1}] * 2
    assert story.state.next_group() is None, "a hole is not filled"
    waiting = story.state.next_batch("alice")
    assert isinstance(waiting, Waiting) and waiting.units == ("3",)
    story.end(3)
    assert story.plan("alice") == [2, 3]


def test_a_pinned_group_waits_for_its_version() -> None:
    story = Story(schedule([{"one": "alice"}], steps=2, batch=1, pinned=True))
    story.admit()
    story.end(0)
    story.plan("alice")
    story.step("alice", install=False)
    assert story.state.next_group() == "alice: waits for version 1 to be installed"
    story.tell(Installed(policy="alice", version=1))
    assert story.admit().pinned == {"alice": 1}


def test_a_closed_policy_plays_its_last_version() -> None:
    """Alice's admission has ended; bob's last group waits for the version that her last step will make."""
    story = Story(schedule([TWO_SEATS, {"one": "alice"}], steps=2, batch=1, pinned=True))
    story.admit()
    story.end(0)
    for policy in ("alice", "bob"):
        story.plan(policy)
        story.step(policy)
    last = story.admit()
    assert (last.lineup, last.trained, last.pinned) == (1, ["alice"], {"alice": 1})
    assert story.state.next_group() == "alice: waits for version 2 to be installed, which group 2 plays with"
    story.end(1, version=1)
    story.plan("alice")
    story.step("alice")
    again = story.admit()
    assert (again.lineup, again.trained, again.pinned) == (0, ["bob"], {"alice": 2, "bob": 1})


def test_a_stale_token_is_refused() -> None:
    story = Story(schedule([{"one": "alice"}], steps=3, batch=1, k=1))
    story.admit_all()
    for step in range(2):
        story.end(step)
        story.plan("alice")
        story.step("alice")
        story.admit_all()
    story.act(2, 0, "one", version=0)
    story.tell(Ended(group=2, member=0, results=[SeatResult(seat="one", value=1.0)]))
    story.tell(Ended(group=2, member=1))
    with pytest.raises(AssertionError, match=r"step 2 of alice: group 2 holds a token of version 0, older than 1"):
        story.plan("alice")


def test_nothing_is_counted_twice() -> None:
    story = Story(schedule([{"one": "alice"}], steps=1, batch=1))
    admitted = story.admit()
    with pytest.raises(AssertionError):
        story.tell(admitted)
    story = Story(schedule([{"one": "alice"}], steps=1, batch=1))
    story.admit()
    story.tell(Ended(group=0, member=0))
    with pytest.raises(AssertionError, match="ended twice"):
        story.tell(Ended(group=0, member=0))


def test_a_restart_forgets_what_was_said() -> None:
    story = Story(schedule([{"one": "alice"}], steps=1, batch=1))
    story.admit()
    story.act(0, 1, "one")
    story.act(0, 0, "one")
    story.tell(Restarted(group=0, member=1))
    assert [len(member.past) for member in story.state.groups[0].members] == [1, 0]
    assert story.state.restarts == 1
    story.act(0, 1, "one")
    for member in range(2):
        story.tell(Ended(group=0, member=member, results=[SeatResult(seat="one", value=1.0)]))
    story.plan("alice")
    assert sum(unit.action_tokens for unit in story.state.batches["alice"].units) == 8


def test_what_changes_no_decision() -> None:
    story = Story(schedule([{"one": "alice"}]))
    before = story.state.next_group()
    story.tell(Timed(policy="alice", step=0, timing={}))
    story.tell(Noted(kind="resumed", text=""))
    story.tell(Evaluated(name="h", version=0, headline="", values=[], rewards=[], transcripts=[]))
    story.tell(Checkpointed(policy="alice", step=0))
    assert story.state.next_group() == before
    assert story.state.evaluated == {("h", 0)} and story.state.checkpoints == {"alice": {0}}


def test_what_everything_waits_for() -> None:
    story = Story(schedule([TWO_SEATS], k=0))
    story.admit_all()
    story.end(0)
    assert story.state.waits() == [
        "admission: alice: waits for step 0",
        "learner of alice: alice: step 0 needs 1 more of the units due at or before step 0",
        "learner of bob: bob: step 0 needs 1 more of the units due at or before step 0",
    ]
    story.end(1)
    story.plan("bob")
    assert story.state.waits()[1:] == ["learner of bob: bob: step 0 is planned and not committed yet"]


def test_a_fold_of_the_same_events_is_the_same_state() -> None:
    story = Story(schedule([TWO_SEATS, {"one": "alice"}], k=2, batch=1))
    story.admit_all()
    for group in list(story.state.groups)[::-1]:
        story.end(group, fault="all" if group == 1 else "")
    story.plan("alice")
    again = Coordinator(story.state.schedule)
    for event in story.events:
        again.apply(event)
    assert again.budget.state() == story.state.budget.state() and again.ledger.state() == story.state.ledger.state()
    assert again.next_group() == story.state.next_group() and again.waits() == story.state.waits()
    assert msgspec.to_builtins(again.batches["alice"].planned) == msgspec.to_builtins(
        story.state.batches["alice"].planned
    )


def test_a_policy_goes_back_to_a_checkpoint_alone() -> None:
    story = Story(schedule([TWO_SEATS], steps=3))
    for to in (None, 0, 1):
        for group in story.admit_all():
            story.end(group, version=story.state.budget.version("alice"))
        for policy in ("alice", "bob"):
            story.plan(policy)
        if to == 1:
            with pytest.raises(AssertionError, match="step 2 of alice cannot go back to version 1"):
                copied(story).step("alice", to=1)
            story.tell(Checkpointed(policy="alice", step=1))
        with pytest.raises(AssertionError, match="cannot go back to version 3"):
            copied(story, Checkpointed(policy="alice", step=3)).step("alice", to=3)
        story.step("alice", to=to)
        story.step("bob")
    assert story.state.fell_back == {"alice": [(2, 0), (3, 1)], "bob": []}
    assert story.state.budget.version("alice") == 3, "versions go on"
    assert [one.since for one in story.state.broken["alice"].values()] == [2] and story.state.broken["bob"] == {}


def copied(story: Story, *more: AnyEvent) -> Story:
    again = Story(story.state.schedule)
    for event in [*story.events, *more]:
        again.tell(event)
    return again
