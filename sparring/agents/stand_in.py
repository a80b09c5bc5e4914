"""Players that need no model: for `sparring play`, dry runs and the checks of environments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import log
from random import Random
from sys import maxsize

from sparring.agents.action import Action
from sparring.environments import Conversation, Message, Reply, Request

_OPTIONS = re.compile(r"Reply with exactly one of: (.+)\.\s*$", re.MULTILINE)
_LETTERS = "abcdefgh"
_CLUMSY = 0.125


def scripted_reply(asked: str, rng: Random, gold: str | None) -> str:
    """One of the options where the question lists them (as `Seat.pick` does), else the gold reply or, as often, letters."""
    listed: list[str] = _OPTIONS.findall(asked)
    if listed:
        return rng.choice(listed[-1].split(", "))
    if gold is not None and rng.random() < 0.5:
        return gold
    return "".join(rng.choices(_LETTERS, k=rng.randint(1, 8)))


def last_told(conversation: Conversation) -> str:
    """The last that its seat was told, "" where it was told nothing."""
    return next((entry.text for entry in reversed(conversation.entries) if isinstance(entry, Message)), "")


class StandIn:
    """A player whose replies are those of `scripted_reply`, and one in eight is letters whatever was asked. They depend on the
    seed and the question alone: not on who else plays meanwhile, nor on the process. How likely it finds an option depends on
    that option. One that is `sure` says the gold reply wherever no options are listed."""

    def __init__(self, gold: str | None = None, *, sure: bool = False) -> None:
        self._gold = gold
        self._sure = sure

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        rng, asked = Random(seed), last_told(conversation)
        if self._sure and self._gold is not None and not _OPTIONS.search(asked):
            return Action(reply=Reply(text=self._gold))
        clumsy = rng.random() < _CLUMSY
        return Action(
            reply=Reply(text=scripted_reply("", rng, None) if clumsy else scripted_reply(asked, rng, self._gold))
        )

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        weights = [0.1 + Random(f"{conversation.place.seat}/{option}").random() for option in options]
        return [log(weight / sum(weights)) for weight in weights]

    def context_left(self, conversation: Conversation) -> int:
        return maxsize
