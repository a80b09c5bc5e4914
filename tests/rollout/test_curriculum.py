"""The curriculum: which tasks are drawn how often, and that it depends on nothing but what the journal holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.errors import SettingError
from sparring.rollout import Coordinator, Curriculum, Schedule
from sparring.rollout.curriculum import Successes
from sparring.rollout.events import Admitted, Ended, SeatResult
from tests.rollout.told import TWO_SEATS, Story, schedule

SEATS = {"one": "alice"}


def successes(tasks: int = 3, *, pinned: bool = False, **settings: Any) -> Successes:
    return Successes(curriculum=Curriculum(**settings), tasks=tasks, pinned=pinned)


def group_of(number: int, index: int) -> Admitted:
    return Admitted(group=number, source=0, index=index, task="", lineup=0, trained=["alice"])


def ended(*values: float | None, fault: str = "") -> list[Ended]:
    return [
        Ended(group=0, member=at, fault=fault, results=[SeatResult(seat="one", value=value)])
        for at, value in enumerate(values)
    ]


def test_weights_are_greatest_where_nothing_is_certain() -> None:
    """4 p (1 - p) with p = (solved + 1) / (played + 2)."""
    state = successes(5)
    for group, (index, values) in enumerate([(0, (1.0, 1.0)), (1, (0.0, 0.0)), (2, (1.0, 0.0)), (3, (1.0, 1.0, 0.0))]):
        state.add(group_of(group, index), {}, ended(*values), SEATS)
    p = [3 / 4, 1 / 4, 1 / 2, 3 / 5, 1 / 2]
    assert [state.weight(index) for index in range(5)] == pytest.approx([4 * one * (1 - one) for one in p])


def test_what_does_not_count() -> None:
    """Failed and unjudged episodes, seats that are not trained, forks; the bar is inclusive."""
    state = successes(success=0.5)
    state.add(group_of(0, 0), {}, ended(0.0, 1.0, fault="KeyError"), SEATS)
    state.add(group_of(1, 0), {}, ended(None, None), SEATS)
    state.add(group_of(2, 0), {}, ended(1.0), {"other": "alice"})
    fork = Ended(group=3, member=0, results=[SeatResult(seat="one", fork="a", value=1.0)])
    state.add(group_of(3, 0), {}, [fork], SEATS)
    assert state.weight(0) == 1.0
    state.add(group_of(4, 0), {}, ended(0.5, 0.5), SEATS)
    assert state.weight(0) == pytest.approx(4 * 3 / 4 * 1 / 4)


def test_the_seats_that_are_trained_are_averaged() -> None:
    state = successes(success=0.5)
    both = Ended(group=0, member=0, results=[SeatResult(seat="one", value=1.0), SeatResult(seat="two", value=-0.5)])
    state.add(group_of(0, 0), {}, [both], {"one": "alice", "two": "bob"})
    state.add(group_of(1, 1), {}, [both], SEATS)
    assert state.weight(0) == state.weight(1) == pytest.approx(8 / 9), "0.25 is no success, 1.0 is one: p = 1/3, 2/3"


def test_only_the_latest_groups_count() -> None:
    state = successes(window=2)
    for group in range(5):
        state.add(group_of(group, 0), {}, ended(0.0, 0.0), SEATS)
    assert state.weight(0) == pytest.approx(4 * 1 / 6 * 5 / 6), "two groups of two"
    for group in range(5, 7):
        state.add(group_of(group, 0), {}, ended(1.0, 0.0), SEATS)
    assert state.weight(0) == 1.0, "what came before is forgotten"


def test_draws_are_in_proportion_to_the_weights() -> None:
    state = successes(4)
    for group, (index, values) in enumerate([(0, (1.0,) * 8), (1, (0.0,) * 8), (2, (1.0, 0.0))]):
        state.add(group_of(group, index), {}, ended(*values), SEATS)
    weights = [state.weight(index) for index in range(4)]
    rng, drawn = Random(5), Counter[int]()
    for _ in range(20_000):
        drawn[state.draw(rng)] += 1
    for index, weight in enumerate(weights):
        assert abs(drawn[index] / 20_000 - weight / sum(weights)) < 0.012, (drawn, weights)


# --------------------------------------------------------------------------------------------------- in the coordinator


def learning(*, k: int = 1, steps: int = 8, batch: int = 2, pinned: bool = False, policies: int = 1) -> Schedule:
    plain = schedule([SEATS if policies == 1 else TWO_SEATS], steps=steps, batch=batch, k=k, pinned=pinned)
    return replace(plain, sources=(replace(plain.sources[0], tasks=5, curriculum=Curriculum(window=3)),))


def lived(plan: Schedule, chance: Random) -> list[int]:
    """Play to the end, in an order of chance; what a task comes to depends on the task alone. Returns the tasks admitted."""
    story, indices = Story(plan), list[int]()
    while not story.state.finished:
        moves: list[Any] = []
        if not isinstance(story.state.next_group(), str | None):
            moves.append("admit")
        moves += [number for number, live in story.state.groups.items() if live.playing]
        moves += [policy for policy in plan.bounds if hasattr(story.state.next_batch(policy), "groups")]
        move = chance.choice(moves)
        if move == "admit":
            indices.append(story.admit().index)
        elif isinstance(move, int):
            admitted = story.state.groups[move].admitted
            solved = [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]][admitted.index]
            version = min(admitted.pinned.values(), default=story.state.budget.version("alice"))
            story.end(move, rewards=solved, version=version, fault="all" if move % 7 == 3 else "")
        else:
            story.plan(move)
            story.step(move)
    again = Coordinator(plan)
    for event in story.events:
        if isinstance(event, Admitted):
            choice = again.next_group()
            assert choice is not None and not isinstance(choice, str) and choice.index == event.index
        again.apply(event)
    return indices


@given(
    seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    k=st.integers(0, 2),
    batch=st.integers(1, 3),
    policies=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_a_pinned_schedule_draws_the_same_whoever_ends_first(
    seeds: tuple[int, int], k: int, batch: int, policies: int
) -> None:
    plan = replace(learning(k=k, batch=batch, policies=policies, steps=12, pinned=True), seed=seeds[0])
    one, two = (lived(plan, Random(seed)) for seed in seeds)
    assert one == two and len(one) == 12 * batch


def test_without_settling_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted defect: results count as soon as they are there."""
    add = Successes.add

    def at_once(self: Successes, *given: Any) -> None:
        self.pinned = False
        add(self, *given)

    monkeypatch.setattr(Successes, "add", at_once)
    plans = [replace(learning(k=1, steps=12, pinned=True), seed=seed) for seed in range(20)]
    assert any(lived(plan, Random(1)) != lived(plan, Random(2)) for plan in plans)


