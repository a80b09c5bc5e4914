"""Who is measured in an evaluation apart from training: a run's policies at a step, a model, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from sparring.agents import Agent, EndpointAgent, Frozen, Lineup, Player, PolicyAgent, Sampling
from sparring.backend import Backend, Lora, SamplingClient, TrainingClient
from sparring.errors import SettingError
from sparring.learner.evaluation import Sitting
from sparring.learner.folder import RunFolder
from sparring.learner.history import read_events
from sparring.learner.run import DEFAULT_POLICY, Episodes, Run
from sparring.rollout.events import Opened
from sparring.rollout.play import agent_of

_FRESH = Lora(rank=1)
"""An adapter that changes nothing: a base as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model, and the folder of a state that it plays with; None for the model as it is."""

    model: str
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint. The key is told to nobody else."""

    url: str
    model: str
    key: str = field(default="", repr=False)


Subject = Mapping[str, Weights] | Endpoint
"""What plays each policy, by name; or what plays all of them."""


def of_run(folder: Path, step: int | None) -> tuple[dict[str, Weights], int]:
    """The policies of a run at a step, and which step that is: None takes the newest that all of them have a checkpoint of.
    Raises `SettingError` for a folder without a run or a step that is not kept."""
    opened = next(iter(read_events(folder)), None)
    if not isinstance(opened, Opened):
        raise SettingError(f"run folder {str(folder)!r} holds no run that was started")
    policies: Mapping[str, Any] = opened.run["settings"]["policies"]
    kept = set.intersection(*(RunFolder(folder).checkpoints(name) for name in policies))
    chosen = max(kept) if step is None else step
    if chosen not in kept:
        there = ", ".join(f"{folder}@{one}" for one in sorted(kept))
        raise SettingError(
            f"{folder}@{chosen}: no checkpoint of that step is kept, as no resume needs it; there are {there}"
        )
    return {
        name: Weights(
            model=one["model"],
            state=str(RunFolder(folder).checkpoint(name, chosen).absolute()) if chosen else one.get("start"),
        )
        for name, one in policies.items()
    }, chosen


