"""A policy that collapses falls back: to which version, how often, and that a run which was cut off there ends in the same."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import anyio
import msgspec
import pytest

from sparring import Critic, Episodes, Gauge, Policy, Run, Seat, environment, grpo, ppo
from sparring.backend import Lora, SamplingClient, ScriptedBackend
from sparring.backend.pending import PendingResult
from sparring.backend.scripted import ScriptedModel, ScriptedSampler, babble
from sparring.errors import Collapsed, ReplayDiverged, SettingError
from sparring.learner import train, train_async
from sparring.learner.continuity import decided_again, exactly_once, trained_again
from sparring.learner.display import Display
from sparring.learner.history import history, read_events
from sparring.learner.replay import compare, replay
from sparring.rollout import MemorySegments
from sparring.rollout.events import AnyEvent, Checkpointed, Installed, Stepped, canonical
from tests.learner.test_going_on import KilledBy
from tests.learner.worlds import Crash, CrashingSegments, crash_at_every_commit, duel_run, events_of

Sick = Mapping[str, Sequence[int]]


class SickModels:
    """Scripted models of which some versions say the same to everything. `published` are each version's weights."""

    def __init__(self, sick: Sick) -> None:
        self.sick = sick
        self.published: dict[int, bytes] = {}

    def open(self, *, deterministic: bool) -> ScriptedBackend:
        return SickBackend(self)


class SickBackend(ScriptedBackend):
    def __init__(self, models: SickModels) -> None:
        super().__init__()
        self.models = models

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        return SickModel(model, seed, self.models)


class SickModel(ScriptedModel):
    def __init__(self, model: str, seed: int, models: SickModels) -> None:
        super().__init__(model, seed, babble)
        self.models, self.sick = models, models.sick.get(model, ())

    def publish(self, version: int) -> PendingResult[None]:
        self.models.published[version] = self._weights
        return super().publish(version)

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        if version not in self.sick:
            return await super().sampler(kind, version=version)
        assert version is not None
        return ScriptedSampler(self._published[version], version, same)


def same(prompt: str, rng: Random) -> str:
    return "a"


@environment
async def talk(task: int, only: Seat) -> float:
    return float((await only.ask(f"{task}")).text < "d")


DISTINCT = Gauge(figure="distinct", below=0.4, steps=2, fall_back=2)


def talk_run(
    folder: Path, sick: Sequence[int] = (4, 5), gauges: Sequence[Gauge] = (DISTINCT,), *, k: int = 0, **fields: Any
) -> Run:
    """Eight steps, a checkpoint at every second version: versions 4 and 5 say the same to everything."""
    run = Run(
        name="talk",
        train=Episodes(talk, range(50)),
        policies={"alice": Policy("one", grpo())},
        steps=8,
        groups_per_step=2,
        group_size=2,
        max_staleness=k,
        evaluate_every=2,
        backend=SickModels({"one": sick}),
        deterministic=True,
        gauges=gauges,
        folder=folder,
    )
    return replace(run, **fields)


def published(run: Run) -> dict[int, bytes]:
    assert isinstance(run.backend, SickModels)
    return run.backend.published


async def trained(run: Run, store: MemorySegments | None = None) -> list[AnyEvent]:
    store = store or MemorySegments()
    with anyio.fail_after(20):
        assert await train_async(run, store=store)
    comparison = compare(events_of(store), run, store.snapshots())
    assert comparison.agrees, comparison.lines
    return events_of(store)


def steps_of(events: Sequence[AnyEvent], policy: str = "alice") -> list[Stepped]:
    return [one for one in events if isinstance(one, Stepped) and one.policy == policy]


def falls(events: Sequence[AnyEvent], policy: str = "alice") -> list[tuple[int, int]]:
    """(the version that went on, the one that it was once more) of each."""
    return [(one.step + 1, one.fell_back.to) for one in steps_of(events, policy) if one.fell_back is not None]


