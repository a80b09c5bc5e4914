"""Invariant 6: under --deterministic and k = 0 the asynchronous run is the sequential loop below, event for event."""

from pathlib import Path
from random import Random

from sparring.agents import PolicyAgent
from sparring.environments import task_digest
from sparring.learner import Run, train_async
from sparring.learner.evaluate import evaluate
from sparring.learner.take import due_versions, take_step
from sparring.rollout import Batch, MemorySegments, Slots, Unit, trajectories
from sparring.rollout.episode import Episode, EpisodePlan, run_episode
from sparring.rollout.events import Acted, Admitted, Affected, AnyEvent, Planned, canonical, encode
from tests.learner.worlds import duel_run, events_of


async def sequential(run: Run) -> list[AnyEvent]:
    """One thing after the other: play the groups of a step with its version, train each policy on them, publish, evaluate."""
    backend = run.backend.open(deterministic=True)
    models = {
        name: await backend.create_model(p.model, lora=p.lora, seed=run.seed) for name, p in run.named_policies.items()
    }
    first = {name: await model.sampler() for name, model in models.items()}
    (source,), (held,) = run.sources, run.named_held_out.values()
    seats = {"first": "alice", "second": "bob"}
    order = list(range(len(source.tasks)))
    Random(f"{run.seed}/0/0").shuffle(order)
    events: list[AnyEvent] = []
    durable: dict[str, dict[str, object]] = {name: {} for name in models}

    def agents(clients: dict, players: dict) -> dict:  # type: ignore[type-arg]
        samplings = {name: p.sampling for name, p in run.named_policies.items()}
        return {
            s: PolicyAgent(clients[p], models[p].renderer, samplings[p], models[p].info.context_length)
            for s, p in players.items()
        }

    for step in range(run.steps + 1):
        clients = {
            name: await model.sampler(version=step) for name, model in models.items() if not await model.publish(step)
        }
        if step in due_versions(run):
            held_agents = agents(clients, {"first": "alice"}) | agents(first, {"second": "bob"})
            events.append(await evaluate("held-out", step, held, held_agents, Slots(1), seed=run.seed, deadline=None))
        if step == run.steps:
            break
        units: dict[str, list[Unit]] = {name: [] for name in models}
        for group in range(step * run.groups_per_step, (step + 1) * run.groups_per_step):
            task, pinned = source.tasks[order[group]], dict.fromkeys(models, step)
            events.append(
                Admitted(
                    group=group,
                    source=0,
                    index=order[group],
                    task=task_digest(task),
                    lineup=0,
                    trained=[*models],
                    pinned=pinned,
                )
            )
            made, finished = [], []
            for member in range(run.group_size):
                acted: list[Acted | Affected] = []

                async def emit(event: Acted | Affected, acted: list[Acted | Affected] = acted) -> None:
                    acted.append(event)

                plan = EpisodePlan(
                    environment=source.environment, task=task, task_digest=task_digest(task), agents=agents(clients, seats),
                    trained=frozenset(seats), seed=run.seed, group=group, member=member, deadline=None,
                )  # fmt: skip
                ended, _ = await run_episode(Episode(plan, emit), plan)
                events += [*acted, ended]
                finished.append(ended)
                made += trajectories([event for event in acted if isinstance(event, Acted)], ended, seats)
            for name in models:
                mine = tuple(trajectory for trajectory in made if trajectory.policy == name)
                units[name].append(
                    Unit(policy=name, group=group, source=0, trajectories=mine, episodes=tuple(finished))
                )
        for name, model in models.items():
            planned = Planned(policy=name, step=step, groups=[unit.group for unit in units[name]])
            batch = Batch(planned=planned, units=tuple(units[name]))
            stepped = await take_step(run, name, batch, durable[name], model)
            durable[name] = stepped.durable
            events += [planned, stepped]
    return events


async def test_the_asynchronous_run_equals_the_sequential_loop(tmp_path: Path) -> None:
    run = duel_run(tmp_path)
    store = MemorySegments()
    await train_async(run, store=store)
    asynchronous = [encode(event) for event in canonical(events_of(store))[1:]]
    assert asynchronous == [encode(event) for event in canonical(await sequential(run))]
