"""Baselines for each player at a seat, as for each judge: closed forms, what is refused, and runs whose judges differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean, pvariance
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring import (
    Comparable,
    Episodes,
    F,
    Frozen,
    League,
    Lineup,
    Phase,
    Policy,
    Reuse,
    Run,
    Scripted,
    ScriptedModels,
    Seat,
    advantages,
    environment,
    grpo,
    rae,
)
from sparring.environments import Conversation, Message
from sparring.errors import SettingError
from sparring.learner import RoleBaseline
from sparring.learner.advantages import estimate
from sparring.learner.checked import schedule_of
from sparring.learner.continuity import decided_again
from sparring.learner.replay import compare
from sparring.rollout.events import Admitted, AnyEvent, Ended, Opened, Planned, Stepped
from tests.learner.sets import comparable
from tests.learner.test_advantages import ILL_TYPED
from tests.learner.test_league import league_run, trained
from tests.learner.worlds import Recorded, crash_at_every_commit, duel_run

DECAY = 0.95
JUDGES = ("lenient", "strict")


def judged(reward: float, judge: str, seat: str = "pro") -> Comparable:
    return replace(comparable([reward], [1], seat=seat), players={"pro": "alice", "judge": judge})


def one_by_one(estimator: RoleBaseline, games: Sequence[tuple[str, float]]) -> list[float]:
    """The advantage of each of (judge, reward), in order."""
    found, state = list[float](), dict[str, Any]()
    for judge, reward in games:
        checked = estimate(estimator, judged(reward, judge), state)
        state = dict(checked.state)
        found.append(float(checked.values[0][0]))
    return found


# ----------------------------------------------------------------------------------------------------------- closed forms


def test_a_key_for_each_player() -> None:
    estimator, state = RoleBaseline(decay=0.5, given=("judge",)), {"game/pro//judge=strict": 8.0}
    checked = estimate(estimator, judged(1, "strict"), state)
    assert checked.values[0][0] == -7 and checked.state == {"game/pro//judge=strict": 4.5}
    checked = estimate(estimator, judged(1, "lenient"), state)
    assert checked.values[0][0] == 1 and checked.state == {
        "game/pro//judge=strict": 8.0,
        "game/pro//judge=lenient": 0.5,
    }
    both = RoleBaseline(decay=0.5, given=("judge", "pro"))
    assert list(estimate(both, judged(1, "alice@10"), {}).state) == ["game/pro//judge=alice@10/pro=alice"]
    assert (estimator.name, both.name) == (
        "role baseline, decay 0.5, given judge",
        "role baseline, decay 0.5, given judge and pro",
    )


def test_without_it_players_are_nothing_to_a_baseline() -> None:
    games = [("strict", 1.0), ("lenient", 1.0), ("strict", 0.0)]
    assert one_by_one(RoleBaseline(decay=0.5), games) == [1, 0.5, -0.75]
    assert list(estimate(RoleBaseline(), judged(1, "strict"), {}).state) == ["game/pro/"]


def test_a_seat_that_the_environment_has_not_adds_nothing() -> None:
    assert list(estimate(RoleBaseline(given=("judge",)), comparable([1]), {}).state) == ["game/solver/"]


@given(st.lists(st.tuples(st.sampled_from(JUDGES), st.floats(-100, 100, width=32)), max_size=20), st.floats(0, 0.99))
def test_each_judge_s_games_are_as_if_there_were_no_others(games: list[tuple[str, float]], decay: float) -> None:
    found = one_by_one(RoleBaseline(decay=decay, given=("judge",)), games)
    for judge in JUDGES:
        mine = [reward for named, reward in games if named == judge]
        alone = one_by_one(RoleBaseline(decay=decay), [(judge, reward) for reward in mine])
        assert [value for value, (named, _) in zip(found, games, strict=True) if named == judge] == alone


@given(st.lists(st.sampled_from(JUDGES), min_size=1, max_size=40))
def test_leniency_alone_is_forgotten(judges: list[str]) -> None:
    """Rewards of c and -c by the judge alone: the n-th game with a judge has the advantage +-c b^n."""
    games = [(judge, 3.0 if judge == "lenient" else -3.0) for judge in judges]
    for at, value in enumerate(one_by_one(RoleBaseline(decay=0.75, given=("judge",)), games)):
        before = judges[:at].count(judges[at])
        assert value == pytest.approx(games[at][1] * 0.75**before, rel=1e-6)


def test_the_variance_of_advantages_under_two_judges() -> None:
    """r = m + c z + e, z = +-1 at random, e = +-s: independent rewards of variance v = s^2 + c^2, whose running mean has the
    variance v (1 - b) / (1 + b), so that r less it has v 2 / (1 + b), and is c too high with the lenient judge. Given the
    judge, v is s^2 and nothing is too high."""
    rng, m, c, s = Random(0), 5.0, 2.0, 1.0
    games = [
        (judge, m + (c if judge == "lenient" else -c) + rng.choice((-s, s))) for judge in rng.choices(JUDGES, k=8000)
    ]
    for estimator, variance, bias in (
        (RoleBaseline(decay=DECAY), (s**2 + c**2) * 2 / (1 + DECAY), c),
        (RoleBaseline(decay=DECAY, given=("judge",)), s**2 * 2 / (1 + DECAY), 0.0),
    ):
        settled = list(zip(games, one_by_one(estimator, games), strict=True))[500:]
        assert pvariance(value for _, value in settled) == pytest.approx(variance, rel=0.05)
        for judge, sign in zip(JUDGES, (1, -1), strict=True):
            assert fmean(value for (named, _), value in settled if named == judge) == pytest.approx(
                sign * bias, abs=0.1
            )


# ---------------------------------------------------------------------------------------------------------- what is refused


def test_one_seat_or_several() -> None:
    assert rae(given="judge").advantages == RoleBaseline(given=("judge",)) == rae(given=("judge",)).advantages
    assert rae().advantages == RoleBaseline(given=())


@pytest.mark.parametrize("seats", [["judge"], ("judge", "judge"), (1,), 7, None])
def test_what_names_no_seats(seats: Any) -> None:
    with pytest.raises(ILL_TYPED, match="given"):
        rae(given=seats)


@environment
async def debate(task: int, pro: Seat, judge: Seat) -> dict[Seat, float]:
    """What the judge says it is worth."""
    said = await pro.ask(f"argue {task}")
    return {pro: float((await judge.ask(f"{said}")).text)}


def worth(conversation: Conversation) -> int:
    entry = conversation.entries[-1]
    assert isinstance(entry, Message)
    return sum(map(ord, entry.text)) % 3


def lenient(conversation: Conversation) -> str:
    return f"{worth(conversation) + 10}"


def strict(conversation: Conversation) -> str:
    return f"{worth(conversation) - 10}"


def judged_run(folder: Path, *, deterministic: bool = True, seats: Any = "judge", **changed: Any) -> Run:
    """Alice argues before two judges who take turns."""
    judges = [Lineup({"pro": "alice", "judge": Scripted(one)}) for one in (lenient, strict)]
    plain = Run(
        name="judged",
        train=Episodes(debate, range(20), judges),
        policies={"alice": Policy("one", rae(decay=0.75, given=seats))},
        steps=4,
        groups_per_step=3,
        group_size=2,
        evaluate_every=2,
        backend=ScriptedModels(),
        deterministic=deterministic,
        folder=folder,
    )
    return replace(plain, **changed)


def test_a_seat_that_no_environment_has(tmp_path: Path) -> None:
    schedule_of(judged_run(tmp_path))
    with pytest.raises(SettingError, match=r"'alice': given='juge' is no seat .*; did you mean 'judge'"):
        schedule_of(judged_run(tmp_path, seats="juge"))
    with pytest.raises(SettingError, match=r"given='verifier' is no seat .*; the seats are pro, judge"):
        schedule_of(judged_run(tmp_path, seats=("judge", "verifier")))


def test_two_players_of_one_name(tmp_path: Path) -> None:
    """Their rewards would run into one mean, which is what was not wanted."""

    def named(*judges: Any) -> Run:
        train = Episodes(debate, range(20), [Lineup({"pro": "alice", "judge": judge}) for judge in judges])
        return judged_run(tmp_path, train=train)

    one, other = Scripted(lambda _: "1"), Scripted(lambda _: "2")
    with pytest.raises(
        SettingError, match=r"given='judge': two players there are called '<lambda>'.*names of their own"
    ):
        schedule_of(named(one, other))
    for alike in (named(one, one), named(one, Scripted(strict)), named("alice", Frozen("alice@0"))):
        schedule_of(alike)
    schedule_of(named(League("alice", every=2), League("alice", sampler="latest")))
    schedule_of(replace(named(one, other), policies={"alice": Policy("one", rae())}))


# ------------------------------------------------------------------------------------------------------------------ in runs


def baselines(events: Sequence[AnyEvent], decay: float) -> list[dict[str, float]]:
    """After each step, by hand from what the journal says of plans, line-ups and rewards."""
    lineups = {one.group: one.lineup for one in events if isinstance(one, Admitted)}
    ends = {(one.group, one.member): one for one in events if isinstance(one, Ended)}
    found, running = list[dict[str, float]](), dict[str, float]()
    for plan in (one for one in events if isinstance(one, Planned)):
        for group in plan.groups:
            key = f"debate/pro//judge={JUDGES[lineups[group]]}"
            for member in (0, 1):
                (value,) = [one.value for one in ends[group, member].results if one.seat == "pro"]
                assert value is not None
                running[key] = decay * running.get(key, 0.0) + (1 - decay) * value
        found.append(dict(running))
    return found


@pytest.mark.parametrize("deterministic", [True, False])
async def test_a_baseline_for_each_judge_of_a_run(tmp_path: Path, deterministic: bool) -> None:
    store = Recorded()
    run = judged_run(tmp_path, deterministic=deterministic)
    events = await trained(run, store)
    steps = [one for one in events if isinstance(one, Stepped)]
    states = [dict(one.durable["advantages"]) for one in steps]
    assert states == [pytest.approx(state) for state in baselines(events, 0.75)]
    assert states[-1].keys() == {"debate/pro//judge=lenient", "debate/pro//judge=strict"}
    assert states[-1]["debate/pro//judge=lenient"] > 5 and states[-1]["debate/pro//judge=strict"] < -5
    comparison = compare(events, snapshots=store.all)
    assert comparison.agrees and comparison.snapshots > 1, comparison.lines


async def test_without_it_the_run_s_keys_are_what_they_were(tmp_path: Path) -> None:
    events = await trained(judged_run(tmp_path, policies={"alice": Policy("one", rae())}))
    states = [dict(one.durable["advantages"]) for one in events if isinstance(one, Stepped)]
    assert all(state.keys() == {"debate/pro/"} for state in states)


async def test_judges_that_were_others_are_found(tmp_path: Path) -> None:
    """Planted: the journal says that they sat in each other's place."""
    events = await trained(judged_run(tmp_path))
    opened = events[0]
    assert isinstance(opened, Opened)
    changed = msgspec.json.decode(msgspec.json.encode(opened))
    one, other = changed["run"]["schedule"]["sources"][0]["opponents"]
    one["judge"], other["judge"] = other["judge"], one["judge"]
    found = compare([msgspec.convert(changed, Opened), *events[1:]]).differences
    assert any("the estimator's state differs" in line for line in found), found


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_at_any_commit_ends_in_the_same_baselines(tmp_path: Path, after: bool) -> None:
    assert await crash_at_every_commit(judged_run, tmp_path, after=after, every=5) > 5


