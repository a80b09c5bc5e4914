"""Invariant 6: under --deterministic and k = 0 the asynchronous run is the sequential loop below, event for event."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sparring import Reuse
from sparring.agents import Agent, PolicyAgent
from sparring.backend import SamplingClient, TrainingClient
from sparring.environments import task_digest
from sparring.learner import Run, train_async
from sparring.learner.evaluate import evaluate
from sparring.learner.take import due_versions, take_step
from sparring.learner.taught import Taught
from sparring.rollout import Batch, MemorySegments, Slots, Trajectory, Unit, trajectories
from sparring.rollout.buffer import draw
from sparring.rollout.episode import Episode, EpisodePlan, run_episode
from sparring.rollout.events import Acted, Admitted, Affected, AnyEvent, Ended, Planned, canonical, encode
from tests.learner.worlds import duel_run, events_of

Models = Mapping[str, TrainingClient]
Clients = Mapping[str, SamplingClient]
SEATS = {"first": "alice", "second": "bob"}


def agents(run: Run, models: Models, clients: Clients, seats: Mapping[str, str]) -> dict[str, Agent]:
    sampling = {name: policy.sampling for name, policy in run.named_policies.items()}
    return {
        seat: PolicyAgent(clients[name], models[name].renderer, sampling[name], models[name].info.context_length)
        for seat, name in seats.items()
    }


async def play_group(
    run: Run, group: int, index: int, players: Mapping[str, Agent], step: int
) -> tuple[list[AnyEvent], Unit]:
    """One group, one episode after the other: its events, and what its seats did as one unit of nobody."""
    (source,) = run.sources
    task, names = source.tasks[index], list(SEATS.values())
    digest, pinned = task_digest(task), dict.fromkeys(names, step)
    admitted = Admitted(group=group, source=0, index=index, task=digest, lineup=0, trained=names, pinned=pinned)
    events: list[AnyEvent] = [admitted]
    made: list[Trajectory] = []
    for member in range(run.group_size):
        acted: list[Acted | Affected] = []

        async def emit(event: Acted | Affected, acted: list[Acted | Affected] = acted) -> None:
            acted.append(event)

        plan = EpisodePlan(
            environment=source.environment, task=task, task_digest=digest, agents=players, trained=frozenset(SEATS),
            seed=run.seed, group=group, member=member, deadline=None,
        )  # fmt: skip
        ended, _ = await run_episode(Episode(plan, emit), plan)
        events += [*acted, ended]
        made += trajectories([event for event in acted if isinstance(event, Acted)], ended, SEATS)
    episodes = tuple(event for event in events if isinstance(event, Ended))
    return events, Unit(policy="", group=group, source=0, trajectories=tuple(made), episodes=episodes)


async def sequential(run: Run) -> list[AnyEvent]:
    """Publish, evaluate, play the groups of a step with its version, train each policy on them; again."""
    backend, (held,) = run.backend.open(deterministic=True), run.named_held_out.values()
    models = {
        name: await backend.create_model(p.model, lora=p.lora, seed=run.seed) for name, p in run.named_policies.items()
    }
    first = {name: await model.sampler() for name, model in models.items()}
    order = list(range(20))
    Random(f"{run.seed}/0/0").shuffle(order)
    events: list[AnyEvent] = []
    durable: dict[str, Mapping[str, Any]] = {name: {} for name in models}
    used: dict[str, list[tuple[Unit, float]]] = {name: [] for name in models}
    for step in range(run.steps + 1):
        clients: dict[str, SamplingClient] = {}
        for name, model in models.items():
            await model.publish(step)
            clients[name] = await model.sampler(version=step)
        if step in due_versions(run):
            players = agents(run, models, clients, {"first": "alice"}) | agents(run, models, first, {"second": "bob"})
            events.append(await evaluate("held-out", step, held, players, Slots(1), seed=run.seed, deadline=None))
        if step == run.steps:
            break
        units: list[Unit] = []
        for group in range(step * run.groups_per_step, (step + 1) * run.groups_per_step):
            played, unit = await play_group(run, group, order[group], agents(run, models, clients, SEATS), step)
            events += played
            units.append(unit)
        for name, model in models.items():
            mine = [
                replace(u, policy=name, trajectories=tuple(t for t in u.trajectories if t.policy == name))
                for u in units
            ]
            again = further(run, name, step, used[name])
            groups, reused = [u.group for u in mine], [u.group for u in again]
            planned = Planned(policy=name, step=step, groups=groups, reused=reused)
            batch = Batch(planned=planned, units=tuple(mine), again=tuple(again))
            stepped = await take_step(run, name, batch, durable[name], Taught(model=model))
            durable[name] = stepped.durable
            used[name] += [(unit, stepped.weights.get(unit.group, 1.0)) for unit in [*mine, *again]]
            events += [planned, stepped]
    return events


def further(run: Run, policy: str, step: int, used: list[tuple[Unit, float]]) -> list[Unit]:
    """Rule 5 from a list of every use so far, with the weight that it left."""
    if run.reuse is None:
        return []
    uses, last = Counter(unit.group for unit, _ in used), {unit.group: (unit, weight) for unit, weight in used}
    most, age = run.reuse.max_uses, run.reuse.max_age
    may = [last[group] for group in sorted(uses) if uses[group] < most and step - oldest(last[group][0]) <= age]
    rng = Random(f"{run.seed}/reuse/{policy}/{step}")
    return [may[index][0] for index in draw([weight for _, weight in may], run.reuse.units, rng)]


def oldest(unit: Unit) -> int:
    contexts = [context for one in unit.trajectories for context in one.contexts]
    return min(int(context.versions[context.action_mask].min()) for context in contexts)


def by_length(unit: Unit, advantage: float) -> float:
    return unit.action_tokens * (0.1 + advantage)


@pytest.mark.parametrize(
    "reuse",
    [
        None,
        Reuse(units=1),
        Reuse(units=3, how="prioritized", max_uses=3, max_age=2),
        Reuse(units=2, how=by_length, max_uses=9, max_age=9),
    ],
)
async def test_the_asynchronous_run_equals_the_sequential_loop(tmp_path: Path, reuse: Reuse | None) -> None:
    run = replace(duel_run(tmp_path, steps=3 if reuse is None else 5), reuse=reuse)
    store = MemorySegments()
    await train_async(run, store=store)
    asynchronous = [encode(event) for event in canonical(events_of(store))[1:]]
    assert asynchronous == [encode(event) for event in canonical(await sequential(run))]
    reused = [event.reused for event in events_of(store) if isinstance(event, Planned)]
    assert any(reused) == (reuse is not None)
