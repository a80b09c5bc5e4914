"""Players that are not models: a function, or a person at a prompt."""

from collections.abc import Awaitable, Callable, Sequence
from math import inf
from sys import maxsize

from sparring.agents.action import Action
from sparring.environments import Conversation, Message, Reply, Request
from sparring.errors import SettingError, UnsupportedError

Script = Callable[[Conversation], str | Reply]
"""What is said to a conversation: a text, or a whole reply, with calls of tools too."""
Prompter = Callable[[str], Awaitable[str]]


def refuse_tools(conversation: Conversation, player: str) -> None:
    """Raise `UnsupportedError` for a player that cannot call the tools that it has."""
    if conversation.tools:
        seat, names = conversation.place.seat, ", ".join(tool.name for tool in conversation.tools)
        raise UnsupportedError(
            f"seat {seat!r} has tools ({names}), which {player} cannot call: seat a policy or a script"
        )


class ScriptedAgent:
    """Replies with `script(conversation)`: for tests, baselines and fixed opponents."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        said: object = self._script(conversation)
        if not isinstance(said, str | Reply):
            raise SettingError(
                f"the script of seat {conversation.place.seat!r} returned {said!r}: must be text or a Reply"
            )
        return Action(reply=Reply(text=said) if isinstance(said, str) else said)

    async def choose(self, conversation: Conversation, options: Sequence[str]) -> Sequence[float]:
        """All of it is on what the script says, which must be one of the options."""
        text = str(self._script(conversation))
        if text not in options:
            raise SettingError(
                f"the script of seat {conversation.place.seat!r} says {text!r} where it has to choose: must be one of "
                f"{options!r}"
            )
        return [0.0 if option == text else -inf for option in options]

    def context_left(self, conversation: Conversation) -> int:
        return maxsize


class HumanAgent:
    """Shows what the seat was told since its last turn and waits for a person's line."""

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        refuse_tools(conversation, "a person")
        told: list[str] = []
        for entry in conversation.entries:
            told = [*told, entry.text] if isinstance(entry, Message) else []
        shown = "\n".join(told)
        return Action(reply=Reply(text=await self._prompter(f"[{conversation.place.seat}] {shown}\n> ")))

    def context_left(self, conversation: Conversation) -> int:
        return maxsize
