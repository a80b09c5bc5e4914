"""Conservation: whatever happens to units, every unit and token is found in exactly one column."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sparring.rollout.budget import Bound, StalenessBudget
from sparring.rollout.ledger import REASONS, Count, DropReason, Ledger, LedgerRow

SEATS = ("first", "second", "judge")
POLICIES = ("alice", "bob")
TOKENS = st.integers(0, 50)


class Books(RuleBasedStateMachine):
    """A ledger beside a plain list of what happened to each unit."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.seats: dict[tuple[str, str], tuple[str, ...]] = {}
        self.tokens: dict[tuple[str, str], dict[str, int]] = {}
        self.where: dict[tuple[str, str], str] = {}
        self.again: Counter[tuple[str, str, str]] = Counter()
        self.again_tokens: Counter[tuple[str, str, str]] = Counter()

    @initialize()
    def empty(self) -> None:
        assert self.ledger.table() == ()

    def units(self, *places: str) -> list[tuple[str, str]]:
        return [unit for unit, where in self.where.items() if where in places]

    @rule(policy=st.sampled_from(POLICIES), seats=st.sets(st.sampled_from(SEATS), min_size=1))
    def admit(self, policy: str, seats: set[str]) -> None:
        unit = f"g{len(self.where)}"
        self.ledger.admitted(policy, unit, seats)
        self.seats[policy, unit], self.where[policy, unit] = tuple(seats), "in_flight"
        self.tokens[policy, unit] = dict.fromkeys(seats, 0)

    @precondition(lambda self: self.units("in_flight"))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        unit = data.draw(st.sampled_from(self.units("in_flight")))
        tokens = data.draw(st.dictionaries(st.sampled_from(self.seats[unit]), TOKENS))
        self.ledger.finished(*unit, tokens)
        self.where[unit] = "buffered"
        self.tokens[unit] |= tokens

    @precondition(lambda self: self.units("in_flight", "buffered"))
    @rule(data=st.data(), reason=st.sampled_from(REASONS))
    def drop(self, data: st.DataObject, reason: DropReason) -> None:
        unit = data.draw(st.sampled_from(self.units("in_flight", "buffered")))
        made = None
        if self.where[unit] == "in_flight":
            made = data.draw(st.none() | st.dictionaries(st.sampled_from(self.seats[unit]), TOKENS))
        self.ledger.dropped(*unit, reason, made)
        self.where[unit] = reason
        self.tokens[unit] |= made or {}

    @precondition(lambda self: self.units("buffered"))
    @rule(data=st.data())
    def train(self, data: st.DataObject) -> None:
        unit = data.draw(st.sampled_from(self.units("buffered")))
        self.ledger.trained(*unit)
        self.where[unit] = "trained"

    @precondition(lambda self: self.units("trained"))
    @rule(data=st.data(), column=st.sampled_from(["reused", "expired", "retried"]))
    def use_again(self, data: st.DataObject, column: str) -> None:
        policy, unit = data.draw(st.sampled_from(self.units("trained")))
        tokens = self.tokens[policy, unit]
        columns = {"reused": self.ledger.reused, "expired": self.ledger.expired, "retried": self.ledger.retried}
        columns[column](policy, tokens)
        for seat, count in tokens.items():
            self.again[policy, seat, column] += 1
            self.again_tokens[policy, seat, column] += count

    @rule(policy=st.sampled_from(POLICIES), seat=st.sampled_from(SEATS), tokens=TOKENS)
    def play_frozen(self, policy: str, seat: str, tokens: int) -> None:
        """Also in seats that the policy is never trained in."""
        self.ledger.frozen(policy, seat, tokens)
        self.again[policy, seat, "frozen"] += 1
        self.again_tokens[policy, seat, "frozen"] += tokens

    @rule()
    def reload(self) -> None:
        text = json.dumps(self.ledger.state())
        self.ledger = Ledger()
        self.ledger.restore(json.loads(text))
        assert json.dumps(self.ledger.state()) == text

    @invariant()
    def every_unit_is_in_one_column(self) -> None:
        self.ledger.assert_balanced()
        expected = {(row.policy, row.seat): row for row in self.ledger.table()}
        trained = {(policy, seat) for (policy, unit), seats in self.seats.items() for seat in seats}
        assert set(expected) == trained | {(policy, seat) for policy, seat, _ in self.again}
        for key, row in expected.items():
            assert row == self.counted(*key)
        for policy in POLICIES:
            mine = Counter(where for (name, _), where in self.where.items() if name == policy)
            assert self.ledger.held(policy) == {"in_flight": mine["in_flight"], "buffered": mine["buffered"]}

    def counted(self, policy: str, seat: str) -> LedgerRow:
        def column(*places: str) -> Count:
            mine = [unit for unit in self.units(*places) if unit[0] == policy and seat in self.seats[unit]]
            return Count(units=len(mine), tokens=sum(self.tokens[unit][seat] for unit in mine))

        def further(name: str) -> Count:
            return Count(units=self.again[policy, seat, name], tokens=self.again_tokens[policy, seat, name])

        return LedgerRow(
            policy=policy,
            seat=seat,
            dispatched=column("in_flight", "buffered", "trained", *REASONS),
            trained=column("trained"),
            buffered=column("buffered"),
            in_flight=column("in_flight"),
            dropped={reason: column(reason) for reason in REASONS},
            reused=further("reused"),
            expired=further("expired"),
            retried=further("retried"),
            frozen=further("frozen"),
        )


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def half_way() -> Ledger:
    """One unit in each column of alice's, played in two seats."""
    ledger = Ledger()
    for unit in ("trained", "buffered", "in flight", *REASONS):
        ledger.admitted("alice", unit, ["pro", "con"])
        if unit != "in flight":
            ledger.finished("alice", unit, {"pro": 10, "con": 7})
    ledger.trained("alice", "trained")
    ledger.reused("alice", {"pro": 10, "con": 7})
    for reason in REASONS:
        ledger.dropped("alice", reason, reason)
    return ledger


