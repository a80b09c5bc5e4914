"""Invariant 6: under --deterministic and k = 0 the asynchronous run is the sequential loop below, event for event."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from sparring.agents import Agent, PolicyAgent
from sparring.backend import SamplingClient, TrainingClient
from sparring.environments import task_digest
from sparring.learner import Run, train_async
from sparring.learner.evaluate import evaluate
from sparring.learner.take import due_versions, take_step
from sparring.rollout import Batch, MemorySegments, Slots, Trajectory, Unit, trajectories
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
            planned = Planned(policy=name, step=step, groups=[unit.group for unit in units])
            mine = [
                replace(u, policy=name, trajectories=tuple(t for t in u.trajectories if t.policy == name))
                for u in units
            ]
            stepped = await take_step(run, name, Batch(planned=planned, units=tuple(mine)), durable[name], model)
            durable[name] = stepped.durable
            events += [planned, stepped]
    return events


async def test_the_asynchronous_run_equals_the_sequential_loop(tmp_path: Path) -> None:
    run = duel_run(tmp_path)
    store = MemorySegments()
    await train_async(run, store=store)
    asynchronous = [encode(event) for event in canonical(events_of(store))[1:]]
    assert asynchronous == [encode(event) for event in canonical(await sequential(run))]
