"""An environment of ours with one seat as one of Gymnasium's: what the seat is told is observed, an action is its reply.

Needs the extra `games`; `from sparring.environments.as_gymnasium import as_gymnasium`.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from sys import maxsize
from typing import Any, ClassVar

from sparring.environments.environment import Environment
from sparring.environments.gymnasium_extra import gymnasium
from sparring.environments.stepped import Stepped
from sparring.environments.tasks import Tasks, size
from sparring.errors import SettingError


class AnyText(gymnasium.Space[str]):
    """All texts. Samples are short and printable."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__((), None, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """It has no numbers."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        letters = self.np_random.integers(32, 127, size=int(self.np_random.integers(1, 20)))
        return "".join(map(chr, letters))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __repr__(self) -> str:
        return "AnyText()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    __hash__ = None  # type: ignore[assignment]  # like other spaces


class SeatEnv(gymnasium.Env[str, str]):
    """What `as_gymnasium` makes. `play` runs on an event loop in a thread of its own; `close` ends both."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]  # as Gymnasium's own ought to be

    def __init__(self, environment: Environment[Any], tasks: Tasks[Any]) -> None:
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._tasks, self._stepped = tasks, Stepped(environment)
        self._given = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode of a task drawn with the generator that `seed` sets, or of `options["task"]`, a number."""
        super().reset(seed=seed)
        index, chance = drawn(self.np_random, self._tasks, options)
        self._given = 0.0
        self._stepped.begin(self._tasks[index], chance)
        observation, _, _, info = self._next()
        return observation, {"task": index, **info}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Reply, and go on to the next question or the end. Raises what `play` raises."""
        if self._stepped.asked is None:
            raise SettingError("step() after the end of an episode: call reset() first")
        if not isinstance(action, str):
            raise SettingError(f"step({action!r}): must be text, the reply of the seat")
        self._stepped.answer(action)
        observation, reward, over, info = self._next()
        return observation, reward, over, False, info

    def close(self) -> None:
        """End what runs."""
        self._stepped.close()

    def _next(self) -> tuple[str, float, bool, dict[str, Any]]:
        """What is asked now, the reward since the last question, whether the episode is over, and what is known of its end."""
        total, asked = sum(self._stepped.given.values()), self._stepped.asked
        reward, self._given = total - self._given, total
        return ("", reward, True, self._stepped.end) if asked is None else (asked.told, reward, False, {})


def drawn(generator: Any, tasks: Tasks[Any], options: Mapping[str, Any] | None) -> tuple[int, Random]:
    """The number of a task, `options["task"]` or drawn with numpy's `generator`, and all chance of the episode."""
    count = size(tasks)
    index = int((options or {}).get("task", generator.integers(maxsize if count is None else count)))
    return index, Random(int(generator.integers(2**31)))


def as_gymnasium(environment: Environment[Any], tasks: Tasks[Any]) -> SeatEnv:
    """A `gymnasium.Env` of texts over these tasks, of an environment with one seat: `reset(seed=...)` draws the task and all
    chance of the episode, the return of the seat (of its forks too) is spread over the steps, `info` at the end has the metrics
    and, of what could not be judged, why. Raises `SettingError` for an environment of several seats, or no tasks."""
    if len(environment.seats) != 1:
        raise SettingError(
            f"{environment.name} has the seats {', '.join(environment.seats)}: Gymnasium knows one player"
        )
    if size(tasks) == 0:
        raise SettingError(f"as_gymnasium({environment.name}, tasks=[]): give at least one task")
    return SeatEnv(environment, tasks)