def on_disk(run: Run, policy: str = "alice") -> set[int]:
    return {int(one.name) for one in (run.path / "checkpoints" / policy).iterdir()}


async def test_a_policy_that_collapses_goes_on_from_before(tmp_path: Path) -> None:
    """Versions 4 and 5 played steps 4 and 5, so that version 4, of which there is a checkpoint too, is no way back."""
    run = talk_run(tmp_path)
    events = await trained(run)
    assert falls(events) == [(6, 2)]
    steps, weights = steps_of(events), published(run)
    fell_back = steps[5].fell_back
    assert fell_back is not None and fell_back.digest == steps[1].digest == weights[2].hex()
    assert weights[6] == weights[2] and weights[7] not in (weights[3], weights[6])
    assert fell_back.why == "distinct was 0.25, 0.25, below 0.4, in 2 steps in a row"
    assert [one.version for one in events if isinstance(one, Installed)] == list(range(1, 9)), "versions never go back"
    assert [one.step for one in events if isinstance(one, Checkpointed)] == [2, 4, 6, 8]
    assert all(verdict.holds for verdict in exactly_once(events, run))
    assert on_disk(run) == {2, 8}, "what it fell back to is kept for whoever does the steps again"


async def test_a_run_without_checkpoints_in_between_goes_back_to_what_it_began_with(tmp_path: Path) -> None:
    run = talk_run(tmp_path, evaluate_every=50)
    events = await trained(run)
    assert falls(events) == [(6, 0)] and published(run)[6] == published(run)[0]
    checkpoints = [one.step for one in events if isinstance(one, Checkpointed)]
    assert checkpoints == [6, 8], "the version that goes on is checkpointed, whether it is due or not"
    plain = talk_run(tmp_path / "plain", gauges=[replace(DISTINCT, fall_back=0)], sick=(), evaluate_every=50)
    await trained(plain)
    assert on_disk(run) == {0, 8} and on_disk(plain) == {8}, "who never falls back needs no file of version 0"


async def test_it_falls_back_so_often_and_then_the_run_stops(tmp_path: Path) -> None:
    """From 5 on to 4; from 8 on to the version that went on then; from 10 on, which is that one again, to it once more."""
    run = talk_run(tmp_path, (5, 6, 8, 9, 10, 11), steps=14, evaluate_every=4)
    store = MemorySegments()
    with pytest.raises(
        Collapsed, match=r"step 11 of 'alice': distinct .* in a row; it fell back 2 times before: look at"
    ):
        await train_async(run, store=store)
    assert falls(events_of(store)) == [(7, 4), (10, 7)] and len(steps_of(events_of(store))) == 12
    assert compare(events_of(store)).agrees
    more = talk_run(
        tmp_path / "more", (5, 6, 8, 9, 10, 11), [replace(DISTINCT, fall_back=3)], steps=14, evaluate_every=4
    )
    events = await trained(more)
    assert falls(events) == [(7, 4), (10, 7), (12, 7)]
    weights = published(more)
    assert weights[4] == weights[7] == weights[10] == weights[12] != weights[13]
    events = await trained(run, store)
    assert len(falls(events)) == 2, "a run that is resumed counts the steps anew"


async def test_a_run_that_stopped_falls_back_no_more_than_it_may(tmp_path: Path) -> None:
    """The number of times is the journal's: a resume does not forget it. A gauge that allows more is obeyed, and goes back to
    before all that was out of bounds since step 8: version 6 is no longer there."""
    once = [replace(DISTINCT, fall_back=1)]
    for resumed in (0, 1):
        run, store = talk_run(tmp_path / f"{resumed}", (4, 5, *range(8, 20)), once, steps=16), MemorySegments()
        for more in range(1 + resumed):
            with pytest.raises(Collapsed, match=r"was 0\.25, 0\.25, .*; it fell back 1 time before"):
                await train_async(run, store=store)
            assert len(steps_of(events_of(store))) == 10 + 2 * more, "stopped again by as many steps"
        with pytest.raises(Collapsed, match="it fell back 2 times before"):
            await train_async(replace(run, gauges=[DISTINCT]), store=store)
        assert falls(events_of(store)) == [(6, 2), (12 + 2 * resumed, 2)]


