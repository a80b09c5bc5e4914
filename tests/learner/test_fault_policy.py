"""What becomes of an episode that fails: it is played again, scored or dropped; counted, journaled once, and decided again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from sparring import Episodes, Faults, Policy, Run, Seat, environment, rae
from sparring.errors import RunChanged, SettingError, TooManyFaults
from sparring.learner import export, train, train_async
from sparring.learner.accounts import accounts
from sparring.learner.continuity import exactly_once
from sparring.learner.display import settings_lines
from sparring.learner.history import history, read_events
from sparring.learner.overrides import override
from sparring.learner.replay import compare
from sparring.learner.report import page
from sparring.learner.rescore import rescore
from sparring.rollout import MemorySegments, Trajectory, read_episodes
from sparring.rollout.coordinator import ENDED_IT
from sparring.rollout.events import (
    DEADLINE,
    LATE,
    QUARANTINED,
    Acted,
    AnyEvent,
    Died,
    Ended,
    Evaluated,
    Opened,
    Retried,
    Stepped,
    canonical,
    encode,
    standing,
)
from sparring.rollout.trajectory import trajectories
from tests.learner.moods import WELL, run_of, sometimes, trained
from tests.learner.worlds import crash_at_every_commit, digests_of, events_of
from tests.rollout.told import Story, schedule


class Service:
    """Something outside that is away the first times that it is asked for the same."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[int, str]] = Counter()
        self.away = 0

    def answer(self, task: int, text: str) -> float:
        self.asked[task, text] += 1
        if self.asked[task, text] <= self.away:
            raise ConnectionError("the service is away")
        return float(len(text))


SERVICE = Service()


@environment
async def flaky(task: int, only: Seat) -> float:
    first = await only.ask(f"task {task}")
    second = await only.ask("and?")
    return SERVICE.answer(task, first.text + second.text)


@pytest.fixture(autouse=True)
def service() -> Service:
    SERVICE.asked.clear()
    SERVICE.away = 0
    return SERVICE


def faulty(folder: Path, game: Any, faults: Faults, **settings: Any) -> Run:
    return run_of(folder, game, train=Episodes(game, range(20), faults=faults), **settings)


