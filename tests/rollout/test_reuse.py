"""Units that are used again: which, how often, how old, in which proportion; and their columns in the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sparring.rollout import Bound, Coordinator, RolloutBuffer, Schedule, StalenessBudget, Unit, Waiting
from sparring.rollout.buffer import ReuseRule, draw, oldest_version
from sparring.rollout.events import Planned
from tests.learner.sets import context, trajectory
from tests.rollout.told import Story, schedule

P = "alice"


def unit_of(group: int, *versions: int) -> Unit:
    """A unit of three tokens of each version."""
    made = tuple(trajectory(0.0, context([3], version=version), group=group) for version in versions)
    return Unit(policy=P, group=group, source=0, trajectories=made)


class Shelf(RuleBasedStateMachine):
    """A buffer beside plain books: rule 5, whatever is admitted, finished, trained and installed in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 1
        self.rule_ = ReuseRule(units=1, weighted=False, max_uses=2, max_age=1)
        self.budget = StalenessBudget({})
        self.buffer = RolloutBuffer(self.budget)

    @initialize(
        size=st.integers(1, 3),
        staleness=st.integers(0, 2),
        units=st.integers(1, 4),
        weighted=st.booleans(),
        max_uses=st.integers(2, 4),
        extra=st.integers(0, 3),
    )
    def start(self, size: int, staleness: int, units: int, weighted: bool, max_uses: int, extra: int) -> None:
        self.size = size
        self.rule_ = ReuseRule(units=units, weighted=weighted, max_uses=max_uses, max_age=max(1, staleness) + extra)
        self.budget = StalenessBudget({P: Bound(units_per_step=size, max_staleness=staleness, steps=10**6)})
        self.buffer = RolloutBuffer(self.budget, reuse=self.rule_, seed=7)
        self.born: dict[int, int] = {}
        self.flying: list[int] = []
        self.oldest: dict[int, int] = {}
        self.uses: Counter[int] = Counter()
        self.weight: dict[int, float] = {}
        self.gone: set[int] = set()

    @rule(times=st.integers(1, 4))
    def admit(self, times: int) -> None:
        for _ in range(times):
            if self.budget.may_admit([P]) is None:
                group = len(self.born)
                self.budget.admit(str(group), [P])
                self.born[group] = self.budget.installed(P)
                self.flying.append(group)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self.flying))
        self.flying.remove(group)
        made = data.draw(st.lists(st.integers(self.born[group], self.budget.version(P)), min_size=1, max_size=2))
        self.oldest[group] = min(made)
        self.buffer.add(unit_of(group, *made))

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        groups = self.buffer.fresh(P)
        if isinstance(groups, Waiting):
            return
        step, again = self.budget.version(P), self.buffer.reused(P)
        self.judge(step, again)
        assert again == self.buffer.reused(P), "a decision is the same when it is made again"
        units, more = self.buffer.take(P, groups), self.buffer.again(P, again)
        assert [unit.group for unit in more] == list(again)
        weights = {group: data.draw(st.sampled_from([0.0, 0.5, 2.0])) for group in (*groups, *again)}
        self.budget.step(P)
        expired = {unit.group for unit in self.buffer.trained(P, units, more, weights)}
        self.uses.update([*groups, *again])
        self.weight |= weights
        used_up = {group for group, count in self.uses.items() if count >= self.rule_.max_uses}
        too_old = {group for group in self.uses if step + 1 - self.oldest[group] > self.rule_.max_age} - used_up
        assert expired == too_old - self.gone, "each is told of once, when it has just grown too old"
        self.gone |= expired

    def judge(self, step: int, again: tuple[int, ...]) -> None:
        may = {
            group
            for group, count in self.uses.items()
            if count < self.rule_.max_uses
            and step - self.oldest[group] <= self.rule_.max_age
            and (self.weight[group] > 0 or not self.rule_.weighted)
        }
        assert set(again) <= may and list(again) == sorted(set(again)), (again, may)
        assert len(again) == min(self.rule_.units, len(may)), "as many as there are places, or as there are"

    @rule()
    def install(self) -> None:
        self.budget.install(P, self.budget.version(P))

    @invariant()
    def bounded(self) -> None:
        size = self.size
        assert self.buffer.statistics().kept <= self.rule_.max_age * size


TestShelf = Shelf.TestCase
TestShelf.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from([0.0, 1e-30, 1.0, 3.5, 1e30]), max_size=8), st.integers(0, 9), st.integers(0, 99))
def test_a_draw_takes_each_once_and_nothing_without_weight(weights: list[float], count: int, seed: int) -> None:
    drawn = draw(weights, count, Random(seed))
    assert drawn == sorted(set(drawn)) and all(weights[index] > 0 for index in drawn)
    assert len(drawn) == min(count, sum(weight > 0 for weight in weights))


def test_a_draw_follows_the_weights() -> None:
    """Two of three with weights 1, 2, 5: the chance that one is left out, against the exact one."""
    rng, left_out = Random(3), Counter[int]()
    for _ in range(20_000):
        (missing,) = {0, 1, 2} - set(draw([1.0, 2.0, 5.0], 2, rng))
        left_out[missing] += 1
    exact = {0: 2 / 8 * 5 / 6 + 5 / 8 * 2 / 3, 1: 1 / 8 * 5 / 7 + 5 / 8 * 1 / 3, 2: 1 / 8 * 2 / 7 + 2 / 8 * 1 / 6}
    for index, chance in exact.items():
        assert abs(left_out[index] / 20_000 - chance) < 0.015, (index, left_out, chance)


