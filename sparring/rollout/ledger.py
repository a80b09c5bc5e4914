"""Where every unit and every token went: `dispatched = trained + buffered + in flight + dropped(reason)`.

Kept for each policy and each seat that it plays, in units and in tokens (a unit that is played in two seats counts in
both). How many tokens a unit has is known when it ends, so tokens count as dispatched from its finish or drop on; in
flight there are none. The columns are running counters; `assert_balanced` checks them against each other and against
the units held one by one. Uses after the first, attempts that failed and were made again, and groups that a policy played
without being trained in them (it was paused, or had units enough) stand in columns of their own and take no part in the
balance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sparring.rollout.books import BudgetStatistics

DropReason = Literal["filter", "fault", "empty", "stop", "late", "changed"]
"""Why a unit left untrained: a filter refused it, an episode of it failed or ran out of time, nobody spoke whose words
could be trained on, the run was stopped, its episodes were dropped for their age, its task became another."""

REASONS: tuple[DropReason, ...] = get_args(DropReason)
_COLUMNS = ("dispatched", "trained", "buffered", "in_flight", *REASONS, "reused", "expired", "retried", "frozen")
_WHEREABOUTS = ("trained", "buffered", "in_flight", *REASONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """So many units with so many tokens between them."""

    units: int = 0
    tokens: int = 0

    def plus(self, units: int, tokens: int) -> Count:
        return Count(units=self.units + units, tokens=self.tokens + tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One policy in one seat. `reused` are uses after the first; `expired` are units that grew too old to be used again;
    `retried` are attempts at single episodes that failed and were made again, with the tokens that were sampled in vain;
    `frozen` are groups that the policy played in this seat and was not trained in."""

    policy: str
    seat: str
    dispatched: Count
    trained: Count
    buffered: Count
    in_flight: Count
    dropped: Mapping[DropReason, Count]
    reused: Count
    expired: Count
    retried: Count
    frozen: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A unit in flight or buffered: its seats and, once it is finished, the tokens of each."""

    seats: tuple[str, ...]
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    finished: bool = False


class Ledger:
    """The counters. Units are named by policy and group, and each is admitted, ended and trained or dropped at most once."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], _Held] = {}
        self._rows: dict[tuple[str, str], dict[str, Count]] = {}

    def admitted(self, policy: str, unit: str, seats: Collection[str]) -> None:
        """A unit is in flight; `seats` are those that the policy plays and trains in."""
        assert seats, f"{policy}/{unit} was admitted without a seat"
        assert (policy, unit) not in self._held, f"{policy}/{unit} was admitted twice"
        self._held[policy, unit] = _Held(seats=tuple(sorted(set(seats))))
        for seat in self._held[policy, unit].seats:
            self._add(policy, seat, "dispatched", 1, 0)
            self._add(policy, seat, "in_flight", 1, 0)

    def finished(self, policy: str, unit: str, tokens: Mapping[str, int]) -> None:
        """A unit waits in the buffer; `tokens` are its action tokens in each of its seats."""
        held = self._held[policy, unit]
        assert not held.finished, f"{policy}/{unit} finished twice"
        self._check(policy, unit, held, tokens)
        self._held[policy, unit] = _Held(seats=held.seats, tokens=dict(tokens), finished=True)
        for seat in held.seats:
            count = tokens.get(seat, 0)
            self._add(policy, seat, "dispatched", 0, count)
            self._add(policy, seat, "in_flight", -1, 0)
            self._add(policy, seat, "buffered", 1, count)

    def dropped(self, policy: str, unit: str, reason: DropReason, tokens: Mapping[str, int] | None = None) -> None:
        """A unit left untrained; `tokens` are those that it has made so far, given only where it had not finished."""
        assert reason in REASONS, f"{reason!r} is no reason for a drop: {', '.join(REASONS)}"
        held = self._held[policy, unit]
        assert tokens is None or not held.finished, f"{policy}/{unit}: its tokens were counted when it finished"
        made = held.tokens if held.finished else dict(tokens or {})
        self._check(policy, unit, held, made)
        del self._held[policy, unit]
        for seat in held.seats:
            count = made.get(seat, 0)
            if held.finished:
                self._add(policy, seat, "buffered", -1, -count)
            else:
                self._add(policy, seat, "dispatched", 0, count)
                self._add(policy, seat, "in_flight", -1, 0)
            self._add(policy, seat, reason, 1, count)

    def trained(self, policy: str, unit: str) -> None:
        """The first use of a unit was committed."""
        held = self._held[policy, unit]
        assert held.finished, f"{policy}/{unit} was trained before it finished"
        del self._held[policy, unit]
        for seat in held.seats:
            count = held.tokens.get(seat, 0)
            self._add(policy, seat, "buffered", -1, -count)
            self._add(policy, seat, "trained", 1, count)

    def reused(self, policy: str, tokens: Mapping[str, int]) -> None:
        """A unit that was trained before was used once more; `tokens` for each of its seats."""
        self._again("reused", policy, tokens)

    def expired(self, policy: str, tokens: Mapping[str, int]) -> None:
        """A unit that was trained before has grown too old for further uses; `tokens` for each of its seats."""
        self._again("expired", policy, tokens)

    def retried(self, policy: str, tokens: Mapping[str, int]) -> None:
        """An attempt at an episode failed and is made again; `tokens` that it sampled in each of the policy's seats."""
        self._again("retried", policy, tokens)

    def frozen(self, policy: str, seat: str, tokens: int) -> None:
        """A group in which the policy played the seat and was not trained has ended; `tokens` that it sampled there."""
        assert tokens >= 0, f"{policy} has {tokens} frozen tokens in seat {seat}"
        self._add(policy, seat, "frozen", 1, tokens)

    def held(self, policy: str) -> Mapping[str, int]:
        """The policy's units that have neither been trained nor dropped: `in_flight` and `buffered`."""
        mine = [held.finished for (name, _), held in self._held.items() if name == policy]
        return {"in_flight": len(mine) - sum(mine), "buffered": sum(mine)}

    def assert_balanced(self, budget: Mapping[str, BudgetStatistics] | None = None) -> None:
        """Raise `AssertionError`, naming the row, where the books do not balance or differ from `StalenessBudget.statistics()`
        (`budget`, if given).

        Costs a pass over the units held, not over those ever dispatched.
        """
        recounted = self._recounted()
        for (policy, seat), columns in self._rows.items():
            where = f"ledger of {policy} in seat {seat}: {columns!r}"
            for measure in ("units", "tokens"):
                amounts = {column: int(getattr(columns[column], measure)) for column in _COLUMNS}
                assert all(amount >= 0 for amount in amounts.values()), f"a negative number of {measure} in the {where}"
                total = sum(amounts[column] for column in _WHEREABOUTS)
                assert amounts["dispatched"] == total, f"{measure} dispatched are not {total} in the {where}"
            for column in ("in_flight", "buffered"):
                counted = recounted.get((policy, seat, column), Count())
                assert columns[column] == counted, f"{counted!r} are {column}, not what stands in the {where}"
        for policy, counts in (budget or {}).items():
            mine = self.held(policy)
            theirs = {"in_flight": counts.in_flight, "buffered": counts.ready + counts.planned}
            assert mine == theirs, f"{policy}: the ledger holds {mine}, the budget {theirs}"

    def table(self) -> tuple[LedgerRow, ...]:
        """One row for each policy and seat, by name."""
        return tuple(
            LedgerRow(
                policy=policy,
                seat=seat,
                dispatched=columns["dispatched"],
                trained=columns["trained"],
                buffered=columns["buffered"],
                in_flight=columns["in_flight"],
                dropped={reason: columns[reason] for reason in REASONS},
                reused=columns["reused"],
                expired=columns["expired"],
                retried=columns["retried"],
                frozen=columns["frozen"],
            )
            for (policy, seat), columns in sorted(self._rows.items())
        )

    def state(self) -> dict[str, Any]:
        """Everything as plain JSON data."""
        rows = [
            [policy, seat, {name: [count.units, count.tokens] for name, count in columns.items()}]
            for (policy, seat), columns in self._rows.items()
        ]
        held = [
            [policy, unit, list(held.seats), dict(held.tokens) if held.finished else None]
            for (policy, unit), held in self._held.items()
        ]
        return {"schema": 1, "rows": rows, "held": held}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Become what `state` described."""
        self._rows = {
            (policy, seat): {name: Count(units=units, tokens=tokens) for name, (units, tokens) in columns.items()}
            for policy, seat, columns in data["rows"]
        }
        self._held = {
            (policy, unit): _Held(seats=tuple(seats), tokens=dict(tokens or {}), finished=tokens is not None)
            for policy, unit, seats, tokens in data["held"]
        }

    def _add(self, policy: str, seat: str, column: str, units: int, tokens: int) -> None:
        row = self._rows.get((policy, seat))
        if row is None:
            row = self._rows[policy, seat] = dict.fromkeys(_COLUMNS, Count())
        row[column] = row[column].plus(units, tokens)

    def _again(self, column: str, policy: str, tokens: Mapping[str, int]) -> None:
        for seat, count in tokens.items():
            assert (policy, seat) in self._rows, f"{policy} never trained in seat {seat}"
            assert count >= 0, f"{policy} has {count} {column} tokens in seat {seat}"
        for seat, count in tokens.items():
            self._add(policy, seat, column, 1, count)

    def _recounted(self) -> dict[tuple[str, str, str], Count]:
        found: dict[tuple[str, str, str], Count] = {}
        for (policy, _), held in self._held.items():
            for seat in held.seats:
                key = (policy, seat, "buffered" if held.finished else "in_flight")
                found[key] = found.get(key, Count()).plus(1, held.tokens.get(seat, 0))
        return found

    @staticmethod
    def _check(policy: str, unit: str, held: _Held, tokens: Mapping[str, int]) -> None:
        for seat, count in tokens.items():
            assert seat in held.seats, (
                f"{policy}/{unit} was not admitted for seat {seat}, but for {', '.join(held.seats)}"
            )
            assert count >= 0, f"{policy}/{unit} has {count} tokens in seat {seat}"
