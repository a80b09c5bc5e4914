"""PettingZoo's environments as ours: a seat for each agent, in turn (AEC) or all at once (parallel).

Needs the extra `pettingzoo`; `from sparring.environments.pettingzoo import pettingzoo_environment`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sparring.environments.gymnasium_text import check_readable, legal_of, written
from sparring.environments.gymnasium_turn import SpacesEnvironment, action_of
from sparring.environments.outcome import Outcome
from sparring.environments.pettingzoo_extra import PettingZooRegistryError, pettingzoo
from sparring.environments.running import gather
from sparring.environments.seat import Seat
from sparring.errors import SettingError, UnsupportedError

Kind = Literal["aec", "parallel"]

Observe = Callable[[Any, str], str]
"""(observation, agent) -> what the agent is told."""

_ILLEGAL = object()


@dataclass(frozen=True, kw_only=True)
class PettingZooEnvironment(SpacesEnvironment):
    """What `pettingzoo_environment` makes. A seat is named as its agent."""

    kind: Kind
    observe: Observe | None = None

    __hash__ = SpacesEnvironment.__hash__

    def described(self) -> dict[str, Any]:
        return {**super().described(), "kind": self.kind}

    def fingerprint(self) -> dict[str, str]:
        """And of PettingZoo its version."""
        return {**super().fingerprint(), "pettingzoo": str(pettingzoo.__version__)}

    async def play(self, task: int, *players: Seat) -> Outcome:
        """One episode. Its metrics: `length` in steps, and whether an agent was `truncated` (a limit of time, not an end)."""
        env = _made(self.kind, self.id, self.settings)
        seats = dict(zip(env.possible_agents, players, strict=True))
        if self.rules:
            for player in players:
                player.system(self.rules)
        rewards = _Rewards(seats)
        try:
            go = self._in_turn if self.kind == "aec" else self._at_once
            metrics = await go(env, task, seats, rewards)
        finally:
            env.close()
        return Outcome({player: rewards.early[player] for player in players}, metrics=metrics)

    async def _in_turn(self, env: Any, task: int, seats: Mapping[Any, Seat], rewards: _Rewards) -> dict[str, float]:
        env.reset(seed=task)
        length, truncated = 0, False
        while env.agents:
            agent = env.agent_selection
            observation, _, dead, cut, info = env.last()
            truncated |= bool(cut)
            if dead or cut:
                env.step(None)
                continue
            action = await self._action(env, agent, seats[agent], observation, info)
            if action is _ILLEGAL:
                rewards.give({agent: self.illegal})
                break
            env.step(action)
            rewards.give(env.rewards)
            length += 1
        return {"length": float(length), "truncated": float(truncated)}

    async def _at_once(self, env: Any, task: int, seats: Mapping[Any, Seat], rewards: _Rewards) -> dict[str, float]:
        observations, infos = env.reset(seed=task)
        length, truncated = 0, False
        while env.agents:
            agents = tuple(env.agents)
            asked = (self._action(env, one, seats[one], observations[one], infos.get(one, {})) for one in agents)
            actions = dict(zip(agents, await gather(*asked), strict=True))
            refused = [agent for agent, action in actions.items() if action is _ILLEGAL]
            if refused:
                rewards.give(dict.fromkeys(refused, self.illegal))
                break
            observations, given, _, cut, infos = env.step(actions)
            rewards.give(given)
            length, truncated = length + 1, truncated or any(cut.values())
        return {"length": float(length), "truncated": float(truncated)}

    async def _action(self, env: Any, agent: Any, player: Seat, observation: Any, info: Mapping[str, Any]) -> Any:
        space = env.action_space(agent)
        told = self.told(env.observation_space(agent), observation, player.name)
        allowed = legal_of(space, info, observation)
        action = await action_of(player, space, told, allowed=allowed, names=self.actions, retries=self.retries)
        return _ILLEGAL if action is None else action

    def told(self, space: Any, observation: Any, agent: str) -> str:
        """The text of an observation, but for its `action_mask`: what is allowed stands among the options."""
        if self.observe is not None:
            return self.observe(observation, agent)
        if isinstance(observation, Mapping) and "action_mask" in observation:
            parts = [written(part, observation[key]) for key, part in space.spaces.items() if key != "action_mask"]
            return "\n".join(parts)
        return written(space, observation)


class _Rewards:
    """Rewards go to the last turn of their seat; those that came before its first are kept in `early`."""

    def __init__(self, seats: Mapping[Any, Seat]) -> None:
        self._seats = seats
        self.early: dict[Seat, float] = defaultdict(float)

    def give(self, rewards: Mapping[Any, Any]) -> None:
        for agent, reward in rewards.items():
            seat = self._seats[agent]
            if seat.spoke:
                seat.reward(float(reward))
            else:
                self.early[seat] += float(reward)


def pettingzoo_environment(
    name: str,
    kind: Kind = "aec",
    *,
    observe: Observe | None = None,
    actions: Sequence[str] | None = None,
    rules: str = "",
    retries: int = 1,
    illegal: float = -1.0,
    settings: Mapping[str, Any] | None = None,
) -> PettingZooEnvironment:
    """An environment of PettingZoo (https://pettingzoo.farama.org) by its id, as in "classic/tictactoe-v3", or by where the
    function is that makes it, as in "package.module:env". Its seats are its possible agents; tasks are seeds of `reset`.

    kind      "aec": agents act in turn; "parallel": all who live act at once, and none sees another's action before
    observe   the text of an observation, given the agent's name too; None writes numbers, arrays and their dictionaries as they
              are
    actions   names for the actions of a discrete space, in its order, the same for all agents; None: their numbers
    rules     what every player is told first
    retries   further tries after a reply that is no action, or none that an `action_mask` (in the info or the observation)
              allows; after them the episode ends, and who said no action gets the reward `illegal` (the others get nothing
              more, as with PettingZoo's own TerminateIllegalWrapper)
    settings  go to `pettingzoo.make`, or to the function

    A reward goes to the last turn of its agent. The environment is stepped on the event loop: it must not take long. Raises
    `SettingError` for what PettingZoo cannot make and for names that do not fit, `UnsupportedError` for spaces that have no
    text and for agents that are not known beforehand.
    """
    names, given = None if actions is None else tuple(actions), dict(settings or {})
    if kind not in get_args(Kind):
        raise SettingError(f"kind={kind!r}: must be 'aec' or 'parallel'")
    if retries < 0:
        raise SettingError(f"retries={retries!r}: must be at least 0")
    return PettingZooEnvironment(
        id=name,
        kind=kind,
        seats=_agents(_made(kind, name, given), name, names, written_here=observe is None),
        settings=given,
        observe=observe,
        actions=names,
        rules=rules,
        retries=retries,
        illegal=illegal,
    )


def _agents(env: Any, name: str, names: Sequence[str] | None, *, written_here: bool) -> tuple[str, ...]:
    """The names of the agents, whose spaces are looked at. Closes the environment."""
    try:
        agents = getattr(env, "possible_agents", None)
        if not agents:
            raise UnsupportedError(f"{name}: its agents are not known beforehand (possible_agents), so it has no seats")
        for agent in agents:
            check_readable(env.action_space(agent), names)
            if written_here:
                written(env.observation_space(agent), env.observation_space(agent).sample())
    finally:
        env.close()
    return tuple(map(str, agents))


def _made(kind: Kind, name: str, settings: Mapping[str, Any]) -> Any:
    try:
        known = pettingzoo.EnvSpec(name.partition(":")[2], entry_point=name) if ":" in name else name
        return pettingzoo.make(kind, known, **settings)
    except (PettingZooRegistryError, AttributeError, TypeError, ValueError) as error:
        raise SettingError(f"pettingzoo.make({kind!r}, {name!r}, **{dict(settings)!r}): {error}") from error
