"""The agents that play a group: policies at the versions they may use, and players that are not models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparring.agents import Agent, External, Frozen, Human, Player, PolicyAgent
from sparring.errors import SettingError, UnsupportedError
from sparring.learner.run import Policy
from sparring.learner.versions import Versions
from sparring.rollout.play import agent_of


def check_players(players: Mapping[str, Player], where: str, *, deterministic: bool) -> None:
    """Raises where a run cannot seat one of them: `UnsupportedError` for a frozen version other than 0 (a run keeps no later
    one for ever), `SettingError` for a person, and in a deterministic run for a server's model."""
    for seat, player in players.items():
        if isinstance(player, Frozen) and player.version != 0:
            raise UnsupportedError(
                f"{where}: seat {seat!r} is played by Frozen({player.name!r}); only version 0 can be frozen so far: "
                f"write Frozen('{player.policy}@0')"
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


class Players:
    """The run's policies as players."""

    def __init__(self, policies: Mapping[str, Policy], versions: Mapping[str, Versions], steps: int) -> None:
        self._policies = policies
        self._versions = versions
        self._steps = steps

    def agents(
        self, players: Mapping[str, Player], pinned: Mapping[str, int], *, step: int, greedy: bool = False
    ) -> dict[str, Agent]:
        """One agent for each seat. A policy plays with its pinned version, else with the newest at each action, as it samples
        for the step that is given."""
        return {seat: self._agent(seat, player, pinned, step, greedy) for seat, player in players.items()}

    def _agent(self, seat: str, player: Player, pinned: Mapping[str, int], step: int, greedy: bool) -> Agent:
        if isinstance(player, Frozen):
            return self._policy(player.policy, player.version, step, greedy)
        if isinstance(player, str):
            return self._policy(player, pinned.get(player), step, greedy)
        return agent_of(seat, player)

    def _policy(self, name: str, version: int | None, step: int, greedy: bool) -> PolicyAgent:
        sampling = self._policies[name].sampling_at(step, self._steps)
        model = self._versions[name].model
        return PolicyAgent(
            self._versions[name].player(version),
            model.renderer,
            replace(sampling, temperature=0.0) if greedy else sampling,
            model.info.context_length,
        )
