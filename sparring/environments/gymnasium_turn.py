"""What the environments of Gymnasium and PettingZoo share: settings, and how a seat is asked for an action of a space. Needs
the extra `games`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparring.environments.environment import Environment
from sparring.environments.gymnasium_extra import gymnasium
from sparring.environments.gymnasium_text import read, wanted
from sparring.environments.seat import Seat
from sparring.environments.source import source_digests


@dataclass(frozen=True, kw_only=True)
class SpacesEnvironment(Environment[int]):
    """An environment that is made by its id and stepped with actions of spaces. A task is a seed."""

    id: str
    seats: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    observe: Callable[..., str] | None = None
    actions: tuple[str, ...] | None = None
    rules: str = ""
    retries: int = 1
    illegal: float = -1.0

    @property
    def name(self) -> str:
        return self.id

    def __hash__(self) -> int:
        return hash((self.id, self.actions, self.rules))

    def described(self) -> dict[str, Any]:
        observe = None if self.observe is None else f"{self.observe.__module__}:{self.observe.__qualname__}"
        given = {"actions": list(self.actions or ()), "rules": self.rules, "observe": observe}
        played = {"retries": self.retries, "illegal": self.illegal}
        return {**super().described(), "id": self.id, "settings": dict(self.settings), **given, **played}

    def fingerprint(self) -> dict[str, str]:
        """Of what is written around it here, the source."""
        return {**super().fingerprint(), **({} if self.observe is None else source_digests(self.observe))}


async def action_of(
    player: Seat,
    space: gymnasium.Space[Any],
    told: str,
    *,
    allowed: Sequence[int] | None,
    names: Sequence[str] | None,
    retries: int,
) -> Any:
    """The action that the player's reply says; None after `retries` further tries. `allowed` are those that it may take, where
    they can be counted; `names` are what all actions of a discrete space are called, in its order, None: their numbers."""
    if allowed is not None:
        assert isinstance(space, gymnasium.spaces.Discrete), space
        start = int(space.start)
        called = {names[action - start] if names else str(action): action for action in allowed}
        picked = await player.pick(told, tuple(called), retries=retries)
        return None if picked is None else called[picked]
    question = f"{told}\n{wanted(space)}"
    for _ in range(retries + 1):
        reply = await player.ask(question)
        try:
            return read(space, reply.text)
        except ValueError as error:
            question = f"That is not an action: {error}. {wanted(space)}"
    return None
