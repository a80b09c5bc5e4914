"""The staleness rule against an adversary: no token trained too late, no overdue unit, no deadlock; defects are caught."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sparring.rollout.books import Book, PinnedBook, ReadyBook, Unit
from sparring.rollout.bound import Bound
from sparring.rollout.budget import StalenessBudget, Waiting
from tests.rollout.world import BOUNDS, CHANGING, LITTLE_AHEAD, Broken, Player, World, bound, spar


class Machine(RuleBasedStateMachine):
    """Any order of moves that a coordinator could make, over one to three policies with small numbers."""

    pinned = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World({}, StalenessBudget({}))

    @initialize(
        numbers=st.lists(
            st.tuples(
                st.integers(1, 3),
                st.integers(0, 3),
                st.integers(0, 5),
                st.none() | st.integers(0, 4),
                st.none() | st.integers(0, 4),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def start(self, numbers: list[tuple[int, int, int, int | None, int | None]]) -> None:
        bounds = {f"p{i}": bound(*five) for i, five in enumerate(numbers)}
        self.world = World(bounds, StalenessBudget(bounds, pinned=self.pinned), pinned=self.pinned)

    def policy(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.players)), "policy")

    @rule(data=st.data(), times=st.integers(1, 4))
    def admit(self, data: st.DataObject, times: int) -> None:
        chosen = data.draw(st.sets(st.sampled_from(sorted(self.world.players)), min_size=1), "policies")
        for _ in range(times):
            wanted = [policy for policy in sorted(chosen) if self.world.is_open(policy)]
            if not wanted or not self.world.admit(wanted):
                break

    @precondition(lambda self: any(player.flying for player in self.world.players.values()))
    @rule(youngest=st.booleans(), data=st.data())
    def finish(self, youngest: bool, data: st.DataObject) -> None:
        policy = data.draw(st.sampled_from([name for name, p in self.world.players.items() if p.flying]), "policy")
        flying = list(self.world.players[policy].flying)
        self.world.finish(policy, flying[-1] if youngest else data.draw(st.sampled_from(flying), "unit"))

    @precondition(lambda self: any(p.flying or p.finished for p in self.world.players.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        mine = {name: [*p.flying, *p.finished] for name, p in self.world.players.items()}
        policy = data.draw(st.sampled_from([name for name in mine if mine[name]]), "policy")
        self.world.drop(policy, data.draw(st.sampled_from(mine[policy]), "unit"))

    @rule(data=st.data(), at_once=st.booleans())
    def step(self, data: st.DataObject, at_once: bool) -> None:
        policy = self.policy(data)
        if self.world.players[policy].planned is None:
            waiting = self.world.plan(policy, exhaustive=True)
            if waiting is not None or not at_once:
                return
        self.world.commit(policy)

    @rule(data=st.data())
    def install(self, data: st.DataObject) -> None:
        player = self.world.players[policy := self.policy(data)]
        self.world.install(policy, data.draw(st.integers(player.installed, player.version), "version"))

    @rule()
    def relieve(self) -> None:
        self.world.relieve()

    @rule()
    def reload(self) -> None:
        self.world.reload()

    @invariant()
    def whole(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Whatever was done, the run can be brought to its end, with nothing outstanding."""
        for _ in range(200):
            self.world.relieve()
            for policy, player in self.world.players.items():
                while self.world.is_open(policy) and self.world.admit([policy]):
                    pass
                for name in tuple(player.flying):
                    self.world.finish(policy, name)
                if self.world.plan(policy) is None:
                    self.world.commit(policy)
        for policy in self.world.players:
            assert self.world.budget.done(policy)
            assert self.world.budget.outstanding(policy) == 0


class PinnedMachine(Machine):
    pinned = True


TestReady = Machine.TestCase
TestReady.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestPinned = PinnedMachine.TestCase
TestPinned.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("pinned", [False, True])
def test_three_policies_spar_for_long(pinned: bool) -> None:
    world = World(BOUNDS, StalenessBudget(BOUNDS, pinned=pinned), pinned=pinned)
    assert spar(world, Random(7), moves=60_000) > 2_000
    assert all(player.dropped > 10 for player in world.players.values())
    for policy, numbers in BOUNDS.items():  # the bound is reached, so it was put to the test
        assert max(age for name, age in world.ages if name == policy) == numbers.max_staleness
    assert pinned or world.reasons["needs"] > 1_000


