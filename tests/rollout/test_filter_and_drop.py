"""Units that leave because a filter or their age says so: the books, the table, the replacements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparring.rollout import Coordinator, Waiting
from sparring.rollout.events import CHANGED, LATE, Ended, SeatResult
from tests.rollout.told import ONE_POLICY, TWO_SEATS, Story, schedule


def rows(story: Story) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    return {
        (row.policy, row.seat): {reason: (c.units, c.tokens) for reason, c in row.dropped.items() if c.units}
        for row in story.state.ledger.table()
    }


# -------------------------------------------------------------------------------------------------------------- filters


def test_a_unit_with_equal_rewards_is_dropped_and_replaced() -> None:
    story = Story(replace(schedule([{"one": "alice"}], steps=1), equal_rewards={"alice": {}}))
    assert story.admit_all() == [0, 1]
    story.end(0, rewards=[1.0, 1.0])
    assert 0 not in story.state.groups and rows(story)["alice", "one"] == {"filter": (1, 8)}
    assert story.admit_all() == [2], "a replacement is a new admission"
    story.end(2, rewards=[0.0, 1.0])
    story.end(1, rewards=[1.0, 0.0])
    assert story.plan("alice") == [1, 2]
    story.step("alice")
    assert story.state.finished and not story.state.faults.kinds
    story.state.ledger.assert_balanced(story.state.budget.statistics())


def test_without_a_filter_equal_rewards_are_trained_on() -> None:
    story = Story(schedule([{"one": "alice"}], steps=1))
    story.admit_all()
    story.end(0, rewards=[1.0, 1.0])
    assert 0 in story.state.groups and story.state.barren["alice"].count == 0


def test_one_policy_filters_and_the_other_does_not() -> None:
    """Bob trains on the group that alice's filter refused, and plays beside her in its replacement without a place."""
    story = Story(replace(schedule([TWO_SEATS], steps=1, batch=1), equal_rewards={"alice": {}}))
    story.admit()
    story.end(0, rewards=[1.0, 1.0])
    assert story.state.groups[0].left == ["bob"]
    assert story.plan("bob") == [0]
    assert story.admit().trained == ["alice"]
    story.end(1, rewards=[0.0, 1.0])
    assert story.plan("alice") == [1]
    assert rows(story)["bob", "two"] == {} and rows(story)["alice", "one"] == {"filter": (1, 8)}


def test_a_filter_compares_as_the_algorithm_does() -> None:
    """Rewards differ between episodes; seat one is compared within each, where it is alone."""
    story = Story(replace(schedule([ONE_POLICY], steps=1, batch=2), equal_rewards={"alice": {"one": "episode"}}))
    story.admit_all()
    story.end(0, rewards=[0.0, 1.0], silent=["two"])
    story.end(1, rewards=[0.0, 1.0])
    assert set(story.state.groups) == {1}


def test_a_pinned_schedule_leaves_a_hole() -> None:
    plan = schedule([{"one": "alice"}], steps=1, pinned=True)
    story = Story(replace(plan, equal_rewards={"alice": {}}))
    story.admit_all()
    story.end(0, rewards=[1.0, 1.0])
    story.end(1, rewards=[1.0, 0.0])
    assert story.state.next_group() is None and story.plan("alice") == [1]


def test_groups_for_nothing_are_counted_in_a_row() -> None:
    story = Story(replace(schedule([{"one": "alice"}], steps=1, batch=1), equal_rewards={"alice": {}}))
    indices = []
    for _ in range(7):
        admitted = story.admit()
        indices.append((admitted.source, admitted.index))
        story.end(admitted.group, rewards=[1.0, 1.0])
    barren = story.state.barren["alice"]
    assert barren.count == 7 and barren.reasons == {"filter": 7} and list(barren.tasks) == indices[-5:]
    story.end(story.admit().group, fault="all")
    assert barren.reasons == {"filter": 7, "fault": 1} and barren.detail == "all: because"
    story.end(story.admit().group, rewards=[0.0, 1.0])
    assert story.state.barren["alice"].count == 0 and not story.state.barren["alice"].tasks


