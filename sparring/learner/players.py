"""The agents that play a group: policies at the versions they may use, other models, and players that are not models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparring.agents import Agent, External, Frozen, Human, League, Player, PolicyAgent, Sampling
from sparring.errors import SettingError
from sparring.learner.run import Policy
from sparring.learner.versions import Versions
from sparring.rollout.play import agent_of


def check_players(players: Mapping[str, Player], where: str, *, steps: int, deterministic: bool) -> None:
    """Raises `SettingError` where a run of so many `steps` cannot seat one of them: a version that it never makes, a person,
    and in a deterministic run a server's model."""
    for seat, player in players.items():
        if isinstance(player, Frozen) and player.version > steps:
            raise SettingError(
                f"{where}: seat {seat!r} is played by Frozen({player.name!r}), and a run of steps={steps} makes none "
                f"after {steps}: name one up to that"
            )
        if isinstance(player, External) and deterministic:
            raise SettingError(
                f"{where}: seat {seat!r} is played by {player.model!r} at {player.url}, which may answer otherwise another "
                f"time: leave out deterministic=True, or seat another player"
            )
        if isinstance(player, Human):
            raise SettingError(
                f"{where}: seat {seat!r} is played by Human(); people play in `sparring play`, not in runs"
            )


def seated(players: Mapping[str, Player], drawn: Mapping[str, int]) -> dict[str, Player]:
    """The players of a group: each league is the member that was drawn for its seat."""
    return {
        seat: Frozen(f"{player.policy}@{drawn[seat]}") if isinstance(player, League) else player
        for seat, player in players.items()
    }


class Players:
    """The run's policies as players, and `others`: the models by their names that only play."""

    def __init__(
        self,
        policies: Mapping[str, Policy],
        versions: Mapping[str, Versions],
        others: Mapping[str, Versions],
        steps: int,
    ) -> None:
        self._policies = policies
        self._versions = versions
        self._others = others
        self._steps = steps
        self._servers: dict[External, Agent] = {}  # one for all groups: what it asks at once is bounded for the run

    def agents(
        self,
        players: Mapping[str, Player],
        pinned: Mapping[str, int],
        *,
        steps: Mapping[str, int],
        greedy: bool = False,
    ) -> dict[str, Agent]:
        """One agent for each seat. A policy plays with its pinned version, else with the newest at each action, as it samples
        for its step of `steps`."""
        return {seat: self._agent(seat, player, pinned, steps, greedy) for seat, player in players.items()}

    def _agent(
        self, seat: str, player: Player, pinned: Mapping[str, int], steps: Mapping[str, int], greedy: bool
    ) -> Agent:
        if isinstance(player, Frozen) and player.model:
            return _agent(self._others[player.model], 0, player.sampling or Sampling(), greedy)
        if isinstance(player, Frozen):
            sampling = player.sampling or self._policies[player.policy].sampling_at(steps[player.policy], self._steps)
            return _agent(self._versions[player.policy], player.version, sampling, greedy)
        if isinstance(player, str):
            sampling = self._policies[player].sampling_at(steps[player], self._steps)
            return _agent(self._versions[player], pinned.get(player), sampling, greedy)
        if isinstance(player, External):
            return self._servers.setdefault(player, agent_of(seat, player))
        return agent_of(seat, player)


def _agent(versions: Versions, version: int | None, sampling: Sampling, greedy: bool) -> PolicyAgent:
    sampling = replace(sampling, temperature=0.0) if greedy else sampling
    model = versions.model
    return PolicyAgent(versions.player(version), model.renderer, sampling, model.info.context_length)
