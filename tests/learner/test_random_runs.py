"""Small runs drawn by chance, killed and stopped where chance has it: nothing is lost, doubled, stale or decided otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from sparring import (
    Curriculum,
    Drop,
    Episodes,
    EqualRewards,
    Frozen,
    Lineup,
    Pace,
    Phase,
    Policy,
    Reuse,
    Run,
    ScriptedModels,
    Seat,
    effect,
    environment,
    gather,
    grpo,
    rae,
)
from sparring.environments import Score, generated
from sparring.learner import train_async
from sparring.learner.checked import schedule_of
from sparring.learner.continuity import decided_again, equal, exactly_once
from sparring.learner.parts import Parts
from sparring.learner.snapshots import readable
from sparring.learner.trainer import Trainer
from sparring.rollout import Coordinator, MemorySegments
from sparring.rollout.events import (
    Acted,
    Admitted,
    Affected,
    AnyEvent,
    Ended,
    Evaluated,
    Planned,
    Stepped,
    decode_segment,
    standing,
)
from sparring.rollout.journal import Snapshot
from sparring.rollout.snapshot import differing, packed
from tests.learner.worlds import Crash, CrashingSegments, Recorded, events_of

CLOCK = Random(0)
"""How long things take: never the same twice, whatever the seeds of the run."""


async def dawdle(text: str) -> int:
    """Takes its time, which is nobody's business."""
    for _ in range(CLOCK.randrange(4)):
        await anyio.lowlevel.checkpoint()
    return len(text)


@environment
async def fair(task: int, one: Seat, two: Seat, *, rng: Random, faults: int = 0) -> dict[Seat, float | Score]:
    """Branches, forks, contexts, effects, verdicts that are missing; fails where a reply begins with a low letter."""
    luck = rng.random()
    first, second = await gather(ask(one, f"task {task}"), ask(two, f"luck {luck:.2f}"))
    if first[0] < "abcdefgh"[faults]:
        raise RuntimeError(f"{one!r} said {first}")
    fork = two.fork("aside")
    if second[0] < "d":
        two.new_context()
    aside, again = await gather(ask(fork, f"{first}?"), ask(two, "again"))
    two.reward(0.5 * (again > aside))
    if aside[0] == "g":
        return {one: Score(error="nobody could say"), two: luck, fork: 1.0}
    return {one: float(len(first)), two: luck, fork: float(aside < "c")}


async def ask(seat: Seat, text: str) -> str:
    reply = (await seat.ask(text)).text
    await effect(dawdle, reply)
    await effect(dawdle, reply)
    return reply


@environment
async def solo(task: int, only: Seat) -> float | None:
    """One seat, which sometimes has nothing to say."""
    return None if task % 5 == 4 else float(await ask(only, f"{task}") < "d")


@dataclass(frozen=True, kw_only=True)
class World:
    """What a run is drawn from."""

    policies: int
    staleness: int
    batch: int
    members: int
    faults: int
    sources: tuple[int, ...]
    endless: bool
    deterministic: bool
    resumable: bool
    slots: int
    seed: int
    filtered: bool = False
    dropped: bool = False
    reused: int = 0
    learnt: bool = False
    phased: bool = False
    ends: tuple[tuple[int, str], ...]
    """(commit, how): the successive starts of the run end before or after that commit, or are stopped at it, as by Ctrl-C."""


def drawn(rng: Random) -> int:
    return rng.randrange(1000)


STEPS = 3
worlds = st.builds(
    World,
    policies=st.integers(1, 3),
    staleness=st.integers(0, 3),
    batch=st.integers(1, 3),
    members=st.integers(1, 3),
    faults=st.sampled_from([0, 0, 1, 3]),
    sources=st.sampled_from([(0,), (0, 1), (1, 0, 0)]),
    endless=st.booleans(),
    deterministic=st.booleans(),
    resumable=st.sampled_from([True, True, False]),
    slots=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 99),
    filtered=st.booleans(),
    dropped=st.booleans(),
    reused=st.integers(0, 2),
    learnt=st.booleans(),
    phased=st.booleans(),
    ends=st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["before", "after", "stop"])), max_size=3).map(tuple),
)