async def test_units_that_are_used_again_know_their_judges(tmp_path: Path) -> None:
    """Rewards about +-10, baselines near them: with the wrong judge's, an advantage would be about 20."""
    store = Recorded()
    seen: list[Comparable] = []

    class Watched:
        name, minimum = "watched", 1

        def __call__(self, group: Comparable, state: Any) -> tuple[F, Any]:
            seen.append(group)
            return np.zeros(len(group), np.float32), state

    policies = {"alice": Policy("one", grpo(advantages=Watched()))}
    reusing = judged_run(tmp_path, deterministic=False, reuse=Reuse(units=2, max_uses=3), policies=policies)
    events = await trained(reusing, store)
    reused = sum(len(one.reused) for one in events if isinstance(one, Planned))
    assert reused > 2 and len(seen) == 12 + reused
    for group in seen:
        assert group.players == {"pro": "alice", "judge": "lenient" if group.rewards.min() > 0 else "strict"}
    again = judged_run(tmp_path / "again", deterministic=False, reuse=Reuse(units=2, max_uses=3))
    events = await trained(again)
    assert decided_again(events, again).wrong == ()


async def test_nobody_changes_who_played(tmp_path: Path) -> None:
    @advantages
    def careless(group: Comparable) -> F:
        players: Any = group.players
        players["judge"] = "me"
        return group.rewards

    with pytest.raises(TypeError, match="does not support item assignment"):
        await trained(judged_run(tmp_path, policies={"alice": Policy("one", grpo(advantages=careless))}))


