"""The staleness rule, clause by clause; `test_budget_adversary` puts it to the test as a whole."""

from __future__ import annotations

import json

import pytest

from sparring.errors import RunChanged, SettingError
from sparring.rollout.budget import StalenessBudget, Waiting
from tests.rollout.world import bound


def one(size: int = 2, staleness: int = 1, steps: int = 10, *, pinned: bool = False) -> StalenessBudget:
    return StalenessBudget({"alice": bound(size, staleness, steps)}, pinned=pinned)


def fill(budget: StalenessBudget, prefix: str = "g") -> list[str]:
    """Admit alone for alice until the gate closes."""
    names: list[str] = []
    while not budget.closed("alice") and budget.may_admit(["alice"]) is None:
        names.append(f"{prefix}{len(names)}")
        budget.admit(names[-1], ["alice"])
    return names


def train(budget: StalenessBudget, policy: str = "alice") -> tuple[str, ...]:
    batch = budget.candidate(policy)
    assert not isinstance(batch, Waiting), batch
    budget.take(policy, batch)
    budget.step(policy)
    return batch


@pytest.mark.parametrize("size, staleness", [(1, 0), (4, 0), (1, 3), (4, 2)])
def test_admission_fills_k_plus_one_batches(size: int, staleness: int) -> None:
    assert len(fill(one(size, staleness, 100))) == size * (staleness + 1)


def test_what_admission_waits_for_is_named() -> None:
    budget = one(size=1, staleness=1)
    assert fill(budget) == ["g0", "g1"]
    assert budget.may_admit(["alice"]) == "alice: waits for step 0"
    budget.finish("alice", "g0")
    train(budget)
    assert budget.may_admit(["alice"]) == "alice: waits for version 1 to be installed"
    budget.install("alice", 1)
    assert budget.may_admit(["alice"]) is None
    assert budget.admit("g2", ["alice"]) == {"alice": 2}


def test_a_group_is_admitted_for_all_or_none() -> None:
    budget = StalenessBudget({"alice": bound(1, 0), "bob": bound(9, 0)})
    assert budget.admit("g0", ["alice", "bob"]) == {"alice": 0, "bob": 0}
    assert budget.may_admit(["bob", "alice"]) == "alice: waits for step 0"
    assert budget.may_admit(["bob"]) is None
    with pytest.raises(AssertionError, match="g1 is not admissible: alice: waits"):
        budget.admit("g1", ["bob", "alice"])
    assert budget.outstanding("bob") == 1


def test_the_step_waits_for_the_units_that_are_due() -> None:
    budget = one(size=2, staleness=1)
    fill(budget)  # g0..g3 due at 1
    for name in ("g3", "g2"):
        budget.finish("alice", name)
    assert train(budget) == ("g2", "g3")
    budget.install("alice", 1)
    budget.admit("h0", ["alice"])
    budget.admit("h1", ["alice"])
    for name in ("h0", "h1", "g1"):
        budget.finish("alice", name)
    waiting = budget.candidate("alice")  # three are ready, but g0 is due now
    assert waiting == Waiting(units=("g0",), reason="alice: step 1 needs 1 more of the units due at or before step 1")
    with pytest.raises(AssertionError, match="leaves 1 units too many due at or before step 1"):
        budget.take("alice", ["g1", "h0"])
    budget.finish("alice", "g0")
    assert train(budget) == ("g0", "g1")
    assert budget.candidate("alice") == ("h0", "h1")


def test_the_step_looks_ahead_to_what_will_be_due() -> None:
    budget = one(size=2, staleness=2)
    fill(budget)  # g0..g5 due at 2
    for name in ("g0", "g1"):
        budget.finish("alice", name)
    train(budget)
    budget.install("alice", 1)
    for name in fill(budget, "h"):  # h0, h1 due at 3
        budget.finish("alice", name)
    assert budget.candidate("alice") == Waiting(
        units=("g2", "g3", "g4", "g5"), reason="alice: step 1 needs 2 more of the units due at or before step 2"
    )
    budget.finish("alice", "g3")
    assert budget.candidate("alice") == Waiting(
        units=("g2", "g4", "g5"), reason="alice: step 1 needs 1 more of the units due at or before step 2"
    )
    budget.finish("alice", "g4")
    assert train(budget) == ("g3", "g4")


