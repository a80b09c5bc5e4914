"""Gymnasium's environments as ours: what is observed is told, the reply is the action, rewards are those of the turns.

Needs the extra `games`; `from sparring.environments.gymnasium import gymnasium_environment`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.environments.gymnasium_extra import gymnasium
from sparring.environments.gymnasium_text import check_readable, legal_of, written
from sparring.environments.gymnasium_turn import SpacesEnvironment, action_of
from sparring.environments.outcome import Outcome
from sparring.environments.seat import Seat
from sparring.errors import SettingError

Observe = Callable[[Any], str]


@dataclass(frozen=True, kw_only=True)
class GymnasiumEnvironment(SpacesEnvironment):
    """What `gymnasium_environment` makes."""

    seats: tuple[str, ...] = ("player",)
    observe: Observe | None = None

    __hash__ = SpacesEnvironment.__hash__

    def fingerprint(self) -> dict[str, str]:
        """And of Gymnasium its version."""
        return {**super().fingerprint(), "gymnasium": str(gymnasium.__version__)}

    async def play(self, task: int, *players: Seat) -> Outcome:
        """One episode. Its metrics: `length` in steps, and whether it was `truncated` (a limit of time, not an end)."""
        (player,) = players
        env: Any = gymnasium.make(self.id, **self.settings)
        try:
            return await self._play(env, task, player)
        finally:
            env.close()

    async def _play(self, env: Any, task: int, player: Seat) -> Outcome:
        if self.rules:
            player.system(self.rules)
        observation, info = env.reset(seed=task)
        length, over, truncated = 0, False, False
        while not over:
            told = written(env.observation_space, observation) if self.observe is None else self.observe(observation)
            allowed = legal_of(env.action_space, info, observation)
            action = await action_of(
                player, env.action_space, told, allowed=allowed, names=self.actions, retries=self.retries
            )
            if action is None:
                player.reward(self.illegal)
                break
            observation, reward, terminated, truncated, info = env.step(action)
            player.reward(float(reward))
            length, over = length + 1, bool(terminated or truncated)
        return Outcome({}, metrics={"length": float(length), "truncated": float(truncated)})


def gymnasium_environment(
    name: str,
    *,
    observe: Observe | None = None,
    actions: Sequence[str] | None = None,
    rules: str = "",
    retries: int = 1,
    illegal: float = -1.0,
    settings: Mapping[str, Any] | None = None,
) -> GymnasiumEnvironment:
    """An environment of Gymnasium (https://gymnasium.farama.org), by its id: one seat, `player`; tasks are seeds of `reset`.

    observe   the text of an observation; None writes numbers, arrays and their dictionaries as they are
    actions   names for the actions of a discrete space, in its order; None: their numbers
    rules     what the player is told first
    retries   further tries after a reply that is no action, or none that an `action_mask` (in the info or the observation)
              allows; after them the episode ends with the reward `illegal`
    settings  go to `gymnasium.make`

    The return is the sum of the rewards of the steps, each given to the turn that made it. The environment is stepped on the
    event loop: it must not take long. Raises `SettingError` for an id that Gymnasium cannot make and for names that do not fit,
    `UnsupportedError` for spaces that have no text.
    """
    names, given = None if actions is None else tuple(actions), dict(settings or {})
    if retries < 0:
        raise SettingError(f"retries={retries!r}: must be at least 0")
    try:
        env: Any = gymnasium.make(name, **given)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise SettingError(f"gymnasium.make({name!r}, **{given!r}): {error}") from error
    try:
        check_readable(env.action_space, names)
        if observe is None:
            written(env.observation_space, env.observation_space.sample())
    finally:
        env.close()
    return GymnasiumEnvironment(
        id=name,
        settings=given,
        observe=observe,
        actions=names,
        rules=rules,
        retries=retries,
        illegal=illegal,
    )