def of_kind(events: Sequence[AnyEvent], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# ------------------------------------------------------------------------------------------------------------ played again


async def test_a_fault_that_passes_leaves_no_trace_in_the_weights(tmp_path: Path, service: Service) -> None:
    """Deterministic, so that an attempt which is made again says what the first one said."""
    undisturbed, store = MemorySegments(), MemorySegments()
    run = faulty(tmp_path / "undisturbed", flaky, Faults(retries=2), deterministic=True)
    assert not of_kind(await trained(run, undisturbed), Retried)
    service.asked.clear()
    service.away = 2
    events = await trained(replace(run, folder=tmp_path / "disturbed"), store)
    ends = of_kind(events, Ended)
    assert {(event.attempt, event.fault) for event in ends} == {(2, "")}
    again = [(event.group, event.member, event.attempt) for event in of_kind(events, Retried)]
    assert sorted(again) == sorted((e.group, e.member, attempt) for e in ends for attempt in (0, 1))
    assert all(event.fault == "ConnectionError" and "Traceback" in event.detail for event in of_kind(events, Retried))
    assert digests_of(store) == digests_of(undisturbed)
    assert all(verdict.holds for verdict in exactly_once(events, run))


async def test_what_was_sampled_in_vain_is_counted_beside_the_books(tmp_path: Path, service: Service) -> None:
    service.away = 1
    events = await trained(faulty(tmp_path, flaky, Faults(retries=1), deterministic=True))
    counts = Counter((event.group, event.member) for event in of_kind(events, Retried))
    sampled = Counter[str]()
    for event in of_kind(events, Acted):
        sampled[event.seat] += event.sample.count
    found = accounts(events)
    assert found is not None
    (row,) = found.ledger
    assert row.retried.units == len(counts) == 12 and row.retried.tokens > 0
    assert row.trained.tokens + row.retried.tokens == sampled["only"]
    tally = found.bias["policy", "only", "retried"]
    assert (tally.count, tally.tokens) == (row.retried.units, row.retried.tokens)
    stepped = of_kind(events, Stepped)
    assert [event.metrics["retried"] for event in stepped] == [4.0] * 3 and stepped[0].metrics["faults"] == 0.0
    told = history(events)
    assert [(one.kind, one.count, one.retried, one.scored) for one in told.faults] == [("ConnectionError", 12, 12, 0)]
    shown = page(told, found)
    assert "of them failed: 0" in shown and "played again" in shown and "failed attempts, played again" in shown
    assert any("failed and played again 12, of" in line for line in compare(events).drops)


async def test_what_fails_by_what_was_said_fails_again_and_is_dropped(tmp_path: Path) -> None:
    events = await trained(faulty(tmp_path, sometimes("raises"), Faults(retries=2), deterministic=True))
    ends = of_kind(events, Ended)
    assert {event.attempt for event in ends if event.fault} == {2} and {e.attempt for e in ends if not e.fault} == {0}
    assert not any(event.results for event in ends if event.fault)
    failed = {(event.group, event.member) for event in ends if event.fault}
    said: dict[tuple[int, int], list[str]] = {}
    for event in of_kind(events, Acted):
        said.setdefault((event.group, event.member), []).append(event.reply.text)
    assert failed and all(len(said[one]) == 3 and len(set(said[one])) == 1 for one in failed), "the same seeds"


async def test_a_held_out_episode_is_played_again(tmp_path: Path, service: Service) -> None:
    service.away = 1
    held_out = Episodes(flaky, range(30, 32), faults=Faults(retries=1))
    events = await trained(run_of(tmp_path, WELL, steps=1, held_out=held_out, deterministic=True))
    assert None not in [value for event in of_kind(events, Evaluated) for value in event.values]
    service.asked.clear()
    alone = Episodes(flaky, range(30, 32))
    events = await trained(run_of(tmp_path / "alone", WELL, steps=1, held_out=alone, deterministic=True))
    assert of_kind(events, Evaluated)[0].values == [None, None]


# ------------------------------------------------------------------------------------------------------------------ scored


def trained_on(events: Sequence[AnyEvent], seats: dict[str, str]) -> list[Trajectory]:
    made: list[Trajectory] = []
    for ended in of_kind(events, Ended):
        mine = [e for e in of_kind(events, Acted) if (e.group, e.member) == (ended.group, ended.member)]
        made += trajectories(mine, ended, seats)
    return made


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_failed_episodes_are_trained_on_with_their_score(tmp_path: Path, how: str) -> None:
    run = faulty(tmp_path, sometimes(how), Faults(score=-2.5), episode_deadline=0.05 if how == "hangs" else 600.0)
    events = await trained(run)
    failed = [event for event in of_kind(events, Ended) if event.fault]
    assert failed and {event.fault for event in failed} == {"KeyError" if how == "raises" else DEADLINE}
    assert all([(one.seat, one.value) for one in event.results] == [("only", -2.5)] for event in failed)
    made = trained_on(events, {"only": "policy"})
    assert len(made) == len(of_kind(events, Ended)) == 12, "nothing is lost"
    found = accounts(events)
    assert found is not None and {fate for _, _, fate in found.bias} == {"trained"}
    assert found.bias["policy", "only", "trained"].rewards["-2.5"] == len(failed)
    assert [(one.count, one.scored) for one in history(events).faults] == [(len(failed), len(failed))]
    assert sum(event.metrics["faults"] for event in of_kind(events, Stepped)) == len(failed)


@environment
async def broken(task: int, first: Seat, second: Seat) -> dict[Seat, float]:
    """Fails before the second seat speaks, after a fork of the first did and got something."""
    await first.ask(f"task {task}")
    first.reward(7.0)
    side = first.fork("side")
    await side.ask("aside")
    raise LookupError


async def test_every_seat_and_fork_that_spoke_is_scored_and_no_other(tmp_path: Path) -> None:
    train = Episodes(broken, range(20), faults=Faults(score=1))
    events = await trained(run_of(tmp_path, broken, train=train, policies=Policy("model", rae())))
    results = {tuple((one.seat, one.fork, one.label, one.value) for one in e.results) for e in of_kind(events, Ended)}
    assert results == {(("first", "", "", 1.0), ("first", "1", "side", 1.0))}
    assert not any(one.turn_rewards for event in of_kind(events, Ended) for one in event.results)
    found = accounts(events)
    assert found is not None and ("policy", "second", "fault") in found.bias, "who never spoke lost the episode"


def test_stored_episodes_and_scores_of_another_day_are_those_of_the_run(tmp_path: Path) -> None:
    run = faulty(tmp_path, sometimes("raises"), Faults(retries=1, score=-2.5))
    assert train(run)
    events = list(read_events(run.path))
    expected = trained_on(standing(events), {"only": "policy"})
    export(run.path, tmp_path / "out.jsonl", run=run, tokens=True)
    stored = [one for episode in read_episodes(tmp_path / "out.jsonl") for one in episode.trajectories()]
    assert [(one.group, one.episode, one.reward, one.action_tokens) for one in stored] == [
        (one.group, one.episode, one.reward, one.action_tokens) for one in expected
    ]
    assert -2.5 in [one.reward for one in stored]
    assert {one.advantages for one in rescore(run.path, run).steps} == {"same"}
    mended = replace(run, train=Episodes(WELL, range(20)))
    assert "other" in {one.advantages for one in rescore(run.path, mended).steps}


# ---------------------------------------------------------------------------------------------------- kills, and deciding again


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_killed_at_any_commit_every_attempt_is_made_once(tmp_path: Path, after: bool) -> None:
    def run_in(folder: Path) -> Run:
        faults = Faults(retries=1, score=0.0)
        return faulty(folder, sometimes("raises"), faults, deterministic=True, max_staleness=1, steps=2)

    assert await crash_at_every_commit(run_in, tmp_path, after=after, every=3) > 10


async def test_a_run_that_is_killed_after_a_failed_attempt_goes_on_with_the_next(
    tmp_path: Path, service: Service
) -> None:
    """Where the attempt is on the disk it is not made again; where it is not, it is."""
    service.away = 1
    run, whole = faulty(tmp_path, flaky, Faults(retries=1), deterministic=True, max_concurrent=1), MemorySegments()
    events = await trained(run, whole)
    cut = next(at for at, event in enumerate(events) if isinstance(event, Retried)) + 1
    first = events[cut - 1]
    assert isinstance(first, Retried)
    kept = MemorySegments()
    kept.append(msgspec.msgpack.encode(events[:cut]))
    again = await trained(replace(run, folder=tmp_path / "again"), kept)
    retried = [(event.group, event.member, event.attempt) for event in of_kind(again, Retried)]
    assert len(retried) == len(set(retried)) and (first.group, first.member, 0) in retried
    mine = [e for e in of_kind(again, Ended) if (e.group, e.member) == (first.group, first.member)]
    assert [(event.attempt, event.fault) for event in mine] == [(1, "")]
    said = [
        [encode(e) for e in canonical(one) if isinstance(e, Acted) and e.group == first.group]
        for one in (again, events)
    ]
    assert said[0] == said[1]


async def test_what_the_policy_does_not_say_is_found(tmp_path: Path) -> None:
    events = await trained(faulty(tmp_path, sometimes("raises"), Faults(retries=1, score=0.5)))
    failed = next(at for at, event in enumerate(events) if isinstance(event, Ended) and event.fault)
    ended = events[failed]
    assert isinstance(ended, Ended)

    def differences(other: AnyEvent) -> str:
        return compare([*events[:failed], other, *events[failed + 1 :]]).differences[0]

    name = f"episode {ended.group}/{ended.member}"
    results = [msgspec.structs.replace(one, value=1.5) for one in ended.results]
    assert differences(msgspec.structs.replace(ended, results=results)) == f"{name} failed and got [1.5]"
    early = msgspec.structs.replace(ended, attempt=0)
    assert differences(early) == f"{name} was not played again after attempt 0"
    more = Retried(group=ended.group, member=ended.member, attempt=1, fault="KeyError")
    assert compare([*events[:failed], more]).differences == (f"{name} was played again after attempt 1",)


def test_what_is_no_fault_is_neither_played_again_nor_scored() -> None:
    faults = Faults(retries=3, score=1.0)
    for fault in (LATE, QUARANTINED, ""):
        ended = Ended(group=0, member=0, fault=fault)
        assert not faults.retries_after(ended) and faults.broken_by(ended) == ""
    assert faults.retries_after(Ended(group=0, member=0, fault=DEADLINE, attempt=2))
    assert not faults.retries_after(Ended(group=0, member=0, fault=DEADLINE, attempt=3))


def test_an_attempt_that_is_cut_off_keeps_its_number() -> None:
    story = Story(schedule([{"one": "alice"}], batch=1))
    story.admit()
    story.tell(Retried(group=0, member=1, fault="KeyError"))
    for life in ("a", "b"):
        story.tell(Died(life=life, group=0, member=1))
    assert story.state.quarantined() == (Ended(group=0, member=1, fault=QUARANTINED, detail=ENDED_IT, attempt=1),)
    cut = story.state.groups[0].cut_off(LATE, "slow")
    assert [(event.member, event.attempt, event.fault) for event in cut] == [(0, 0, LATE), (1, 1, LATE)]


# ------------------------------------------------------------------------------------------------------- the ceiling, at start


@environment
async def two_ways(task: int, only: Seat) -> float:
    text = (await only.ask(f"task {task}")).text
    if text[0] < "b":
        raise LookupError("seldom")
    raise ArithmeticError("often")


async def test_the_ceiling_counts_attempts_and_names_the_most_frequent_fault(tmp_path: Path) -> None:
    run = faulty(tmp_path, two_ways, Faults(retries=1), max_faults=0.5)
    with anyio.fail_after(20), pytest.raises(TooManyFaults) as caught:
        await train_async(run, store=MemorySegments())
    said = str(caught.value)
    assert said.startswith("8 of 8 attempts at episodes failed, more than max_faults=0.5; ")
    assert "of them with ArithmeticError, the first of these:\nTraceback" in said and "often" in said
    assert "seldom" not in said


async def test_verdicts_that_are_errors_may_be_too_many(tmp_path: Path) -> None:
    """Nobody failed, and each is masked; but a run whose verifier is gone does not go on for ever."""
    run = run_of(tmp_path, sometimes("unjudged"), max_faults=0.1, steps=50)
    with anyio.fail_after(20), pytest.raises(TooManyFaults) as caught:
        await train_async(run, store=MemorySegments())
    assert "of them with NotJudged, the first of these:\nnobody knows" in str(caught.value)


async def test_a_few_verdicts_that_are_errors_are_masked(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, sometimes("unjudged"), max_faults=1.0, steps=6))
    reasons = [one.unjudged for event in of_kind(events, Ended) for one in event.results]
    assert {"", "nobody knows"} == set(reasons)
    assert sum(event.metrics["unjudged"] for event in of_kind(events, Stepped)) > 0