def run_of(world: World, folder: Path) -> Run:
    names = ["alice", "bob", "carol"][: world.policies]
    pairs = [Lineup({"one": name, "two": names[(at + 1) % len(names)]}) for at, name in enumerate(names)]
    pairs.append(Lineup({"one": names[0], "two": Frozen(f"{names[-1]}@0")}))
    alone = [Lineup({"only": name}) for name in names]
    tasks: Any = generated(drawn) if world.endless else range(7)
    game = replace(fair(faults=world.faults), resumable=world.resumable)
    curriculum = Curriculum(window=2) if world.learnt and not world.endless else None
    kinds = (
        Episodes(game, tasks, pairs, curriculum=curriculum),
        Episodes(solo, tasks, alone, curriculum=curriculum),
    )
    algorithm = grpo(filters=[EqualRewards()] if world.filtered else []) if world.members > 1 else rae()
    drops = world.dropped and world.staleness > 0 and not world.deterministic
    return Run(
        name="run",
        train=[kinds[kind] for kind in world.sources],
        held_out=Episodes(fair, range(2), pairs[-1], seen=True),
        policies={name: Policy(name, rae() if name == "bob" else algorithm) for name in names},
        steps=STEPS,
        groups_per_step=world.batch,
        group_size=world.members,
        max_staleness=world.staleness,
        evaluate_every=2,
        backend=ScriptedModels(),
        seed=world.seed,
        deterministic=world.deterministic,
        max_concurrent=world.slots,
        max_faults=1.0,
        max_refill=1000,
        pacing=Drop(versions=world.staleness - 1) if drops else Pace(),
        reuse=Reuse(units=world.reused, how=("uniform", "prioritized")[world.seed % 2]) if world.reused else None,
        phases=[Phase(names[0], steps=2), Phase(names[1:], steps=1)] if world.phased and names[1:] else (),
        folder=folder,
    )


class Stopping(CrashingSegments):
    """A store that stops the run at a commit."""

    def __init__(self, kept: MemorySegments, commit: int, trainers: list[Trainer]) -> None:
        super().__init__(kept, -1, after=False)
        self.commit, self.trainers = commit, trainers

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        super().append(blob, snapshot)
        self.commit -= 1
        if self.commit < 0 and self.trainers:
            anyio.from_thread.run_sync(self.trainers[-1].stop)


async def lived(world: World, ends: Sequence[tuple[int, str]]) -> Recorded:
    """The journal of a run that is killed or stopped at the given commits of its successive starts."""
    kept = Recorded()
    trainers: list[Trainer] = []

    class Seen(Trainer):
        def __init__(self, parts: Parts) -> None:
            super().__init__(parts)
            trainers.append(self)

    with TemporaryDirectory() as folder, anyio.fail_after(30), pytest.MonkeyPatch.context() as patched:
        patched.setattr(import_module("sparring.learner.train"), "Trainer", Seen)
        run = run_of(world, Path(folder))
        for commit, how in ends:
            trainers.clear()
            stop = Stopping(kept, commit, trainers)
            crash = CrashingSegments(kept, commit, after=how == "after")
            try:
                if await train_async(run, store=stop if how == "stop" else crash):
                    break
            except Crash:
                pass
        assert await train_async(run, store=kept)
    return kept


def check_exactly_once(events: list[AnyEvent], run: Run) -> None:
    wrong = [line for verdict in exactly_once(events, run) for line in verdict.wrong]
    assert not wrong, wrong


def check_conserved(events: list[AnyEvent], run: Run) -> None:
    state = Coordinator(schedule_of(run))
    for event in events:
        state.apply(event)
    state.ledger.assert_balanced(state.budget.statistics())
    assert state.finished and not state.groups
    for policy, counts in state.budget.statistics().items():
        assert counts.outstanding == counts.in_flight == counts.ready == 0, "something is left over"
        places = STEPS * run.groups_per_step
        assert counts.trained + counts.dropped * run.deterministic == places, (policy, counts)


def check_fresh(events: list[AnyEvent], run: Run) -> None:
    """Invariant 1, from the replies alone."""
    admitted = {event.group: event for event in events if isinstance(event, Admitted)}
    made: dict[tuple[int, str], list[int]] = {}
    for event in standing(events):
        if isinstance(event, Acted) and event.sample is not None:
            group = admitted[event.group]
            player = run.sources[group.source].lineups[group.lineup].players[event.seat]
            if isinstance(player, str):
                versions = [version for version, _ in event.sample.versions]
                made.setdefault((event.group, player), []).extend(versions)
    for event in events:
        if isinstance(event, Planned):
            versions = [version for group in event.groups for version in made[group, event.policy]]
            assert all(event.step - run.max_staleness <= version <= event.step for version in versions)
            further = [version for group in event.reused for version in made[group, event.policy]]
            assert run.reuse is not None or not further
            assert all(event.step - version <= run.reuse.max_age for version in further if run.reuse)


def check_snapshots(kept: Recorded, run: Run) -> None:
    """Each is what the events before it come to, and leads with those after it to where all of them lead."""
    assert len(kept.all) >= len(run.named_policies), "each policy is checkpointed, at the latest at its end"
    verdict = decided_again(events_of(kept), snapshots=kept.all)
    assert verdict.holds and f" {len(kept.all)} snapshots" in verdict.figure, verdict
    whole = Coordinator(schedule_of(run))
    for event in events_of(kept):
        whole.apply(event)
    for segments, state in readable(kept.all):
        rest = Coordinator(schedule_of(run))
        rest.restore(state.unpacked())
        for blob in kept.read(segments):
            for event in decode_segment(blob):
                rest.apply(event)
        assert packed(rest.state()) == packed(whole.state()), differing(rest.state(), whole.state())


