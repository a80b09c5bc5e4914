"""Phases: what is refused, the stages of a run, and the books of who is paused."""

from __future__ import annotations

import json
from random import Random

import msgspec
import pytest

from sparring.errors import SettingError
from sparring.rollout import Phase, Schedule, StalenessBudget
from sparring.rollout.budget import Waiting
from sparring.rollout.phases import Stage, check_phases, stages
from tests.rollout.world import bound

TWO = ("prover", "verifier")


@pytest.mark.parametrize("policies", ["", (), ("a", "a"), ("a", ""), 3, None, [1]])
def test_a_phase_of_nobody(policies: object) -> None:
    with pytest.raises(
        SettingError, match=r"Phase\(.*\): must be the name of a policy, or a sequence of different names"
    ):
        Phase(policies, steps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "3", None])
def test_a_phase_of_no_steps(steps: object) -> None:
    with pytest.raises(SettingError, match=r"Phase\('a', steps=.*\): must be a whole number, at least 1"):
        Phase("a", steps=steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ("prover", "must be a sequence of phases"),
        (None, "must be a sequence of phases"),
        (["prover"], "must be a sequence of phases"),
        (
            [Phase("prover", steps=1), Phase("veriffier", steps=1)],
            "names no policy of the run; did you mean 'verifier'?",
        ),
        (
            [Phase("prover", steps=1), Phase("x", steps=1)],
            "names no policy of the run; the policies are prover, verifier",
        ),
        ([Phase("prover", steps=1)], "policy 'verifier' is in none of them"),
        ([Phase("prover", steps=7), Phase("verifier", steps=1)], "is longer than the run, of steps=6"),
        ([Phase(TWO, steps=1)], "nobody is ever paused; leave out phases"),
        ([Phase(TWO, steps=1), Phase(TWO[::-1], steps=2)], "nobody is ever paused; leave out phases"),
    ],
)
def test_phases_that_a_run_cannot_have(phases: object, said: str) -> None:
    with pytest.raises(SettingError) as refused:
        check_phases(phases, TWO, steps=6)
    assert said in str(refused.value)


def test_phases_that_it_can() -> None:
    check_phases((), TWO, steps=6)
    check_phases([Phase("prover", steps=6), Phase(TWO, steps=1)], TWO, steps=6)


def test_the_stages_of_a_run() -> None:
    """Whoever has made all steps is passed over; the last phases are cut short."""
    phases = [Phase("a", steps=2), Phase("b", steps=4), Phase(("a", "c"), steps=1)]
    found = [(sorted(one.moving), list(one.until.values())) for one in stages(phases, dict.fromkeys("abc", 5))]
    assert found == [
        (["a"], [2, 0, 0]),
        (["b"], [2, 4, 0]),
        (["a", "c"], [3, 4, 1]),
        (["a"], [5, 4, 1]),
        (["b"], [5, 5, 1]),
        (["c"], [5, 5, 2]),
        (["c"], [5, 5, 3]),
        (["c"], [5, 5, 4]),
        (["c"], [5, 5, 5]),
    ]
    (whole,) = stages((), {"a": 3})
    assert whole == Stage(until={"a": 3}, moving=frozenset("a"))


def test_a_schedule_with_phases_is_json() -> None:
    schedule = Schedule(
        sources=(), bounds={}, group_size=1, seed=0, phases=(Phase("a", steps=2), Phase(("b", "c"), steps=3))
    )
    text = json.dumps(msgspec.to_builtins(schedule))
    again = msgspec.convert(json.loads(text), Schedule).phases
    assert [(phase.names, phase.steps) for phase in again] == [(("a",), 2), (("b", "c"), 3)]


def step(budget: StalenessBudget, policy: str) -> None:
    """Admit what the next step needs, finish it, train it, install what comes of it."""
    for number in range(2):
        name = f"{policy}{budget.version(policy)}{number}"
        budget.admit(name, [policy])
        budget.finish(policy, name)
    chosen = budget.candidate(policy)
    assert not isinstance(chosen, Waiting), chosen
    budget.take(policy, chosen)
    budget.install(policy, budget.step(policy))