async def test_retries_that_help_may_still_be_too_many(tmp_path: Path, service: Service) -> None:
    service.away = 1
    run = faulty(tmp_path, flaky, Faults(retries=1), max_faults=0.3, steps=8)
    with (
        anyio.fail_after(20),
        pytest.raises(TooManyFaults, match=r"of \d+ attempts .* max_faults=0.3; \d+ of them with Conn"),
    ):
        await train_async(run, store=MemorySegments())


async def test_a_resumed_run_keeps_its_policy(tmp_path: Path) -> None:
    store, run = MemorySegments(), faulty(tmp_path, WELL, Faults())
    events = await trained(run, store)
    (opened,) = of_kind(events, Opened)
    assert "faults=Faults(retries=0, score=None)" in settings_lines(opened.run)[2]
    with pytest.raises(RunChanged, match=r"faults.retries = 0, now 1"):
        await train_async(faulty(tmp_path, WELL, Faults(retries=1)), store=store)
    assert len(events_of(store)) == len(events)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Faults(retries=-1), r"Faults\(retries=-1\): must be a whole number, at least 0"),
        (lambda: Faults(retries=True), r"retries=True"),
        (lambda: Faults(score=float("nan")), r"Faults\(score=nan\): must be None \(it is dropped\) or a finite number"),
        (lambda: Faults(score="0"), r"score='0'"),  # type: ignore[arg-type]
        (lambda: Episodes(WELL, [1], faults=3), r"moody: faults=3: must be Faults\("),  # type: ignore[arg-type]
        (
            lambda: run_of(Path(), WELL, held_out=Episodes(WELL, [99], faults=Faults(score=0.0))),
            r"held_out\['held-out'\]: faults=.*: a held-out episode that fails has no verdict; leave out score",
        ),
    ],
)
def test_bad_policies(made: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        made()


def test_it_is_set_on_the_command_line() -> None:
    run = override(run_of(Path(), WELL), [("train.faults.retries", "2"), ("train.faults.score", "-1.5")])
    assert run.sources[0].faults == Faults(retries=2, score=-1.5)


async def test_without_a_policy_a_fault_is_dropped(tmp_path: Path) -> None:
    events = await trained(run_of(tmp_path, sometimes("raises")))
    assert not of_kind(events, Retried)
    assert not any(event.results for event in of_kind(events, Ended) if event.fault)