@pytest.mark.parametrize("pinned", [False, True])
def test_policies_spar_while_their_bounds_change(pinned: bool) -> None:
    """Each to its end, many times: ages go up to the bound where it is high, and beyond that where it is low nothing does."""
    ages: Counter[tuple[str, int]] = Counter()
    for seed in range(60):
        world = World(CHANGING, StalenessBudget(CHANGING, pinned=pinned), pinned=pinned)
        assert spar(world, Random(seed), moves=4_000, drops=0.05) == 9 + 6 + 3
        ages += world.ages
    most = {name: max(age for policy, age in ages if policy == name) for name in CHANGING}
    assert most == {"rising": 5, "falling": 2, "jumping": 2}


@pytest.mark.parametrize("pinned", [False, True])
def test_policies_spar_that_play_little_ahead(pinned: bool) -> None:
    """There are never more units than may be (`World` looks), nothing locks, and they are younger for it."""
    world = World(LITTLE_AHEAD, StalenessBudget(LITTLE_AHEAD, pinned=pinned), pinned=pinned)
    assert spar(world, Random(7), moves=20_000) > 500
    ages = {
        name: Counter({age: n for (policy, age), n in world.ages.items() if policy == name}) for name in LITTLE_AHEAD
    }
    assert pinned or list(ages["carol"]) == [0], "no more than a step takes: nothing begins before its version is there"
    free = {name: Bound(**asdict(bound) | {"most_outstanding": None}) for name, bound in LITTLE_AHEAD.items()}
    unbound = World(free, StalenessBudget(free, pinned=pinned), pinned=pinned)
    spar(unbound, Random(7), moves=20_000)
    for name in ("alice", "bob"):
        older = Counter({age: n for (policy, age), n in unbound.ages.items() if policy == name})
        assert pinned or mean(ages[name].elements()) < mean(older.elements()) - 0.5


@pytest.mark.parametrize("policy", ["alice", "bob"])
def test_a_slow_unit_gets_as_old_as_k_says_though_play_is_little_ahead(policy: str) -> None:
    world = World({policy: LITTLE_AHEAD[policy]}, StalenessBudget({policy: LITTLE_AHEAD[policy]}))
    flying = world.players[policy].flying
    while world.players[policy].version < 12:
        while world.admit([policy]):
            """As many as may be."""
        for name in tuple(flying)[1:]:
            world.finish(policy, name)
        if world.plan(policy) is not None:  # it waits for the slow one
            world.finish(policy, next(iter(flying)))
            assert world.plan(policy) is None
        world.commit(policy)
        world.install(policy, world.players[policy].version)
    assert max(age for _, age in world.ages) == LITTLE_AHEAD[policy].max_staleness


@pytest.mark.slow
@pytest.mark.parametrize("pinned", [False, True])
def test_three_policies_spar_for_200_000_steps(pinned: bool) -> None:
    world = World(BOUNDS, StalenessBudget(BOUNDS, pinned=pinned), pinned=pinned)
    steps, chance = 0, Random(11)
    while steps < 200_000:
        steps = spar(world, chance, moves=200_000, every=7)


def test_the_run_ends_with_nothing_outstanding() -> None:
    bounds = {name: bound(numbers.units_per_step, numbers.max_staleness, 40) for name, numbers in BOUNDS.items()}
    for pinned in (False, True):
        world = World(bounds, StalenessBudget(bounds, pinned=pinned), pinned=pinned)
        assert spar(world, Random(3), moves=40_000) == 120
        assert all(world.budget.outstanding(name) == 0 for name in bounds)