@pytest.mark.parametrize("pinned", [False, True])
def test_who_is_paused_reserves_nothing(pinned: bool) -> None:
    """A phase of two steps, one of one step, over and over, three steps each: admission ends with each phase, and the next
    begins with the commit of its last step."""
    phases = [Phase("alice", steps=2), Phase("bob", steps=1)]
    bounds = {"alice": bound(2, 1, 3), "bob": bound(2, 1, 3)}

    def opened() -> StalenessBudget:
        return StalenessBudget(bounds, pinned=pinned, phases=phases)

    budget, told = opened(), []
    while not all(budget.done(policy) for policy in bounds):
        (active,) = (policy for policy in bounds if not budget.paused(policy))
        (other,) = (policy for policy in bounds if budget.paused(policy))
        told.append(f"{active}{budget.version(active)}")
        assert budget.closed(other) and not budget.closed(active)
        resting = budget.statistics()[other]
        assert (resting.outstanding, resting.room) == (0, 0)
        waiting = budget.candidate(other)
        assert isinstance(waiting, Waiting)
        assert budget.done(other) or f"paused after {budget.version(other)} steps" in waiting.reason
        with pytest.raises(AssertionError, match="admission has ended"):
            budget.admit("too early", [other])
        step(budget, active)
        kept = opened()
        kept.restore(json.loads(json.dumps(budget.state())))
        assert [kept.closed(policy) for policy in bounds] == [budget.closed(policy) for policy in bounds]
        assert [kept.paused(policy) for policy in bounds] == [budget.paused(policy) for policy in bounds]
        budget = kept
    assert told == ["alice0", "alice1", "bob0", "alice2", "bob1", "bob2"]
    assert budget.phase_left() is None


def test_what_a_phase_waits_for() -> None:
    budget = StalenessBudget(
        dict.fromkeys("abc", bound(2, 1, 4)), phases=[Phase(("a", "b"), steps=2), Phase("c", steps=4)]
    )
    assert budget.phase_left() == "the next phase waits for step 1 of a and step 1 of b"
    for _ in range(2):
        step(budget, "a")
    assert budget.closed("a") and not budget.paused("a"), "its part is over, the phase is not"
    assert budget.phase_left() == "the next phase waits for step 1 of b"
    assert (budget.limit("a"), budget.limit("c"), budget.meant("a")) == (2, 0, 2)


def test_without_phases_nobody_is_paused() -> None:
    budget = StalenessBudget({"a": bound(2, 1, 1)})
    assert (budget.paused("a"), budget.limit("a"), budget.phase_left()) == (False, 1, None)
    step(budget, "a")
    assert budget.done("a") and not budget.paused("a") and budget.phase_left() is None


@pytest.mark.parametrize("pinned", [False, True])
def test_no_phase_holds_up_the_next(pinned: bool) -> None:
    """Whatever is dropped and in whichever order units finish, every policy comes to its end, only ever in its phases."""
    for seed in range(60):
        chance = Random(seed)
        phases = [Phase("a", steps=chance.randint(1, 3)), Phase(("b", "c"), steps=chance.randint(1, 3))]
        bounds = {name: bound(chance.randint(1, 3), chance.randint(0, 3), 7) for name in "abc"}
        budget = StalenessBudget(bounds, pinned=pinned, phases=phases)
        flying: list[tuple[str, str]] = []
        moves = 0
        while not all(budget.done(name) for name in bounds):
            moves += 1
            assert moves < 5_000, (seed, budget.statistics())
            name = chance.choice("abc")
            if not budget.closed(name) and budget.may_admit([name]) is None:
                budget.admit(f"u{moves}", [name])
                flying.append((name, f"u{moves}"))
            elif flying and chance.random() < 0.8:
                owner, unit = flying.pop(chance.randrange(len(flying)))
                (budget.drop if chance.random() < 0.2 else budget.finish)(owner, unit)
            chosen = budget.candidate(name)
            if not isinstance(chosen, Waiting):
                assert not budget.paused(name)
                budget.take(name, chosen)
                budget.step(name)
            budget.install(name, chance.randint(budget.installed(name), budget.version(name)))
            assert not budget.overdue()
            assert all(budget.outstanding(one) == 0 for one in bounds if budget.paused(one))
