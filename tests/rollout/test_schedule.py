"""What is played next: every line-up in its turn, every task once a pass, all of it a function of the numbers alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.rollout import Bound, Schedule, Source


def schedule(*lineups: int, tasks: int | None = 5, seed: int = 0) -> Schedule:
    """One source for each number of line-ups."""
    sources = tuple(
        Source(environment=f"game {at}", tasks=tasks, lineups=tuple({"seat": "policy"} for _ in range(count)))
        for at, count in enumerate(lineups)
    )
    return Schedule(
        sources=sources,
        bounds={"policy": Bound(units_per_step=2, max_staleness=1, steps=3)},
        group_size=2,
        seed=seed,
    )


def test_sources_alternate_and_line_ups_by_their_groups() -> None:
    plan = schedule(2, 1, 3)
    assert [plan.combination(turn) for turn in range(9)] == [
        (0, 0), (1, 0), (2, 0),
        (0, 1), (1, 0), (2, 1),
        (0, 0), (1, 0), (2, 2),
    ]  # fmt: skip


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 200))
def test_every_line_up_has_its_turn(lineups: list[int], start: int) -> None:
    plan = schedule(*lineups)
    seen = {plan.combination(turn) for turn in range(start, start + plan.combinations)}
    assert seen == {(source, lineup) for source, count in enumerate(lineups) for lineup in range(count)}


@given(st.integers(1, 30), st.integers(0, 9), st.integers(0, 3))
def test_a_pass_plays_every_task_once(tasks: int, seed: int, epoch: int) -> None:
    plan = schedule(1, 1, tasks=tasks, seed=seed)
    played = [plan.task_index(1, cursor) for cursor in range(epoch * tasks, (epoch + 1) * tasks)]
    assert Counter(played) == Counter(range(tasks))


def test_passes_sources_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, source: int, epoch: int) -> list[int]:
        plan = schedule(1, 1, tasks=40, seed=seed)
        return [plan.task_index(source, cursor) for cursor in range(epoch * 40, (epoch + 1) * 40)]

    orders = [order(0, 0, 0), order(0, 0, 1), order(0, 1, 0), order(1, 0, 0)]
    assert len({tuple(one) for one in orders}) == 4
    assert order(0, 0, 0) == orders[0], "and always the same"


@pytest.mark.parametrize("cursor", [0, 7, 10**12])
def test_an_endless_source_is_played_in_order(cursor: int) -> None:
    assert schedule(1, tasks=None).task_index(0, cursor) == cursor