def test_the_oldest_token_counts() -> None:
    assert oldest_version(unit_of(0, 3, 1, 2), 9) == 1
    assert oldest_version(Unit(policy=P, group=0, source=0, trajectories=(trajectory(0.0, context([0])),)), 9) == 9


# --------------------------------------------------------------------------------------------------- in the coordinator


def reusing(*, k: int = 0, steps: int = 6, batch: int = 1, pinned: bool = False, **rule: int | bool) -> Schedule:
    reuse = ReuseRule(**{"units": 1, "weighted": False, "max_uses": 2, "max_age": 2} | rule)  # type: ignore[arg-type]
    return replace(schedule([{"one": P}], steps=steps, batch=batch, k=k, pinned=pinned), reuse=reuse)


def take_steps(story: Story, count: int, weights: dict[int, float] | None = None) -> list[tuple[list[int], list[int]]]:
    """Admit, play, plan and make so many steps; returns the groups of each, fresh and reused."""
    made = []
    for _ in range(count):
        version = story.state.budget.version(P)
        for group in story.admit_all():
            story.end(group, version=version)
        story.plan(P)
        planned = story.events[-1]
        assert isinstance(planned, Planned)
        made.append((planned.groups, planned.reused))
        story.step(P, weights=weights)
    return made


@pytest.mark.parametrize("pinned", [False, True])
def test_each_unit_is_used_as_often_as_it_may_be(pinned: bool) -> None:
    """One place and two uses: what was trained last is used once more in the next step."""
    story = Story(reusing(pinned=pinned))
    assert take_steps(story, 6) == [([0], []), *(([n], [n - 1]) for n in range(1, 6))]
    (row,) = story.state.ledger.table()
    assert (row.trained.units, row.reused.units, row.expired.units) == (6, 5, 0)
    assert row.reused.tokens == 5 * 8 and row.dispatched == row.trained
    assert story.state.finished and story.state.buffer.statistics().kept == 1


def test_what_grows_too_old_is_counted() -> None:
    """Three uses each and one place: two units for every place, so half of them expire before their third use."""
    story = Story(reusing(max_uses=3, max_age=1))
    assert [again for _, again in take_steps(story, 4)] == [[], [0], [1], [2]]
    (row,) = story.state.ledger.table()
    assert (row.reused.units, row.expired.units, row.expired.tokens) == (3, 3, 24)


def test_a_weight_of_nothing_is_never_drawn() -> None:
    story = Story(reusing(units=3, weighted=True, max_uses=9, max_age=9))
    assert take_steps(story, 4, weights={0: 0.0, 1: 0.5, 2: 0.0, 3: 1.0})[-1] == ([3], [1])


def test_a_weight_is_that_of_the_last_use() -> None:
    story = Story(reusing(weighted=True, max_uses=9, max_age=9))
    assert take_steps(story, 1, weights={0: 1.0}) == [([0], [])]
    assert take_steps(story, 1, weights={0: 0.0}) == [([1], [0])]
    assert take_steps(story, 1) == [([2], [])], "neither has a weight any more"


@pytest.mark.parametrize(
    ("groups", "said"),
    [([0, 0], "used again in one step"), ([1], "were not trained, were used"), ([5], r"\[5\] were not trained")],
)
def test_a_plan_that_breaks_rule_5_is_refused(groups: list[int], said: str) -> None:
    story = Story(reusing(units=2, max_uses=2, max_age=9))
    take_steps(story, 1)
    story.end(story.admit().group, version=1)
    planned = story.state.next_batch(P)
    assert isinstance(planned, Planned) and planned.reused == [0]
    with pytest.raises(AssertionError, match=said):
        story.tell(msgspec.structs.replace(planned, reused=groups))


def test_a_run_without_reuse_refuses_it() -> None:
    story = Story(schedule([{"one": P}], steps=3, batch=1))
    take_steps(story, 1)
    story.end(story.admit().group, version=1)
    planned = story.state.next_batch(P)
    assert isinstance(planned, Planned) and planned.reused == []
    with pytest.raises(AssertionError, match="in a run without reuse"):
        story.tell(msgspec.structs.replace(planned, reused=[0]))
    assert story.state.buffer.statistics().kept == 0


def test_a_stale_token_of_a_later_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's own check of invariant 1, with the buffer's switched off."""
    story = Story(reusing(max_age=1, max_uses=9))
    take_steps(story, 2)
    story.end(story.admit().group, version=2)
    old = unit_of(0, 0)
    monkeypatch.setattr(story.state.buffer, "again", lambda policy, groups: (old,))
    planned = story.state.next_batch(P)
    assert isinstance(planned, Planned)
    with pytest.raises(AssertionError, match="step 2 of alice: group 0 holds a token of version 0, older than 1"):
        story.tell(planned)


def test_a_fold_of_the_same_events_decides_the_same() -> None:
    story = Story(reusing(units=2, weighted=True, max_uses=3, max_age=4, batch=2))
    for _ in range(4):
        take_steps(story, 1, weights={group: group % 3 + 0.5 for group in range(20)})
        again = Coordinator(story.state.schedule)
        for event in story.events:
            again.apply(event)
        assert again.buffer.reused(P) == story.state.buffer.reused(P) != ()
        assert again.ledger.state() == story.state.ledger.state()