def test_earliest_due_first_then_earliest_finished_in_order_of_admission() -> None:
    budget = one(size=2, staleness=1)
    fill(budget)
    for name in ("g3", "g1", "g0", "g2"):
        budget.finish("alice", name)
    assert budget.candidate("alice") == ("g1", "g3")


def test_a_short_batch_waits_for_units_in_flight_or_for_admission() -> None:
    budget = one(size=2, staleness=1)
    assert budget.candidate("alice") == Waiting(
        units=(), reason="alice: step 0 has 0 of 2 units and waits for more to be admitted"
    )
    budget.admit("g0", ["alice"])
    assert budget.candidate("alice") == Waiting(
        units=("g0",), reason="alice: step 0 has 0 of 2 units and waits for more of them in flight"
    )


def test_a_drop_frees_its_place_and_opens_admission_again() -> None:
    budget = one(size=2, staleness=0, steps=1)
    fill(budget)
    assert budget.closed("alice")
    budget.finish("alice", "g0")
    budget.drop("alice", "g0")
    budget.drop("alice", "g1")
    assert not budget.closed("alice")
    assert budget.outstanding("alice") == 0
    again = fill(budget, "h")
    assert len(again) == 2
    for name in again:
        budget.finish("alice", name)
    train(budget)
    assert budget.done("alice")
    assert budget.closed("alice")
    assert budget.candidate("alice") == Waiting(units=(), reason="alice: all 1 steps are committed")


def test_planned_units_stay_outstanding_until_the_step() -> None:
    budget = one(size=1, staleness=0)
    budget.admit("g0", ["alice"])
    budget.finish("alice", "g0")
    budget.take("alice", ["g0"])
    assert budget.outstanding("alice") == 1
    assert budget.due("alice", "g0") == 0
    assert budget.may_admit(["alice"]) == "alice: waits for step 0"
    assert budget.candidate("alice") == Waiting(units=(), reason="alice: step 0 is planned and not committed yet")
    with pytest.raises(AssertionError, match="alice/g0 is in a planned batch"):
        budget.drop("alice", "g0")
    assert budget.step("alice") == budget.version("alice") == 1
    assert budget.outstanding("alice") == 0
    assert budget.installed("alice") == 0


def test_no_steps_means_no_admission() -> None:
    budget = one(steps=0)
    assert budget.closed("alice")
    assert budget.done("alice")


def test_pinned_positions_train_at_their_step_and_drops_leave_holes() -> None:
    budget = one(size=2, staleness=1, steps=3, pinned=True)
    fill(budget)  # positions 0..3
    for name in ("g3", "g2", "g0"):
        budget.finish("alice", name)
    assert budget.candidate("alice") == Waiting(units=("g1",), reason="alice: step 0 waits for 1 of its 2 positions")
    budget.drop("alice", "g1")
    assert budget.may_admit(["alice"]) == "alice: waits for step 0"
    with pytest.raises(AssertionError, match=r"trains \('g0',\), not \('g2',\)"):
        budget.take("alice", ["g2"])
    assert train(budget) == ("g0",)
    assert [budget.due("alice", name) for name in ("g2", "g3")] == [1, 1]
    budget.drop("alice", "g2")
    budget.drop("alice", "g3")
    assert train(budget) == ()
    assert budget.candidate("alice") == Waiting(units=(), reason="alice: step 2 waits for 2 more units to be admitted")
    budget.install("alice", 1)
    assert fill(budget, "h") == ["h0", "h1"]
    assert budget.closed("alice")


# ------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, -1, 1), (1, 0, -1)])
def test_impossible_bounds_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(SettingError, match="must be at least"):
        bound(*numbers)


