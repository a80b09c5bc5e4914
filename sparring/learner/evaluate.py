"""Held-out play at one version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from sparring.agents import Agent
from sparring.environments import size, task_digest
from sparring.errors import SettingError
from sparring.learner.described import task_at
from sparring.learner.run import Episodes
from sparring.rollout import Slots
from sparring.rollout.episode import Episode, EpisodePlan, run_episode, seeded
from sparring.rollout.events import Acted, Affected, Ended, Evaluated
from sparring.rollout.play import transcript

_PRIORITY = -1
"""Held-out play takes slots before training play: the learner's curve should not lag behind it."""


async def evaluate(
    name: str,
    version: int,
    episodes: Episodes,
    agents: Mapping[str, Agent],
    slots: Slots,
    *,
    seed: int,
    deadline: float | None,
) -> Evaluated:
    """Play every task once. Waits for slots and for the players. A task without a verdict has the value None.

    The reward of a task is the mean return of the seats that learning policies play, of all seats where there is none:
    against a fixed opponent it is the policy's own, also in a zero-sum game. The seed of a task is the same at every
    version, so that versions differ by their weights alone.
    """
    players = episodes.lineups[0].players
    learners = [seat for seat in episodes.environment.seats if isinstance(players.get(seat, ""), str)]
    count = size(episodes.tasks)
    if count is None:
        raise SettingError(f"held-out {name!r} is endless: give a finite list of tasks")
    values: list[float | None] = [None] * count
    rewards: list[float | None] = [None] * count
    transcripts: list[list[tuple[str, str]]] = [[] for _ in range(count)]

    async def one(index: int) -> None:
        task = task_at(episodes, index, f"held-out {name!r}")
        plan = EpisodePlan(
            environment=episodes.environment,
            task=task,
            task_digest=task_digest(task),
            agents=agents,
            trained=frozenset(),
            seed=seeded(seed, "held-out", name),
            group=index,
            member=0,
            deadline=deadline,
        )
        async with slots.at((_PRIORITY, version, index)):
            ended, seats = await run_episode(Episode(plan, _unjournaled), plan)
        rewards[index] = _reward(ended, learners)
        headline = episodes.environment.headline
        values[index] = ended.metrics.get(headline) if headline else rewards[index]
        transcripts[index] = [line for seat in seats for fork in seat.family for line in transcript(fork)]

    async with anyio.create_task_group() as group:
        for index in range(count):
            group.start_soon(one, index)
    headline = episodes.environment.headline or "reward"
    return Evaluated(
        name=name, version=version, headline=headline, values=values, rewards=rewards, transcripts=transcripts
    )


def _reward(ended: Ended, learners: Sequence[str]) -> float | None:
    """The mean return of the learners' seats (of all, where there are none) that were judged, their forks included."""
    asked = [result for result in ended.results if not learners or result.seat in learners]
    returns = [result.value for result in asked if result.value is not None]
    return sum(returns) / len(returns) if returns else None


async def _unjournaled(event: Acted | Affected) -> None:
    """Held-out episodes are journaled as one result; one that is cut off is played again."""
