"""A run that was cut off goes on as if it had not been, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sparring import Episodes, Policy, Run, Seat, effect, environment, grpo
from sparring.backend import Adam, Lora, OptimOutput, ScriptedBackend
from sparring.backend.pending import PendingResult
from sparring.backend.scripted import ScriptedModel, babble
from sparring.errors import (
    RunChanged,
)
from sparring.learner import train_async
from sparring.rollout import MemorySegments
from sparring.rollout.events import (
    Acted,
    AnyEvent,
    Checkpointed,
    Ended,
    Evaluated,
    Restarted,
    Stepped,
    canonical,
    decode_segment,
)
from sparring.rollout.journal import Snapshot
from tests.learner.moods import WELL, run_of, trained
from tests.learner.slow_run import SlowModel
from tests.learner.worlds import Crash, CrashingSegments, duel_run, events_of


class KilledBy(MemorySegments):
    """A process that dies once an event of some kind is on the disk."""

    def __init__(self, kept: MemorySegments, fatal: Callable[[AnyEvent], bool]) -> None:
        super().__init__()
        self.blobs, self.kept = kept.blobs, kept.kept
        self.fatal = fatal

    def append(self, blob: bytes, snapshot: Snapshot | None = None) -> None:
        super().append(blob, snapshot)
        if any(self.fatal(event) for event in decode_segment(blob)):
            raise Crash


async def killed_by(run: Run, fatal: Callable[[AnyEvent], bool]) -> MemorySegments:
    kept = MemorySegments()
    with pytest.raises(Crash):
        await train_async(run, store=KilledBy(kept, fatal))
    return kept


async def stopped_at(run: Run, commit: int) -> MemorySegments:
    kept = MemorySegments()
    with pytest.raises(Crash):
        await train_async(run, store=CrashingSegments(kept, commit, after=True))
    return kept


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group_size": 4}, "group_size"),
        ({"groups_per_step": 1}, "groups_per_step"),
        ({"max_staleness": 3}, "max_staleness"),
        ({"seed": 5}, "seed"),
        ({"steps": 4}, "steps"),
        ({"policies": Policy("other", grpo())}, "policies"),
        ({"policies": {"renamed": Policy("model", grpo())}}, "policies"),
        ({"train": Episodes(WELL, range(21))}, "train/0"),
        ({"train": [Episodes(WELL, range(20))] * 2}, "train/1"),
    ],
)
async def test_changed_settings_are_refused_before_anything_else(
    tmp_path: Path, change: Mapping[str, Any], named: str
) -> None:
    run = run_of(tmp_path, WELL)
    kept = await stopped_at(run, 9)
    before = list(kept.blobs)
    with pytest.raises(RunChanged, match=named):
        await train_async(replace(run, **change), store=kept)
    assert kept.blobs == before


@pytest.mark.parametrize(
    "change", [{"max_concurrent": 1}, {"episode_deadline": 5.0}, {"stall_deadline": 50.0}, {"max_faults": 0.9}]
)
async def test_settings_that_decide_nothing_may_change(tmp_path: Path, change: Mapping[str, Any]) -> None:
    run = run_of(tmp_path, WELL)
    await trained(replace(run, **change), await stopped_at(run, 9))


class Fickle:
    """Tasks that are other ones every time they are asked for."""

    def __init__(self) -> None:
        self.rng = Random(0)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < 20:
            raise IndexError(index)
        return self.rng.randrange(10**9)


async def test_a_task_that_is_another_the_next_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RunChanged, match=r"task \d+ of train source 0 \(moody\) is not the one that group \d+ was admitted"
    ):
        await train_async(run_of(tmp_path, WELL, train=Episodes(WELL, Fickle())), store=MemorySegments())


async def test_a_task_that_an_environment_changes_is_found(tmp_path: Path) -> None:
    @environment
    async def vandal(task: list[int], only: Seat) -> float:
        await only.ask(f"{task}")
        task.append(1)
        return 1.0

    run = run_of(tmp_path, vandal, train=Episodes(vandal, [[number] for number in range(20)]), max_concurrent=1)
    with pytest.raises(RunChanged, match="an environment leaves its task as it is"):
        await train_async(run, store=MemorySegments())


async def a_while() -> None:
    await anyio.sleep(0.02)


@environment(resumable=False)
async def live(task: int, only: Seat) -> float:
    heard = 0
    for turn in range(3):
        heard += len((await only.ask(f"{turn}")).text)
        await effect(a_while)
    return float(heard)


async def test_an_episode_that_holds_something_live_starts_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, live, deterministic=True)
    undisturbed = canonical(await trained(run))
    kept = await killed_by(run, lambda event: isinstance(event, Acted) and (event.group, event.turn) == (1, 1))
    again = {(event.group, event.member) for event in events_of(kept) if isinstance(event, Acted)}
    again -= {(event.group, event.member) for event in events_of(kept) if isinstance(event, Ended)}
    events = await trained(run, kept)
    restarted = [(event.group, event.member) for event in events if isinstance(event, Restarted)]
    assert restarted and sorted(restarted) == sorted(again)
    assert canonical(events) == undisturbed


@pytest.mark.parametrize("policy", ["alice", "bob"])
async def test_the_last_checkpoint_is_written_by_whoever_goes_on(tmp_path: Path, policy: str) -> None:
    """Killed between the last step and its checkpoint: the weights that the run was for must still come to the disk."""

    def fatal(event: AnyEvent) -> bool:
        return isinstance(event, Stepped) and (event.policy, event.step) == (policy, 2)

    run = duel_run(tmp_path)
    kept = await killed_by(run, fatal)
    assert Checkpointed(policy=policy, step=3) not in events_of(kept)
    assert await train_async(run, store=kept)
    for name in ("alice", "bob"):
        assert events_of(kept).count(Checkpointed(policy=name, step=3)) == 1
        assert (run.path / "checkpoints" / name / "3" / "weights.json").exists()


def checkpoints(run: Run) -> list[str]:
    """Everything that lies where checkpoints do."""
    folder = run.path / "checkpoints"
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


async def test_what_a_process_that_died_left_of_its_checkpoints_goes(tmp_path: Path) -> None:
    """Killed after the last checkpoint was journaled: the older ones, and what was half written or half deleted."""

    def fatal(event: AnyEvent) -> bool:
        return isinstance(event, Checkpointed) and event.step == 6

    undisturbed = replace(duel_run(tmp_path / "undisturbed"), steps=6)
    assert await train_async(undisturbed, store=MemorySegments())
    run = replace(duel_run(tmp_path / "run"), steps=6)
    kept = await killed_by(run, fatal)
    left = run.path / "checkpoints" / "alice"
    for name in (".4.new-0123abcd", ".2.pruned"):
        (left / name).mkdir()
        (left / name / "weights.json").write_text("")
    assert await train_async(run, store=kept)
    assert checkpoints(run) == checkpoints(undisturbed)
    assert any(name.endswith("/6") for name in checkpoints(run)) and "alice/2" not in checkpoints(run)


async def forever() -> None:
    await anyio.sleep_forever()


HELD_UP = [forever]
"""What held-out play waits for, as long as there is something."""


@environment
async def held_up(task: int, first: Seat, second: Seat) -> dict[Seat, float]:
    one = await first.ask(f"{task}")
    for effect_ in HELD_UP:
        await effect(effect_, timeout=1000)
    return {first: float(len(one.text)), second: float(len((await second.ask(f"{one}")).text))}


@pytest.mark.parametrize("k", [0, 1])
async def test_evaluations_that_lag_behind_are_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    """None was made before the run was killed: each needs its own version, long after newer ones were made."""
    plain = duel_run(tmp_path / "run", k=k, steps=6)
    assert isinstance(plain.held_out, Episodes)
    run = replace(plain, held_out=replace(plain.held_out, environment=held_up), evaluate_every=1)
    kept = await killed_by(run, lambda event: isinstance(event, Stepped) and event.step == 4)
    monkeypatch.setattr("tests.learner.test_going_on.HELD_UP", [])
    undisturbed = MemorySegments()
    assert await train_async(replace(run, folder=tmp_path / "undisturbed"), store=undisturbed)
    assert not [event for event in events_of(kept) if isinstance(event, Evaluated)]
    assert await train_async(run, store=kept)
    assert canonical(events_of(kept)) == canonical(events_of(undisturbed))


class UnevenModels:
    """Bob's steps take long."""

    def open(self, *, deterministic: bool) -> ScriptedBackend:
        return UnevenBackend()


