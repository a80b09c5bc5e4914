"""Small environments written for PettingZoo, which only its own interface is known of."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
import pettingzoo

BOX = gymnasium.spaces.Box(-1.0, 2.0, (2,), np.float32)


class Share(pettingzoo.ParallelEnv[str, Any, Any]):  # type: ignore[misc]  # PettingZoo has no types
    """What everyone sees is drawn with the seed; who says it gets 1, everyone else gives 1. Player 2 leaves after a round;
    after three rounds time is up."""

    metadata: ClassVar[dict[str, Any]] = {"name": "share"}

    def __init__(self, rounds: int = 3) -> None:
        self.possible_agents = ["player_0", "player_1", "player_2"]
        self.agents: list[str] = []
        self.closed = False
        self._rounds = rounds
        self._actions = gymnasium.spaces.Discrete(3, start=1)
        self._seen = gymnasium.spaces.Discrete(3, start=1)

    def observation_space(self, agent: str) -> Any:
        return self._seen

    def action_space(self, agent: str) -> Any:
        return self._actions

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.agents = list(self.possible_agents)
        self._random = np.random.default_rng(seed)
        self._round = 0
        return self._look()

    def step(self, actions: dict[str, Any]) -> Any:
        rewards = {agent: 1.0 if actions[agent] == self._drawn else -1.0 for agent in self.agents}
        self._round += 1
        over = self._round == self._rounds
        gone = {agent: agent == "player_2" for agent in self.agents}
        cut = {agent: over and not gone[agent] for agent in self.agents}
        self.agents = [agent for agent in self.agents if not gone[agent] and not over]
        seen, infos = self._look()
        return seen, rewards, gone, cut, infos

    def _look(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Player 1 may not say 1."""
        self._drawn = int(self._random.integers(1, 4))
        masks = {agent: np.array([agent != "player_1", True, True], np.int8) for agent in self.agents}
        return dict.fromkeys(self.agents, self._drawn), {agent: {"action_mask": mask} for agent, mask in masks.items()}


class Late(pettingzoo.AECEnv[int, Any, Any]):  # type: ignore[misc]
    """Agents are numbers: 0 acts twice, with numbers of its own. Agent 1 is paid for both before it acts once."""

    metadata: ClassVar[dict[str, Any]] = {"name": "late"}

    def __init__(self) -> None:
        self.possible_agents = [0, 1]

    def observation_space(self, agent: int) -> Any:
        return BOX

    def action_space(self, agent: int) -> Any:
        return BOX

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents = [0, 1]
        self.agent_selection, self._turns = 0, 0
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations, self.truncations = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, False)
        self.infos: dict[int, dict[str, Any]] = {agent: {} for agent in self.agents}

    def observe(self, agent: int) -> Any:
        return np.array([self._turns / 2, 0], np.float32)

    def step(self, action: Any) -> None:
        if self.terminations[self.agent_selection]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[self.agent_selection] = 0.0
        self._turns += 1
        self.rewards = {0: float(action[0]), 1: 10.0 if self._turns < 3 else float(action[0])}
        self._accumulate_rewards()
        self.terminations = dict.fromkeys(self.agents, self._turns == 3)
        self.agent_selection = int(self._turns == 2)


class Crowd(Share):
    """Who there will be nobody knows beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = []


def nothing() -> object:
    """Makes no environment."""
    raise ValueError("nothing is made here")