class Cast:
    """Opens what plays, each model once. `who` is what was opened, as data."""

    def __init__(self, backend: Backend, subject: Subject, run: Run | None) -> None:
        self._backend, self._subject, self._run = backend, subject, run
        self._opened: dict[Weights, tuple[TrainingClient, SamplingClient]] = {}
        self.who: dict[str, Any] = {}

    async def sitting(
        self, name: str, episodes: Episodes, *, temperature: float | None, max_tokens: int | None
    ) -> Sitting:
        """A held-out set with an agent at each seat. A set that is `greedy` is played so, unless a temperature is given."""
        players, measured = seating(name, episodes, self._run)
        agents: dict[str, Agent] = {}
        drawn_at = [0.0]
        for seat, player in players.items():
            if isinstance(player, str | Frozen):
                policy = player if isinstance(player, str) else player.policy
                sampling = self._sampling(policy, episodes, temperature, max_tokens)
                if isinstance(player, Frozen) and player.sampling is not None:
                    sampling = player.sampling
                drawn_at.append(sampling.temperature)
                agents[seat] = await self._agent(player, policy, sampling)
            else:
                agents[seat] = agent_of(seat, player)
        seated = replace(episodes, lineup=Lineup(players))
        return Sitting(episodes=seated, agents=agents, measured=measured, temperature=max(drawn_at))

    def _sampling(self, policy: str, episodes: Episodes, temperature: float | None, max_tokens: int | None) -> Sampling:
        known = {} if self._run is None else self._run.named_policies
        sampling = known[policy].sampling if policy in known else Sampling()
        drawn = temperature if temperature is not None else 0.0 if episodes.greedy else sampling.temperature
        return replace(sampling, temperature=drawn, max_tokens=max_tokens or sampling.max_tokens)

    async def _agent(self, player: str | Frozen, policy: str, sampling: Sampling) -> Agent:
        if isinstance(player, str) and isinstance(self._subject, Endpoint):
            self._tell(policy, {"url": self._subject.url, "model": self._subject.model}, sampling)
            return EndpointAgent(self._subject.url, self._subject.model, sampling, key=self._subject.key)
        weights = self._weights(policy) if isinstance(player, str) else self._frozen(player)
        model, client = await self._open(weights)
        named = policy if isinstance(player, str) else player.name
        self._tell(named, {"model": weights.model, "digest": await model.digest()}, sampling)
        return PolicyAgent(client, model.renderer, sampling, model.info.context_length)

    def _tell(self, name: str, what: Mapping[str, Any], sampling: Sampling) -> None:
        self.who[f"{name} at {sampling.temperature}"] = {**what, "sampling": msgspec.to_builtins(sampling)}

    def _weights(self, policy: str) -> Weights:
        assert not isinstance(self._subject, Endpoint)
        if policy not in self._subject:
            known = ", ".join(self._subject)
            raise SettingError(f"policy {policy!r} plays a seat, and the run that is measured has {known} alone")
        return self._subject[policy]

    def _frozen(self, player: Frozen) -> Weights:
        """An opponent is what the file's run began with or keeps, or another model, whoever is measured."""
        if player.model:
            return Weights(model=player.model)
        if self._run is None or player.policy not in self._run.named_policies:
            raise SettingError(f"an opponent is {player!r}: name a file with the Run that has this policy")
        policy = self._run.named_policies[player.policy]
        if player.version:
            folder = RunFolder(self._run.path)
            if player.version not in folder.checkpoints(player.policy):
                raise SettingError(f"an opponent is {player!r}: {self._run.path} keeps no checkpoint of that version")
            return Weights(model=policy.model, state=str(folder.checkpoint(player.policy, player.version).absolute()))
        return Weights(model=policy.model, state=policy.start)

    async def _open(self, weights: Weights) -> tuple[TrainingClient, SamplingClient]:
        if weights not in self._opened:
            if weights.state is None:
                model = await self._backend.create_model(weights.model, lora=_FRESH)
            else:
                model = await self._backend.create_from_state(weights.state, model=weights.model, optimizer=False)
            self._opened[weights] = (model, await model.sampler())
        return self._opened[weights]


def seating(name: str, episodes: Episodes, run: Run | None) -> tuple[dict[str, Player], list[str]]:
    """The player of every seat of a held-out set, and the seats that policies play: they are measured. Raises `SettingError`
    where there are several line-ups, or nobody is measured."""
    policies = tuple(run.named_policies) if run is not None else _named(episodes)
    if len(episodes.lineups) != 1:
        raise SettingError(f"held-out {name!r} has {len(episodes.lineups)} line-ups: give each a name of its own")
    players = episodes.lineups[0].resolved(episodes.environment.seats, policies)
    measured = [seat for seat, player in players.items() if isinstance(player, str)]
    if not measured:
        raise SettingError(f"held-out {name!r}: no seat is played by a policy, so that nobody is measured")
    return players, measured


def for_all(policies: Sequence[str], weights: Weights) -> dict[str, Weights]:
    """One model in the place of every policy."""
    return dict.fromkeys(policies, weights)


def _named(episodes: Episodes) -> tuple[str, ...]:
    """The policies that line-ups name without a run; one of its usual name where they name none."""
    names = {player for lineup in episodes.lineups for player in lineup.players.values() if isinstance(player, str)}
    return tuple(sorted(names)) or (DEFAULT_POLICY,)


def policies_of(run: Run | None, sets: Mapping[str, Episodes]) -> tuple[str, ...]:
    """The policies that seats of these sets are for."""
    if run is not None:
        return tuple(run.named_policies)
    return tuple(dict.fromkeys(name for episodes in sets.values() for name in _named(episodes)))