async def test_each_version_of_a_league_is_a_player(tmp_path: Path) -> None:
    policies = {"alice": Policy("one", rae(given=("one", "two")))}
    events = await trained(replace(league_run(tmp_path, steps=9), policies=policies))
    versions = [
        (seat, version) for one in events if isinstance(one, Admitted) for seat, version in one.opponents.items()
    ]
    met = {
        f"contest/one//one=alice/two=alice@{version}"
        if seat == "two"
        else f"contest/two//one=alice@{version}/two=alice"
        for seat, version in versions
    }
    last = [one.durable["advantages"] for one in events if isinstance(one, Stepped)][-1]
    assert last.keys() == met and len(met) > 4
    assert compare(events).agrees


def test_a_policy_that_is_paused_keeps_its_name(tmp_path: Path) -> None:
    run = duel_run(tmp_path, steps=2)
    plan = schedule_of(replace(run, phases=[Phase("alice", steps=1), Phase("bob", steps=1)]))
    assert plan.players(0, 0, {}) == {"first": "alice", "second": "bob"}
    drawn = schedule_of(league_run(tmp_path))
    assert drawn.players(0, 0, {"two": 4}) == {"one": "alice", "two": "alice@4"}
    assert drawn.players(0, 1, {"one": 0}) == {"one": "alice@0", "two": "alice"}
