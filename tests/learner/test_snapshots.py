"""Which of the states that lie beside a journal can be used, and which are still needed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.learner.lines import LinesState
from sparring.learner.snapshots import RunState, needed, read, readable
from sparring.rollout.snapshot import SCHEMA, packed

EVERY = 3
"""Steps between the checkpoints of these runs."""


def state(step: int, schema: int = SCHEMA) -> RunState:
    return RunState(
        policy="alice",
        step=step,
        versions={"alice": step},
        lines=LinesState(),
        coordinator=msgspec.Raw(b"\xc0"),
        schema=schema,
    )


def usable(found: Mapping[str, Mapping[str, int]], bases: Mapping[str, int]) -> str | None:
    """The newest state from which a resume with these bases can start."""
    fits = [name for name, at in found.items() if all(at[policy] <= bases[policy] for policy in bases)]
    return fits[-1] if fits else None


@given(policies=st.integers(1, 3), moves=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=80))
def test_whatever_is_needed_is_kept_and_little_else(policies: int, moves: list[tuple[int, int]]) -> None:
    """Policies step and are checkpointed at their own pace, resumes need ever newer bases: the state that a resume would start
    from if all were kept is always among those that are."""
    names = ["alice", "bob", "carol"][:policies]
    at = dict.fromkeys(names, 0)
    lag = dict.fromkeys(names, 0)
    checkpoints = {name: {0} for name in names}
    everything: dict[str, Mapping[str, int]] = {}
    kept: dict[str, Mapping[str, int]] = {}
    for mover, back in moves:
        policy = names[mover % policies]
        at[policy] += 1
        if at[policy] % EVERY:
            continue
        checkpoints[policy].add(at[policy])
        lag[policy] = max(lag[policy], at[policy] - back)
        since = {name: max(step for step in checkpoints[name] if step <= lag[name]) for name in names}
        everything[f"{policy}/{at[policy]}"] = dict(at)
        kept[f"{policy}/{at[policy]}"] = dict(at)
        kept = {name: kept[name] for name in needed(kept, since, checkpoints)}
        possible = [sorted(step for step in checkpoints[name] if step >= since[name]) for name in names]
        for chosen in product(*possible):
            bases = dict(zip(names, chosen, strict=True))
            assert usable(kept, bases) == usable(everything, bases), (bases, kept)
        assert len(kept) <= 1 + sum(map(len, possible)), "as many as there are checkpoints that may be needed"


def test_one_policy_whose_newest_checkpoint_is_enough_keeps_one() -> None:
    found = {"alice/10": {"alice": 10}, "alice/20": {"alice": 20}}
    assert needed(found, {"alice": 20}, {"alice": [0, 10, 20]}) == ["alice/20"]
    assert needed(found, {"alice": 10}, {"alice": [0, 10, 20]}) == ["alice/10", "alice/20"]


def test_a_state_that_only_the_other_policy_holds_back_is_kept() -> None:
    """Bob's next checkpoint makes the second state usable; until then it is the first."""
    found = {"alice/10": {"alice": 10, "bob": 9}, "bob/10": {"alice": 12, "bob": 10}}
    checkpoints = {"alice": [0, 10], "bob": [0, 10]}
    assert needed(found, {"alice": 10, "bob": 10}, checkpoints) == ["alice/10", "bob/10"]


def test_a_state_comes_back_as_it_was() -> None:
    assert read(packed(state(3))) == state(3) and state(3).name == "alice/3"


def test_states_of_another_schema_and_damaged_ones_are_left_out() -> None:
    good, other = packed(state(1)), packed({"schema": SCHEMA + 1, "entirely": "different"})
    assert read(other) is None
    found = [(1, good), (2, other), (3, good[:-2]), (4, packed(state(4)))]
    assert [(segment, one.step) for segment, one in readable(found)] == [(1, 1), (4, 4)]
    with pytest.raises(msgspec.MsgspecError):
        read(good[:-2])