def test_a_unit_of_two_seats_counts_in_both() -> None:
    con, pro = half_way().table()
    assert (con.seat, pro.seat) == ("con", "pro")
    one = Count(units=1, tokens=10)
    assert pro == LedgerRow(
        policy="alice",
        seat="pro",
        dispatched=Count(units=3 + len(REASONS), tokens=10 * (2 + len(REASONS))),
        trained=one,
        buffered=one,
        in_flight=Count(units=1, tokens=0),
        dropped=dict.fromkeys(REASONS, one),
        reused=one,
        expired=Count(),
        retried=Count(),
        frozen=Count(),
    )
    assert con.dispatched == Count(units=3 + len(REASONS), tokens=7 * (2 + len(REASONS)))


def test_a_seat_that_said_nothing_has_no_tokens() -> None:
    ledger = Ledger()
    ledger.admitted("alice", "g0", ["pro", "con"])
    ledger.finished("alice", "g0", {"pro": 3})
    ledger.trained("alice", "g0")
    con, pro = ledger.table()
    assert con.trained == Count(units=1, tokens=0)
    assert pro.trained == Count(units=1, tokens=3)
    ledger.assert_balanced()


def test_tokens_of_a_unit_dropped_in_flight_count_when_it_is_dropped() -> None:
    ledger = Ledger()
    ledger.admitted("alice", "g0", ["pro"])
    assert ledger.table()[0].dispatched == Count(units=1, tokens=0)
    ledger.dropped("alice", "g0", "fault", {"pro": 4})
    assert ledger.table()[0].dispatched == ledger.table()[0].dropped["fault"] == Count(units=1, tokens=4)
    assert ledger.held("alice") == {"in_flight": 0, "buffered": 0}
    ledger.assert_balanced()