async def test_steps_that_other_versions_played_do_not_count_against_it(tmp_path: Path) -> None:
    """Version 4 plays in step 6, where versions up to two older ones do: what is older than 4 is the way back. Versions 6 and
    7, which were given up, play in steps 8 and 9."""
    run = talk_run(tmp_path, (4, 5, 6, 7), k=2, evaluate_every=1, steps=12)
    events = await trained(run)
    assert falls(events) == [(8, 3)]
    assert [one.metrics["distinct"] < 0.4 for one in steps_of(events)] == [6 <= step < 10 for step in range(12)]
    assert [len(one.broken) for one in steps_of(events)] == [0] * 6 + [1] + [0] * 5


async def test_where_nothing_is_older_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(Collapsed, match="it cannot fall back: no checkpoint is older than what played in step 0: look"):
        await train_async(talk_run(tmp_path / "first", (0, 1)), store=MemorySegments())
    plain, store = talk_run(tmp_path / "later", evaluate_every=50, gauges=()), MemorySegments()
    with suppress(Crash):
        await train_async(plain, store=KilledBy(store, lambda one: isinstance(one, Stepped) and one.step == 3))
    with pytest.raises(Collapsed, match="no checkpoint is older than what played in step 4"):
        await train_async(replace(plain, gauges=[DISTINCT]), store=store)
    assert await train_async(plain, store=store), "nothing of version 0 was written when the run began without"


async def test_each_policy_falls_back_alone(tmp_path: Path) -> None:
    bob = [
        replace(DISTINCT, below=0.3),
        replace(DISTINCT, policy="alice", above=-1.0, below=None, fall_back=0, steps=9),
    ]
    run = replace(duel_run(tmp_path, steps=8), backend=SickModels({"two": (3, 4)}), gauges=bob)
    events = await trained(run)
    assert falls(events, "bob") == [(5, 2)] and falls(events) == []
    alone = await trained(replace(duel_run(tmp_path / "alone", steps=5), backend=SickModels({"two": (3, 4)})))
    one, other = ([step.digest for step in steps_of(told)[:5]] for told in (events, alone))
    assert one == other, "what alice learned until then does not depend on it"


async def test_the_critic_goes_back_too(tmp_path: Path) -> None:
    run = talk_run(
        tmp_path, policies={"alice": Policy("one", ppo(minibatches=2, critic=Critic()))}, steps=7, evaluate_every=50
    )
    events = await trained(run)
    (fell_back,) = [one.fell_back for one in steps_of(events) if one.fell_back is not None]
    assert fell_back.to == 0 and fell_back.critic not in ("", *(one.critic for one in steps_of(events)))
    read = json.loads((run.path / "checkpoints" / "alice" / "0" / "critic" / "weights.json").read_text())
    assert read["weights"] == fell_back.critic


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("sick", "k", "every", "to"), [((2, 3), 0, 1, 1), ((1, 2), 1, 50, 0)])
async def test_a_crash_at_any_commit_ends_in_the_same_history(
    tmp_path: Path, sick: Sequence[int], k: int, every: int, to: int, after: bool
) -> None:
    def run_in(folder: Path) -> Run:
        return talk_run(folder, sick, k=k, evaluate_every=every, steps=5)

    assert falls(await trained(run_in(tmp_path / "first"))) == [(4, to)]
    assert await crash_at_every_commit(run_in, tmp_path, after=after, every=3) > 15


def stepped_at(step: int) -> Any:
    return lambda event: isinstance(event, Stepped) and event.step == step


