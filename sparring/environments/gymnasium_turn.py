"""How a seat is asked for an action of one of Gymnasium's spaces. Needs the extra `games`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.environments.gymnasium_extra import gymnasium
from sparring.environments.gymnasium_text import read, wanted
from sparring.environments.seat import Seat


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
