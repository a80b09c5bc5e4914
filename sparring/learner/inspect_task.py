"""Held-out episodes as a task of inspect-ai (https://inspect.aisi.org.uk), for any model that it knows, with its logs.

Needs the extra `inspect`. A file for `inspect eval FILE --model MODEL`:

    from addition import run
    from inspect_ai import task
    from sparring.learner.inspect_task import inspect_task

    @task
    def addition():
        return inspect_task(run.held_out, sampling=run.policies.sampling)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import msgspec

from sparring.agents import Player, Sampling
from sparring.environments import size
from sparring.environments.plain import canonical
from sparring.errors import ContextFull, EffectError, SettingError, Unjudged
from sparring.learner import inspect_extra as inspect
from sparring.learner.cast import seating
from sparring.learner.described import task_at
from sparring.learner.evaluation import Sitting, Told, episode_plan, episode_told, nobody_told
from sparring.learner.inspect_agent import InspectAgent
from sparring.learner.run import Episodes
from sparring.rollout.episode import Episode, run_episode
from sparring.rollout.play import agent_of

_KEPT = "sparring"
"""Where in a sample's store its episode is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """A held-out set, and who sits where."""

    name: str
    episodes: Episodes
    players: dict[str, Player]
    measured: Sequence[str]
    seed: int
    max_tokens: int | None


def inspect_task(episodes: Episodes, *, name: str = "held-out", seed: int = 0, sampling: Sampling | None = None) -> Any:
    """An `inspect_ai.Task` that plays each task of the set once an epoch, with inspect's model at the seats of policies and the
    line-up's other players at theirs (scripts, agents and `External` ones; past versions need a run: `sparring eval`).

    A score has the reward of each of these seats and the environment's headline, each with mean and standard error; what has no
    verdict is left out there, and counted as unscored. What an environment or a model raises is the error of its sample.
    Each episode is kept in its sample's store under `sparring`, as `sparring eval` keeps it.

    name, seed  decide the chance in the episodes: those of the run and of its held-out set give that of its own evaluations
    sampling    temperature and max_tokens, where `inspect eval` is given none; None: the model's own. Greedy sets are played
                at temperature 0. What an `ask` says of max_tokens goes before `inspect eval --max-tokens`

    Raises `SettingError` for endless tasks, for several line-ups, and where no policy plays.
    """
    players, measured = seating(name, episodes, None)
    count = size(episodes.tasks)
    if count is None:
        raise SettingError(f"held-out {name!r} is endless: give a finite list of tasks")
    for seat in set(players).difference(measured):
        agent_of(seat, players[seat])
    most = None if sampling is None else sampling.max_tokens
    played = _Set(name=name, episodes=episodes, players=players, measured=measured, seed=seed, max_tokens=most)
    if episodes.environment.headline in measured:
        raise SettingError(
            f"the headline {episodes.environment.headline!r} is the name of a seat too: rename one of them"
        )
    samples = [
        inspect.Sample(id=index, input=canonical(task_at(episodes, index, f"held-out {name!r}")).decode())
        for index in range(count)
    ]
    drawn_at = 0.0 if episodes.greedy else None if sampling is None else sampling.temperature
    return inspect.Task(
        dataset=inspect.MemoryDataset(samples, name=name),
        solver=_solver(played),
        scorer=_scorer(played),
        config=inspect.GenerateConfig(temperature=drawn_at, max_tokens=most),
        name=episodes.environment.name,
        metadata={"environment": episodes.environment.described()},
    )


def _solver(played: _Set) -> Any:
    async def solve(state: Any, generate: object) -> Any:
        agent = InspectAgent(inspect.get_model(), played.max_tokens)
        agents = {
            seat: agent if seat in played.measured else agent_of(seat, player)
            for seat, player in played.players.items()
        }
        sitting = Sitting(episodes=played.episodes, agents=agents, measured=played.measured, temperature=0.0)
        plan = episode_plan(played.name, sitting, state.sample_id, state.epoch - 1, seed=played.seed, deadline=None)
        episode = Episode(plan, nobody_told)
        ended, seats = await run_episode(episode, plan)
        state.store.set(_KEPT, msgspec.to_builtins(episode_told(played.name, ended, seats)))
        if episode.failure is not None and not isinstance(episode.failure, Unjudged | EffectError | ContextFull):
            raise episode.failure
        if agent.last is not None:
            state.output = agent.last
        first = next(seat for seat in seats if seat.name == played.measured[0])
        state.messages = agent.messages(first.conversation)
        return state

    def sparring_episode() -> Any:
        return solve

    return inspect.solver(sparring_episode)()


def _scorer(played: _Set) -> Any:
    async def score(state: Any, target: object) -> Any:
        kept = state.store.get(_KEPT)
        told = Told(held_out=played.name, task=0, attempt=0, fault="CutOff", detail="it did not end")
        if kept is not None:
            told = msgspec.convert(kept, Told)
        reasons = [f"{told.fault}: {told.detail}"] if told.fault else []
        reasons += [f"{who}: {why}" for who, why in told.unjudged.items()]
        headline = played.episodes.environment.headline
        found = {seat: told.rewards.get(seat, nan) for seat in played.measured}
        return inspect.Score(
            value=found | ({headline: told.metrics.get(headline, nan)} if headline else {}),
            answer=state.output.completion,
            explanation="\n".join(reasons) or None,
            metadata={"metrics": told.metrics, "rewards": told.rewards},
        )

    def sparring_verdict() -> Any:
        return score

    return inspect.scorer(metrics={"*": [inspect.mean(), inspect.stderr()]})(sparring_verdict)()