def journal(world: World, ends: Sequence[tuple[int, str]], backend: str) -> Recorded:
    return anyio.run(lived, world, ends, backend=backend)


def history(world: World, ends: Sequence[tuple[int, str]], backend: str) -> list[AnyEvent]:
    return events_of(journal(world, ends, backend))


def check(world: World, backend: str) -> None:
    kept, run = journal(world, world.ends, backend), run_of(world, Path("nowhere"))
    check_snapshots(kept, run)
    events = events_of(kept)
    check_exactly_once(events, run)
    check_conserved(events, run)
    check_fresh(events, run)
    verdicts = [decided_again(events)]
    if world.deterministic:
        verdicts += equal(events, history(world, (), backend))
    assert all(verdict.holds for verdict in verdicts), verdicts


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@examples(max_examples=50)
@given(world=worlds)
def test_a_random_run(backend: str, world: World) -> None:
    check(world, backend)


PLAIN = World(
    policies=2,
    staleness=1,
    batch=2,
    members=2,
    faults=0,
    sources=(0,),
    endless=True,
    deterministic=False,
    resumable=True,
    slots=3,
    seed=1,
    ends=((5, "after"),),
)


def first(events: list[AnyEvent], kind: type) -> int:
    return next(at for at, event in enumerate(events) if isinstance(event, kind))


def doubled(events: list[AnyEvent], kind: type) -> list[AnyEvent]:
    at = first(events, kind)
    return [*events[: at + 1], events[at], *events[at + 1 :]]


def lost(events: list[AnyEvent], kind: type) -> list[AnyEvent]:
    at = first(events, kind)
    return [*events[:at], *events[at + 1 :]]


@pytest.mark.parametrize("kind", [Acted, Affected, Ended, Evaluated, Planned, Stepped, Admitted])
def test_whatever_is_doubled_is_found(kind: type) -> None:
    events = history(PLAIN, PLAIN.ends, "asyncio")
    with pytest.raises(AssertionError):
        check_exactly_once(doubled(events, kind), run_of(PLAIN, Path("nowhere")))


@pytest.mark.parametrize("kind", [Ended, Evaluated, Planned, Stepped, Admitted])
def test_whatever_is_lost_is_found(kind: type) -> None:
    events = history(PLAIN, PLAIN.ends, "asyncio")
    with pytest.raises(AssertionError):
        check_exactly_once(lost(events, kind), run_of(PLAIN, Path("nowhere")))


def test_a_snapshot_that_forgets_something_is_found() -> None:
    """Each part of the first snapshot in place of the last one's, wherever these differ, is named."""
    kept, run = journal(PLAIN, PLAIN.ends, "asyncio"), run_of(PLAIN, Path("nowhere"))
    (_, first), *_, (segment, last) = readable(kept.all)
    parts = differing(first.unpacked(), last.unpacked())
    assert {"budget", "ledger", "tallies", "checkpoints"} <= set(parts)
    for part in parts:
        forgetful = msgspec.structs.replace(last.unpacked(), **{part: getattr(first.unpacked(), part)})
        kept.all[-1] = (segment, packed(msgspec.structs.replace(last, coordinator=msgspec.Raw(packed(forgetful)))))
        with pytest.raises(AssertionError, match=f"come to: {part}"):
            check_snapshots(kept, run)


def test_a_unit_that_is_left_over_is_found() -> None:
    events = history(PLAIN, (), "asyncio")
    last = max(at for at, event in enumerate(events) if isinstance(event, Stepped))
    with pytest.raises(AssertionError):
        check_conserved([*events[:last], *events[last + 1 :]], run_of(PLAIN, Path("nowhere")))


def test_a_stale_token_is_found() -> None:
    events = history(PLAIN, (), "asyncio")
    groups = next(e.groups for e in events if isinstance(e, Planned) and e.step == 2 and e.policy == "alice")
    stale = [
        msgspec.structs.replace(
            one, sample=msgspec.structs.replace(one.sample, versions=[(0, len(one.sample.tokens) // 4)])
        )
        if isinstance(one, Acted) and one.group in groups and one.sample is not None
        else one
        for one in events
    ]
    check_fresh(events, run_of(PLAIN, Path("nowhere")))
    with pytest.raises(AssertionError):
        check_fresh(stale, run_of(PLAIN, Path("nowhere")))
    with pytest.raises(AssertionError, match="older than"):
        check_conserved(stale, run_of(PLAIN, Path("nowhere")))
