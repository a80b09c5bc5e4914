"""The one thing a player must be able to do."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sparring.agents.action import Action
from sparring.environments import Conversation, Request


@runtime_checkable
class Agent(Protocol):
    """A player. It keeps nothing between calls: what it needs of the past is in the conversation's turns."""

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        """Reply to `conversation`. `seed` is a function of run, episode and turn: equal seeds may give equal replies.

        Raises `ContextFull` where the reply cannot fit.
        """
        ...

    def context_left(self, conversation: Conversation) -> int:
        """Tokens that still fit into this conversation's context."""
        ...


@runtime_checkable
class Chooser(Protocol):
    """What a player may be able to do besides: say how likely it is to give each of some replies."""

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        """The log-prob of each option as the whole reply to `conversation`, at temperature 1; minus infinity where it is never
        given. Raises `ContextFull` where one does not fit."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """A player that draws its replies, and says at which temperature."""

    @property
    def temperature(self) -> float:
        """0 is greedy."""
        ...