async def test_a_run_that_is_killed_again_and_again_falls_back_once(tmp_path: Path) -> None:
    """In the step that falls back, before and after its version is checkpointed, and in those around it."""
    undisturbed = canonical(await trained(talk_run(tmp_path / "undisturbed", k=1)))
    run, kept = talk_run(tmp_path / "killed", k=1), MemorySegments()
    for step in (4, 5, 6, 7):
        with pytest.raises(Crash):
            await train_async(run, store=KilledBy(kept, stepped_at(step)))
        assert on_disk(run) >= {2}, "what it may fall back to, or did"
    with pytest.raises(Crash):
        fatal = KilledBy(kept, lambda event: isinstance(event, Checkpointed) and event.step == 8)
        await train_async(run, store=fatal)
    assert canonical(await trained(run, kept)) == undisturbed


async def test_without_a_pinned_schedule_a_run_that_is_killed_goes_on_from_where_it_fell_back(tmp_path: Path) -> None:
    run = talk_run(tmp_path, (4, 5, 6), k=1, deterministic=False)
    kept, finished = MemorySegments(), False
    while not finished:
        with anyio.fail_after(20), suppress(Crash):
            finished = await train_async(run, store=CrashingSegments(kept, 4, after=len(kept.blobs) % 2 == 0))
    events = events_of(kept)
    verdicts = [*exactly_once(events, run), decided_again(events, snapshots=kept.snapshots())]
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert len(falls(events)) >= 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_its_weights_are_trained_again_from_the_journal(tmp_path: Path, deterministic: bool) -> None:
    run = talk_run(tmp_path, deterministic=deterministic)
    assert train(run)
    verdict = anyio.run(trained_again, run)
    assert verdict.holds and verdict.figure == "8 steps of 1 policies", verdict
    assert replay(run.path).agrees and falls(list(read_events(run.path))) == [(6, 2)]
    shutil.copy(run.path / "checkpoints/alice/8/weights.json", run.path / "checkpoints/alice/2/weights.json")
    with pytest.raises(
        ReplayDiverged, match=r"checkpoints/alice/2', to which 'alice' fell back after step 5, holds other"
    ):
        anyio.run(trained_again, run)
    shutil.rmtree(run.path / "checkpoints/alice/2")
    with pytest.raises(SettingError, match="No such file"):
        anyio.run(trained_again, run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"to": 3}, "Stepped 6 cannot follow what is before it: step 5 of alice cannot go back to version 3"),
        ({"to": 8}, "step 5 of alice cannot go back to version 8"),
        ({"to": 4}, "step 5 of 'alice': it fell back to other weights than those of version 4"),
        ({"digest": "0" * 64}, "step 5 of 'alice': it fell back to other weights than those of version 2"),
        ({"critic": "0" * 64}, "step 5 of 'alice': it fell back to other weights than those of version 2"),
    ],
)
async def test_a_replay_finds_what_cannot_be(tmp_path: Path, change: Mapping[str, Any], said: str) -> None:
    events = await trained(talk_run(tmp_path))
    place = next(at for at, one in enumerate(events) if isinstance(one, Stepped) and one.fell_back is not None)
    stepped = events[place]
    assert isinstance(stepped, Stepped) and stepped.fell_back is not None
    events[place] = msgspec.structs.replace(stepped, fell_back=msgspec.structs.replace(stepped.fell_back, **change))
    assert any(said in one for one in compare(events).differences)


def test_display_report_and_metrics_tell_it(tmp_path: Path) -> None:
    run, stream = talk_run(tmp_path, steps=7), io.StringIO()
    assert train(run, watchers=[Display(stream)])
    why = "distinct was 0.25, 0.25, below 0.4, in 2 steps in a row"
    text = f"step 5: {why}; 'alice' fell back: version 6 is version 2 once more"
    assert stream.getvalue().splitlines().count(f"fell back: {text}") == 1
    assert [(one.kind, one.text) for one in history(read_events(run.path)).notes] == [("fell back", text)]
    assert "version 6 is version 2 once more" in (run.path / "report.html").read_text()
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    told = {one["version"]: one["engine"].get("fell_back_to") for one in lines if one["kind"] == "step"}
    assert told == {version: 2.0 if version == 6 else None for version in range(1, 8)}