@given(seed=st.integers(0, 10**6), before=st.integers(0, 150), pinned=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_restored_budget_has_the_same_future(seed: int, before: int, pinned: bool) -> None:
    bounds = {"a": bound(3, 2, 9), "b": bound(2, 0, 12)}

    def played(*, reload: bool) -> str:
        world = World(bounds, StalenessBudget(bounds, pinned=pinned), pinned=pinned)
        chance = Random(seed)
        spar(world, chance, moves=before, drops=0.1)
        if reload:
            world.reload()
        spar(world, chance, moves=150, drops=0.1)
        return json.dumps(world.budget.state())

    assert played(reload=True) == played(reload=False)


def test_no_move_costs_more_in_a_long_run() -> None:
    """The books hold the outstanding units and nothing of those that left."""
    world = World(BOUNDS, StalenessBudget(BOUNDS))
    sizes: list[int] = []
    for _ in range(4):
        spar(world, Random(2), moves=3_000)
        world.relieve()
        for policy, player in world.players.items():
            for name in tuple(player.finished):
                world.drop(policy, name)
        sizes.append(len(json.dumps(world.budget.state())))
    assert max(sizes) < 2 * min(sizes)
    for book in world.budget._books.values():
        assert isinstance(book, ReadyBook)
        assert not book.units
        assert not book._finished
        assert not book._in_flight


# ----------------------------------------------------------------------------------------------------- planted defects


class AdmitsByCommitted(ReadyBook):
    """Rule 1 with s in place of i: publication lag is forgotten."""

    def blocked(self) -> str | None:
        needed = self.place // self.bound.units_per_step - self.bound.max_staleness
        return None if needed <= self.version else f"{self.policy}: waits for step {needed - 1}"


class KnowsNoMost(ReadyBook):
    """However many are outstanding."""

    @property
    def full(self) -> bool:
        return False


class CountsPlannedAsGone(ReadyBook):
    """Units of a planned batch make room before it is committed."""

    @property
    def full(self) -> bool:
        assert self.bound.most_outstanding is not None
        return len(self.units) - len(self.planned or ()) >= self.bound.most_outstanding


class CountsTrainedAsGone(ReadyBook):
    """Units of a step make room before its version is installed."""

    @property
    def ahead(self) -> int:
        return len(self.units)


class DueByCommitted(ReadyBook):
    """Units due at s + k, whatever the samplers have installed."""

    @property
    def next_due(self) -> int:
        return self.version + self.bound.max_staleness


class DueByTheFirstBound(ReadyBook):
    """The bound that the run began with, whatever it is by then."""

    @property
    def next_due(self) -> int:
        return self.installed + self.bound.max_staleness


class DueByTheLatestBound(ReadyBook):
    """The bound of the step that is next, not those of the steps between."""

    @property
    def next_due(self) -> int:
        return self.installed + self.bound.staleness(self.version)


class TakesAnything(ReadyBook):
    """Rule 3 removed, first finished first."""

    def breaks_rule_3(self, taken: Mapping[int, int]) -> tuple[int, int] | None:
        return None

    def choose(self) -> tuple[str, ...] | Waiting:
        done = [(unit.finished, name) for name, unit in self.units.items() if unit.finished is not None]
        chosen = [name for _, name in sorted(done)[: self.bound.units_per_step]]
        if len(chosen) < self.bound.units_per_step:
            return Waiting(units=(), reason=f"{self.policy}: waits")
        return tuple(sorted(chosen, key=lambda name: self.units[name].number))


class LooksOneStepAhead(ReadyBook):
    """Rule 3 for j = 0 alone."""

    def breaks_rule_3(self, taken: Mapping[int, int]) -> tuple[int, int] | None:
        broken = super().breaks_rule_3(taken)
        return broken if broken is not None and broken[0] == self.version else None


class LatestDueFirst(ReadyBook):
    """Chooses the latest due, and so waits where a batch is possible."""

    def choose(self) -> tuple[str, ...] | Waiting:
        done = [name for name, unit in self.units.items() if unit.finished is not None]
        chosen = done[-self.bound.units_per_step :]
        taken = Counter(self.units[name].due for name in chosen)
        if len(chosen) < self.bound.units_per_step or self.breaks_rule_3(taken) is not None:
            return Waiting(units=(), reason=f"{self.policy}: waits")
        return tuple(sorted(chosen, key=lambda name: self.units[name].number))


class KeepsThePlaceOfDrops(ReadyBook):
    """A drop does not free its place."""

    @property
    def place(self) -> int:
        return self.version * self.bound.units_per_step + len(self.units) + self.dropped


class ByOrderOfFinishing(ReadyBook):
    """Batches in the order in which their units finished."""

    def choose(self) -> tuple[str, ...] | Waiting:
        chosen = super().choose()
        return chosen if isinstance(chosen, Waiting) else tuple(sorted(chosen, key=self.finished_at))

    def finished_at(self, name: str) -> int:
        return self.units[name].finished or 0


class AdmitsForTheLast(StalenessBudget):
    """All or nothing forgotten: the last policy alone is asked."""

    def may_admit(self, policies: Collection[str]) -> str | None:
        return super().may_admit(list(policies)[-1:])


class FillsHoles(PinnedBook):
    """A dropped unit's position is given away again."""

    def left(self, name: str, unit: Unit) -> None:
        super().left(name, unit)
        if self.planned is None:
            self.admitted -= 1


def planted(book: type[Book], *, pinned: bool = False, bounds: Mapping[str, Bound] = BOUNDS) -> StalenessBudget:
    budget = StalenessBudget(bounds, pinned=pinned)
    budget._books = {policy: book(policy, numbers) for policy, numbers in bounds.items()}
    return budget


@pytest.mark.parametrize(
    "book, part",
    [
        (AdmitsByCommitted, "rule 1"),
        (DueByCommitted, "due too late"),
        (TakesAnything, "rule 3"),
        (LooksOneStepAhead, "rule 3"),
        (LatestDueFirst, "rule 3 could be kept"),
        (KeepsThePlaceOfDrops, "rule 1|rule 6"),
        (ByOrderOfFinishing, "canonical order"),
    ],
)
def test_a_planted_defect_is_caught(book: type[Book], part: str) -> None:
    world = World(BOUNDS, planted(book))
    with pytest.raises(Broken, match=f"^({part})"):
        spar_exhaustively(world)


@pytest.mark.parametrize("book", [DueByTheFirstBound, DueByTheLatestBound])
def test_a_bound_that_changes_and_is_not_followed_is_caught(book: type[Book]) -> None:
    with pytest.raises(Broken, match=r"^due too"):
        spar(World(CHANGING, planted(book, bounds=CHANGING)), Random(1), moves=4_000)


@pytest.mark.parametrize("book", [KnowsNoMost, CountsPlannedAsGone, CountsTrainedAsGone])
def test_more_outstanding_than_may_be_is_caught(book: type[Book]) -> None:
    with pytest.raises(Broken, match=r"^rule 1"):
        spar(World(LITTLE_AHEAD, planted(book, bounds=LITTLE_AHEAD)), Random(1), moves=4_000)


def spar_exhaustively(world: World) -> None:
    for seed in range(50):
        spar(world, Random(seed), moves=400, drops=0.05)
        for policy, player in world.players.items():
            if player.planned is None and len(player.finished) < 13:
                world.plan(policy, exhaustive=True)


def test_what_the_plants_grow_in_is_sound() -> None:
    spar_exhaustively(World(BOUNDS, StalenessBudget(BOUNDS)))


@pytest.mark.parametrize("defect", [TakesAnything, AdmitsByCommitted, DueByCommitted])
def test_what_the_rule_is_for_happens_without_it(defect: type[Book]) -> None:
    """With the checks of the rule itself switched off, what it is there to prevent comes about."""

    class Lenient(World):
        def keeps_rule_3(self, player: Player, batch: Sequence[str]) -> bool:
            return True

        def judge_due(self, player: Player, oldest: int, due: int) -> None:
            """Whatever it is."""

        def admit(self, policies: Sequence[str]) -> bool:
            if self.budget.may_admit(policies) is not None:
                return False
            self.groups += 1
            for policy, due in self.budget.admit(f"g{self.groups}", policies).items():
                self._entered(policy, f"g{self.groups}", due)
            return True

    with pytest.raises(AssertionError, match=r"^(stale|overdue|late|deadlock|\('\w+', 'g\d+', Unit)"):
        spar(Lenient(BOUNDS, planted(defect)), Random(5), moves=20_000)


def test_planted_defects_outside_the_books_are_caught() -> None:
    with pytest.raises(Broken, match=r"^rule 1"):
        spar(World(BOUNDS, AdmitsForTheLast(BOUNDS)), Random(1), moves=5_000)
    with pytest.raises(AssertionError):
        spar(World(BOUNDS, planted(FillsHoles, pinned=True), pinned=True), Random(1), moves=5_000, drops=0.2)