@pytest.mark.parametrize("column", ["dispatched", "trained", "buffered", "in_flight", *REASONS])
@pytest.mark.parametrize("units, tokens", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_wrong_counter_is_found(column: str, units: int, tokens: int) -> None:
    ledger = half_way()
    ledger._add("alice", "pro", column, units, tokens)
    with pytest.raises(AssertionError, match=re.escape("ledger of alice in seat pro")):
        ledger.assert_balanced()


@pytest.mark.parametrize("column", ["buffered", "in_flight"])
def test_two_wrongs_that_cancel_out_are_found(column: str) -> None:
    ledger = half_way()
    ledger._add("alice", "pro", column, -1, 0)
    ledger._add("alice", "pro", "trained", 1, 0)
    with pytest.raises(AssertionError, match=f"are {column}, not what stands in the ledger of alice in seat pro"):
        ledger.assert_balanced()


def test_the_ledger_is_held_against_the_budget() -> None:
    budget = StalenessBudget({"alice": Bound(units_per_step=2, max_staleness=0, steps=3)})
    ledger = Ledger()
    for unit in ("g0", "g1"):
        budget.admit(unit, ["alice"])
        ledger.admitted("alice", unit, ["pro"])
        ledger.assert_balanced(budget.statistics())
        budget.finish("alice", unit)
        with pytest.raises(AssertionError, match=r"alice: the ledger holds .*, the budget "):
            ledger.assert_balanced(budget.statistics())
        ledger.finished("alice", unit, {"pro": 5})
        ledger.assert_balanced(budget.statistics())
    budget.take("alice", ["g0", "g1"])
    ledger.assert_balanced(budget.statistics())
    budget.step("alice")
    for unit in ("g0", "g1"):
        ledger.trained("alice", unit)
    ledger.assert_balanced(budget.statistics())


def test_a_unit_moves_once_and_in_order() -> None:
    ledger = Ledger()
    with pytest.raises(AssertionError, match="alice/g0 was admitted without a seat"):
        ledger.admitted("alice", "g0", [])
    ledger.admitted("alice", "g0", ["pro"])
    with pytest.raises(AssertionError, match="alice/g0 was admitted twice"):
        ledger.admitted("alice", "g0", ["pro"])
    with pytest.raises(AssertionError, match="alice/g0 was trained before it finished"):
        ledger.trained("alice", "g0")
    with pytest.raises(AssertionError, match="alice/g0 was not admitted for seat con, but for pro"):
        ledger.finished("alice", "g0", {"con": 1})
    with pytest.raises(AssertionError, match="alice/g0 has -1 tokens in seat pro"):
        ledger.finished("alice", "g0", {"pro": -1})
    ledger.assert_balanced()
    ledger.finished("alice", "g0", {"pro": 1})
    with pytest.raises(AssertionError, match="alice/g0 finished twice"):
        ledger.finished("alice", "g0", {"pro": 1})
    with pytest.raises(AssertionError, match="its tokens were counted when it finished"):
        ledger.dropped("alice", "g0", "filter", {"pro": 1})
    with pytest.raises(AssertionError, match="'boredom' is no reason for a drop: filter, fault, empty, stop"):
        ledger.dropped("alice", "g0", "boredom")  # type: ignore[arg-type]
    ledger.trained("alice", "g0")
    with pytest.raises(KeyError):
        ledger.trained("alice", "g0")
    with pytest.raises(KeyError):
        ledger.dropped("alice", "g0", "stop")
    with pytest.raises(AssertionError, match="bob never trained in seat pro"):
        ledger.reused("bob", {"pro": 1})
    ledger.assert_balanced()


def test_a_refused_move_changes_nothing() -> None:
    ledger = half_way()
    before = json.dumps(ledger.state())
    with pytest.raises(AssertionError):
        ledger.finished("alice", "in flight", {"pro": 1, "con": -1})
    with pytest.raises(AssertionError):
        ledger.dropped("alice", "in flight", "fault", {"nobody": 1})
    with pytest.raises(AssertionError):
        ledger.reused("alice", {"pro": 1, "con": -1})
    assert json.dumps(ledger.state()) == before
