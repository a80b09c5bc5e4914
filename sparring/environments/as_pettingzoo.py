"""An environment of ours as one of PettingZoo's: its seats are the agents, who is asked acts, an action is a reply.

Needs the extra `pettingzoo`; `from sparring.environments.as_pettingzoo import as_pettingzoo`.
"""

from __future__ import annotations

from typing import Any

from sparring.environments.as_gymnasium import AnyText, drawn
from sparring.environments.environment import Environment
from sparring.environments.gymnasium_extra import gymnasium, np_random
from sparring.environments.pettingzoo_extra import pettingzoo
from sparring.environments.stepped import Stepped
from sparring.environments.tasks import Tasks, size
from sparring.errors import SettingError

Told = dict[str, str]
"""{"text": what a seat is told}: PettingZoo's own test asks a dtype of any observation that is no dictionary."""


class SeatsEnv(pettingzoo.AECEnv[str, Any, Any]):  # type: ignore[misc]  # PettingZoo has no types
    """What `as_pettingzoo` makes. `play` runs on an event loop in a thread of its own; `close` ends both.

    Where several seats are asked at the same time they act one after the other, and none is told of the others' actions
    before. What one seat is told while another is asked it observes when its turn comes.
    """

    def __init__(self, environment: Environment[Any], tasks: Tasks[Any]) -> None:
        super().__init__()
        self.metadata = {"name": environment.name, "render_modes": [], "is_parallelizable": False}
        self.possible_agents = list(environment.seats)
        self.agents: list[str] = []
        self._observed = {name: gymnasium.spaces.Dict({"text": AnyText()}) for name in environment.seats}
        self._acted = {name: AnyText() for name in environment.seats}
        self._tasks, self._stepped = tasks, Stepped(environment)
        self._random: Any = None

    def observation_space(self, agent: str) -> gymnasium.spaces.Dict:
        return self._observed[agent]

    def action_space(self, agent: str) -> AnyText:
        return self._acted[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode of a task drawn with the generator that `seed` sets, or of `options["task"]`, a number."""
        if seed is not None or self._random is None:
            self._random, _ = np_random(seed)
        index, chance = drawn(self._random, self._tasks, options)
        self.agents = list(self.possible_agents)
        self._told = dict.fromkeys(self.agents, "")
        self._given = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.infos: dict[str, dict[str, Any]] = {agent: {"task": index} for agent in self.agents}
        self.agent_selection = self.agents[0]
        self._stepped.begin(self._tasks[index], chance)
        self._next()

    def step(self, action: str | None) -> None:
        """Reply for the seat that is asked, and go on to the next question or the end. Raises what `play` raises."""
        if not self.agents:
            raise SettingError("step() after the end of an episode: call reset() first")
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        if not isinstance(action, str):
            raise SettingError(f"step({action!r}): must be text, the reply of seat {agent!r}")
        self._cumulative_rewards[agent] = 0.0
        self._stepped.answer(action)
        self._next()

    def observe(self, agent: str) -> Told:
        """What the seat was told when it was asked last."""
        return {"text": self._told[agent]}

    def close(self) -> None:
        """End what runs."""
        self._stepped.close()

    def _next(self) -> None:
        """Who acts now, and what each seat got since the last question; at the end everyone is done."""
        asked, given = self._stepped.asked, self._stepped.given
        self.rewards = {agent: given[agent] - self._given[agent] for agent in self.agents}
        self._given = {**given}
        self._accumulate_rewards()
        self.terminations = dict.fromkeys(self.agents, asked is None)
        self.truncations = dict.fromkeys(self.agents, False)
        if asked is not None:
            self.agent_selection, self._told[asked.seat] = asked.seat, asked.told
            return
        end = self._stepped.end
        self._told = dict.fromkeys(self.agents, "")
        self.infos = {agent: {**self.infos[agent], **end} for agent in self.agents}
        self.agent_selection = self.agents[0]


def as_pettingzoo(environment: Environment[Any], tasks: Tasks[Any]) -> SeatsEnv:
    """A `pettingzoo.AECEnv` of texts over these tasks: `reset(seed=...)` draws the task and all chance of the episode, the
    return of each seat (of its forks too) is spread over the steps, the infos at the end have the metrics and, of what could
    not be judged, why. `turn_based_aec_to_parallel` of PettingZoo makes a parallel environment of it. Raises `SettingError` for
    no tasks."""
    if size(tasks) == 0:
        raise SettingError(f"as_pettingzoo({environment.name}, tasks=[]): give at least one task")
    return SeatsEnv(environment, tasks)