def test_what_is_certain_is_played_less() -> None:
    drawn = Counter(lived(learning(steps=150), Random(1)))
    assert drawn[4] > 1.3 * max(drawn[index] for index in range(4)) > 0


@pytest.mark.parametrize("pinned", [False, True])
def test_a_result_is_heeded_when_it_may_be(pinned: bool) -> None:
    """Unpinned at once; pinned, after a group was admitted that plays with the version which it helped to make."""
    story = Story(learning(k=0, pinned=pinned))
    heeded = []
    for step in range(2):
        for number in story.admit_all():
            story.end(number, rewards=[1.0, 1.0], version=step)
            heeded.append(story.state.choosing.successes[0].weight(story.state.groups[number].admitted.index) < 1)  # type: ignore[union-attr]
        story.plan("alice")
        story.step("alice")
    assert heeded[:2] == [not pinned] * 2


def test_a_curriculum_needs_an_end() -> None:
    plain = learning()
    with pytest.raises(AssertionError, match="a curriculum over endless tasks"):
        Coordinator(replace(plain, sources=(replace(plain.sources[0], tasks=None),)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"window": 0}, r"Curriculum\(window=0\): must be a whole number of groups, at least 1"),
        ({"window": 2.0}, r"Curriculum\(window=2.0\)"),
        ({"window": True}, r"Curriculum\(window=True\)"),
        ({"success": "all"}, r"Curriculum\(success='all'\): must be a number, the return of a solved task"),
        ({"success": float("nan")}, r"Curriculum\(success=nan\)"),
        ({"success": True}, r"Curriculum\(success=True\)"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Curriculum(**fields)