class UnevenBackend(ScriptedBackend):
    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        return SlowModel(model, seed, 0.1 if model == "two" else 0.0)


@pytest.mark.parametrize("k", [1, 2])
async def test_a_policy_that_is_ahead_keeps_what_the_other_is_to_play_with(tmp_path: Path, k: int) -> None:
    """Groups that wait for bob's version are pinned to one of alice's that is no longer her newest."""
    run = replace(duel_run(tmp_path / "run", k=k, steps=4), backend=UnevenModels())
    kept = await killed_by(run, lambda event: isinstance(event, Stepped) and (event.policy, event.step) == ("alice", k))
    assert not [event for event in events_of(kept) if isinstance(event, Stepped) and event.policy == "bob"]
    assert await train_async(run, store=kept)
    undisturbed = MemorySegments()
    assert await train_async(replace(run, folder=tmp_path / "undisturbed"), store=undisturbed)
    assert canonical(events_of(kept)) == canonical(events_of(undisturbed))


class CountedModels:
    """Scripted models that write down what they do."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def open(self, *, deterministic: bool) -> ScriptedBackend:
        return CountedBackend(self.log)


class CountedBackend(ScriptedBackend):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        return CountedModel(model, seed, self.log)


class CountedModel(ScriptedModel):
    def __init__(self, model: str, seed: int, log: list[str]) -> None:
        super().__init__(model, seed, babble)
        self.log = log

    def optim_step(self, adam: Adam) -> PendingResult[OptimOutput]:
        self.log.append("step")
        return super().optim_step(adam)

    def load_state(self, path: str, *, optimizer: bool = True) -> PendingResult[None]:
        self.log.append(path)
        return super().load_state(path, optimizer=optimizer)

    def publish(self, version: int) -> PendingResult[None]:
        self.log.append("publish")
        return super().publish(version)


@pytest.mark.parametrize("k", [0, 2])
async def test_a_resume_starts_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """In a relative folder too: what lies elsewhere is not found, and everything is done again."""
    monkeypatch.chdir(tmp_path)
    first, second = CountedModels(), CountedModels()
    run = replace(duel_run(Path("runs"), steps=9, k=k), backend=first)
    kept = await killed_by(run, lambda event: isinstance(event, Stepped) and event.step == 6)
    made = len([event for event in events_of(kept) if isinstance(event, Stepped)])
    assert await train_async(replace(run, backend=second), store=kept)
    loaded = [Path(line) for line in second.log if "/" in line]
    assert len(loaded) == 2 and all(path.is_relative_to(tmp_path / "runs") for path in loaded)
    again = second.log.count("step") - (18 - made)
    assert again <= 2 * (2 + k), f"{again} steps were done again"