def test_the_table_knows_what_was_filtered() -> None:
    story = Story(replace(schedule([{"one": "alice"}], steps=1, batch=1), equal_rewards={"alice": {}}))
    index = story.admit().index
    story.end(0, rewards=[1.0, 1.0])
    story.admit()
    story.end(1, rewards=[0.0, 1.0])
    story.plan("alice")
    story.step("alice")
    table = story.state.bias.table()
    assert set(table) == {("alice", "one", "filter"), ("alice", "one", "trained")}
    filtered, trained = table["alice", "one", "filter"], table["alice", "one", "trained"]
    assert filtered.rewards == {"1": 2} and filtered.tasks == {(0, index): 2} and filtered.tokens == 8
    assert trained.rewards == {"0": 1, "1": 1}


# ----------------------------------------------------------------------------------------------------------------- drops


def late_story(after: int | None = 0, k: int = 1) -> Story:
    """Group 0 is under way while step 0 is made of the groups 1 and 2."""
    story = Story(replace(schedule([{"one": "alice"}], steps=3, batch=2, k=k), drop_after=after))
    assert story.admit_all() == list(range(2 * k + 2))
    story.act(0, 0, "one")
    story.end(1)
    story.end(2)
    story.plan("alice")
    assert story.state.late() == ()
    story.step("alice", install=False)
    return story


def tell_late(story: Story) -> list[tuple[int, int]]:
    ended = story.state.late()
    for one in ended:
        story.tell(one)
    return [(one.group, one.member) for one in ended]


def test_nothing_leaves_for_its_age_unless_it_is_told_to() -> None:
    story = late_story(after=None)
    assert story.state.late() == ()
    waiting = story.state.next_batch("alice")
    assert isinstance(waiting, Waiting) and "0" in waiting.units


def test_what_is_too_old_is_dropped_and_replaced() -> None:
    story = late_story()
    assert tell_late(story) == [(0, 0), (0, 1), (3, 0), (3, 1)], "every episode that is under way"
    assert not story.state.faults.kinds and story.state.late() == ()
    assert rows(story)["alice", "one"] == {"late": (2, 4)}
    late = story.state.bias.table()["alice", "one", "late"]
    assert (late.count, late.tokens, late.lengths) == (4, 4, {0: 3, 4: 1})
    assert story.admit_all() == [4, 5]
    assert tell_late(story) == [], "a replacement begins anew, though the last step is not installed yet"
    assert story.state.barren["alice"].reasons == {"late": 2}


def test_an_age_is_counted_from_the_admission() -> None:
    story = late_story(after=1, k=2)
    assert tell_late(story) == []
    story.end(3)
    story.end(4)
    story.plan("alice")
    story.step("alice", install=False)
    assert {group for group, _ in tell_late(story)} == {0, 5}


def test_the_rest_of_a_group_is_trained() -> None:
    story = Story(replace(schedule([{"one": "alice"}], steps=3, batch=2, k=1), drop_after=0))
    story.admit_all()
    story.end(1)
    story.end(2)
    for group in (0, 3):
        story.act(group, 0, "one")
        story.tell(story_end(group, 0))
    story.plan("alice")
    story.step("alice")
    assert tell_late(story) == [(0, 1), (3, 1)]
    assert story.plan("alice") == [0, 3]
    assert [len(unit.trajectories) for unit in story.state.batches["alice"].units] == [1, 1]
    assert rows(story)["alice", "one"] == {}, "its units were not dropped"


def story_end(group: int, member: int) -> Ended:
    return Ended(group=group, member=member, results=[SeatResult(seat="one", value=1.0)])


@pytest.mark.parametrize("fate", ["late", "changed", "deadline", "fault"])
def test_each_way_to_be_lost_has_a_column(fate: str) -> None:
    story = Story(schedule([{"one": "alice"}], steps=1, batch=1))
    story.admit()
    story.end(0, fault={"late": LATE, "changed": CHANGED, "deadline": "deadline", "fault": "KeyError"}[fate])
    assert {key[2]: tally.count for key, tally in story.state.bias.table().items()} == {fate: 1}
    assert bool(story.state.faults.kinds) == (fate not in ("late", "changed")), "a drop is no fault"


def test_the_same_history_is_the_same_table() -> None:
    story = late_story()
    tell_late(story)
    again = Coordinator(story.state.schedule)
    for event in story.events:
        again.apply(event)
    assert again.bias.table() == story.state.bias.table() and again.barren == story.state.barren
