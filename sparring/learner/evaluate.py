"""Held-out play at one version."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from sparring.agents import Agent
from sparring.environments import Seat, size, task_digest
from sparring.errors import SettingError
from sparring.learner.described import task_at
from sparring.learner.run import Episodes
from sparring.rollout import Slots
from sparring.rollout.coordinator import ENDED_IT
from sparring.rollout.culprit import Page
from sparring.rollout.episode import Emit, Episode, EpisodePlan, clean, run_episode, seeded
from sparring.rollout.events import QUARANTINED, Acted, Affected, Ended, Evaluated
from sparring.rollout.play import transcript

_PRIORITY = -1
"""Held-out play takes slots before training play: the learner's curve should not lag behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What came of one task."""

    value: float | None = None
    reward: float | None = None
    transcript: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


async def evaluate(
    name: str,
    version: int,
    episodes: Episodes,
    agents: Mapping[str, Agent],
    slots: Slots,
    *,
    seed: int,
    deadline: float | None,
    emit: Emit | None = None,
    playing: dict[str, Episode] | None = None,
    page: Page | None = None,
    quarantined: Collection[int] = (),
) -> Evaluated:
    """Play every task once. Waits for slots and for the players. A task without a verdict has the value None, and its
    transcript ends with the reason.

    The reward of a task is the mean return of the seats that learning policies play, of all seats where there is none:
    against a fixed opponent it is the policy's own, also in a zero-sum game. The seed of a task is the same at every
    version, so that versions differ by their weights alone. Nothing ends for the time it takes where there is no
    `deadline`. `emit` is told of every reply; a held-out episode is journaled as its result, and played again if it was
    cut off, or if it failed and `episodes.faults` has a retry left. `playing` holds the episodes under way, by name.
    `page` is told whose code runs; tasks that are `quarantined` are not played, and have no verdict.
    """
    players = episodes.lineups[0].players
    where = f"held-out {name!r}"
    learners = [seat for seat in episodes.environment.seats if isinstance(players.get(seat, ""), str)]
    count = size(episodes.tasks)
    if count is None:
        raise SettingError(f"{where} is endless: give a finite list of tasks")
    judged = [_Judged(transcript=[("fault", f"{QUARANTINED}: {ENDED_IT}")])] * count

    async def one(index: int) -> None:
        async with slots.at((_PRIORITY, version, index)):
            task = task_at(episodes, index, where)
            plan = _plan(episodes, task, agents, index, seed=seeded(seed, "held-out", name), deadline=deadline)
            plan = replace(plan, page=page or Page(), held_out=(name, version))
            retries = episodes.faults.retries
            ended, seats = await _run(f"{where}, task {index},", plan, emit or _nobody_told, playing, retries)
        judged[index] = _judged(ended, seats, learners, episodes.environment.headline)

    async with anyio.create_task_group() as group:
        for index in sorted(set(range(count)).difference(quarantined)):
            group.start_soon(one, index)
    return _evaluated(name, version, episodes.environment.headline or "reward", judged)


def _evaluated(name: str, version: int, headline: str, judged: Sequence[_Judged]) -> Evaluated:
    return Evaluated(
        name=name,
        version=version,
        headline=headline,
        values=[one.value for one in judged],
        rewards=[one.reward for one in judged],
        transcripts=[one.transcript for one in judged],
    )


async def _run(
    called: str, plan: EpisodePlan, emit: Emit, playing: dict[str, Episode] | None, retries: int
) -> tuple[Ended, list[Seat]]:
    """The last attempt: the first that does not fail, or that after so many `retries`."""
    under_way = {} if playing is None else playing
    episode = under_way[called] = Episode(plan, emit)
    try:
        ended, seats = await run_episode(episode, plan)
    finally:
        del under_way[called]
    return await _run(called, plan, emit, playing, retries - 1) if ended.fault and retries else (ended, seats)


def _plan(
    episodes: Episodes, task: Any, agents: Mapping[str, Agent], index: int, *, seed: int, deadline: float | None
) -> EpisodePlan:
    return EpisodePlan(
        environment=episodes.environment,
        task=task,
        task_digest=task_digest(task),
        agents=agents,
        trained=frozenset(),
        seed=seed,
        group=index,
        member=0,
        deadline=deadline,
        clock=deadline is not None,
    )


def _judged(ended: Ended, seats: Sequence[Seat], learners: Sequence[str], headline: str) -> _Judged:
    reward = _reward(ended, learners)
    lines = [(who, clean(text)) for seat in seats for fork in seat.family for who, text in transcript(fork)]
    return _Judged(
        value=ended.metrics.get(headline) if headline else reward,
        reward=reward,
        transcript=lines + _reasons(ended),
    )


def _reward(ended: Ended, learners: Sequence[str]) -> float | None:
    """The mean return of the learners' seats (of all, where there are none) that were judged, their forks included."""
    asked = [result for result in ended.results if not learners or result.seat in learners]
    returns = [result.value for result in asked if result.value is not None]
    return sum(returns) / len(returns) if returns else None


def _reasons(ended: Ended) -> list[tuple[str, str]]:
    """Why an episode has no verdict, as lines of its transcript."""
    if ended.fault:
        return [("fault", f"{ended.fault}: {ended.detail.strip().splitlines()[-1] if ended.detail.strip() else ''}")]
    return [("unjudged", f"{result.seat}: {result.unjudged}") for result in ended.results if result.unjudged]


async def _nobody_told(event: Acted | Affected) -> None:
    """The journal gets the result alone."""