def test_misuse_is_an_assertion() -> None:
    budget = one(size=2, staleness=1, steps=1)
    with pytest.raises(AssertionError, match="trains nobody"):
        budget.may_admit([])
    budget.admit("g0", ["alice"])
    with pytest.raises(AssertionError, match="g0 is already outstanding"):
        budget.admit("g0", ["alice"])
    with pytest.raises(AssertionError, match="has no planned batch"):
        budget.step("alice")
    with pytest.raises(AssertionError, match="alice/g0 is not finished"):
        budget.take("alice", ["g0"])
    budget.finish("alice", "g0")
    with pytest.raises(AssertionError, match="finished twice"):
        budget.finish("alice", "g0")
    with pytest.raises(AssertionError, match="a batch of 1 units, a step takes 2"):
        budget.take("alice", ["g0"])
    budget.admit("g1", ["alice"])
    budget.finish("alice", "g1")
    with pytest.raises(AssertionError, match="not in order of admission"):
        budget.take("alice", ["g1", "g0"])
    with pytest.raises(AssertionError, match="not in order of admission"):
        budget.take("alice", ["g0", "g0"])
    with pytest.raises(AssertionError, match="alice/g9 is not outstanding"):
        budget.take("alice", ["g0", "g9"])
    with pytest.raises(AssertionError, match="admission has ended"):
        budget.may_admit(["alice"])
    budget.take("alice", ["g0", "g1"])
    with pytest.raises(AssertionError, match="planned already"):
        budget.take("alice", ["g0", "g1"])
    budget.step("alice")
    with pytest.raises(AssertionError, match="all 1 steps are committed"):
        budget.take("alice", [])
    with pytest.raises(KeyError):
        budget.finish("alice", "g0")


def test_a_bound_that_changes() -> None:
    """By hand: k = 0, 1, 1, 2 rising; k = 3, 2, 1, 0 falling; then k stays. `due` and `oldest` are each other's inverse."""
    rising, falling = bound(2, 0, 4, 2), bound(2, 3, 4, 0)
    assert [rising.staleness(step) for step in range(6)] == [0, 1, 1, 2, 2, 2]
    assert [rising.due(version) for version in range(4)] == [1, 3, 4, 5]
    assert [rising.oldest(step) for step in range(6)] == [0, 0, 1, 1, 2, 3]
    assert [falling.staleness(step) for step in range(6)] == [3, 2, 1, 0, 0, 0]
    assert [falling.due(version) for version in range(5)] == [1, 2, 2, 3, 4]
    assert [falling.oldest(step) for step in range(6)] == [-3, -1, 1, 3, 4, 5]
    jump = bound(2, 0, 2, 9)
    assert [jump.staleness(step) for step in range(3)] == [0, 9, 9]
    assert [jump.due(version) for version in range(3)] == [9, 10, 11]
    for one in (rising, falling, jump):
        for version in range(8):
            assert one.oldest(one.due(version)) <= version < one.oldest(one.due(version) + 1)


@pytest.mark.parametrize("final", [-1, -5])
def test_a_final_bound_below_0_is_refused(final: int) -> None:
    with pytest.raises(SettingError, match=f"final_staleness={final}: must be None or at least 0"):
        bound(final=final)


def test_samplers_never_go_back_nor_ahead() -> None:
    budget = one(size=1)
    with pytest.raises(AssertionError):
        budget.install("alice", 1)
    budget.admit("g0", ["alice"])
    budget.finish("alice", "g0")
    train(budget)
    budget.install("alice", 1)
    budget.install("alice", 1)
    with pytest.raises(AssertionError):
        budget.install("alice", 0)


def test_another_run_is_refused_and_changes_nothing() -> None:
    budget = one(size=2, staleness=1, steps=4)
    fill(budget)
    data = json.loads(json.dumps(budget.state()))
    others = [
        (one(2, 1, 4, pinned=True), "pinned=False"),
        (StalenessBudget({"bob": bound(2, 1, 4)}), r"\['alice'\], now"),
        (one(3, 1, 4), "units_per_step=2"),
        (one(2, 2, 4), "max_staleness=1"),
        (one(2, 1, 1), "only more steps are possible"),
    ]
    for other, message in others:
        before = other.state()
        with pytest.raises(RunChanged, match=message):
            other.restore(data)
        assert other.state() == before
    changing = StalenessBudget({"alice": bound(2, 1, 4, 3)})
    fill(changing)
    with pytest.raises(RunChanged, match="final_staleness=3"):
        StalenessBudget({"alice": bound(2, 1, 9, 3)}).restore(changing.state())  # more steps: other bounds before
    longer = one(2, 1, 9)
    longer.restore(data)
    assert longer.outstanding("alice") == 4
    assert not longer.closed("alice")


def test_an_overdue_unit_would_be_reported() -> None:
    for pinned in (False, True):
        budget = one(size=1, staleness=0, pinned=pinned)
        budget.admit("g0", ["alice"])
        budget._books["alice"].version = 1
        assert budget.overdue() == (("alice", "g0"),)
