"""One player's token-exact conversation, as an environment holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from sparring.environments.conversation import Conversation, Message, Place, Text, Turn
from sparring.environments.reply import Reply, ToolCall
from sparring.environments.running import Request, Running
from sparring.errors import RewardError, SettingError, UnsupportedError


class Seat:
    """A player's place in one episode: what it is told, asked and given. Usable as a dictionary key.

    `name` is the parameter's name in the environment, `label` what a fork was given. One thing at a time happens on a seat:
    two asks at once on the same one are refused (fork it, or use two seats).
    """

    def __init__(self, name: str, running: Running, *, label: str = "", conversation: Conversation | None = None) -> None:
        self.name = name
        self.label = label
        self.turn_rewards: dict[int, float] = {}
        self.family: list[Seat] = [self]
        self.illegal = 0
        self.picks = 0
        self._running = running
        self._conversation = conversation or Conversation(Place(seat=name))
        self._turns = 0
        self._forks = 0
        self._asking = False

    def __repr__(self) -> str:
        return f"Seat({self.key!r})"

    @property
    def key(self) -> str:
        """Its name in journals and transcripts: `solver`, or `solver/2.1` for a fork."""
        place = self._conversation.place
        return f"{place.seat}/{place.fork}" if place.fork else place.seat

    @property
    def conversation(self) -> Conversation:
        return self._conversation

    @property
    def spoke(self) -> bool:
        """Whether it replied at least once itself (a fork's inherited turns are not its own)."""
        return self._turns > 0

    async def ask(
        self, text: str | None = None, *, max_tokens: int | None = None, stop: Sequence[str] = (), timeout: float | None = None
    ) -> Reply:
        """Say `text` to the player, if given, and wait for its reply.

        `max_tokens` lowers the player's own limit, `stop` are strings that end the reply, `timeout` is in seconds. Raises
        `TimeoutError`, `ContextFull` (nothing is cut), and `SettingError` where nothing was said since its last reply.
        """
        if self._asking:
            raise SettingError(f"{self!r} was asked while it was still answering: fork() it, or wait for the first reply")
        if text is not None:
            self.tell(text)
        if not self._conversation.awaits_reply:
            raise SettingError(f"{self!r} was asked for a reply but told nothing since its last one: ask(text)")
        request = Request(turn=self._turns, max_tokens=max_tokens, stop=tuple(stop), timeout=timeout)
        self._asking = True
        try:
            reply, record = await self._running.act(self._conversation, request)
        finally:
            self._asking = False
        self._conversation.append(Turn(reply=reply, record=record, number=self._turns))
        self._turns += 1
        return reply

    async def pick(self, text: str, options: Sequence[str], *, retries: int = 1) -> str | None:
        """Ask for exactly one of `options`; None after `retries` further tries. Case, spaces and a full stop at the ends do not
        count. Every refused reply is counted in the episode's metric `illegal`."""
        listed = ", ".join(options)
        by_form = {option.strip().casefold(): option for option in options}
        if len(by_form) != len(options) or not options:
            raise SettingError(f"options {tuple(options)!r}: give at least one, all different")
        question = f"{text}\nReply with exactly one of: {listed}."
        for _ in range(retries + 1):
            reply = await self.ask(question)
            self.picks += 1
            choice = by_form.get(reply.text.strip().removesuffix(".").strip().casefold())
            if choice is not None:
                return choice
            self.illegal += 1
            question = f"That is not one of the options. Reply with exactly one of: {listed}."
        return None

    async def choose(self, text: str, options: Sequence[str]) -> Mapping[str, float]:
        """The probability that each option is the reply. Refused so far: no agent gives option probabilities yet."""
        raise UnsupportedError(f"{self!r}.choose({text!r}): option probabilities are not there yet; use pick()")

    def tools(self, *tools: object) -> None:
        """Offer tools in the model's own template. Refused so far."""
        raise UnsupportedError(f"{self!r}.tools({', '.join(map(repr, tools))}): tools are not there yet; use effect() and tell()")

    def answer(self, call: ToolCall, text: str) -> None:
        """Give a tool's answer. Refused so far."""
        raise UnsupportedError(f"{self!r}.answer({call.name!r}): tools are not there yet; use tell({text!r})")

    def endpoint(self) -> object:
        """An OpenAI-compatible address whose completions are this seat's replies. Refused so far."""
        raise UnsupportedError(f"{self!r}.endpoint(): endpoints are not there yet; use ask()")

    def system(self, text: str) -> None:
        """Set out the rules, before anything else is said in this context."""
        if any(not isinstance(entry, Message) or entry.role != "system" for entry in self._conversation.entries):
            raise SettingError(f"{self!r}.system({text!r}): must come before the first tell() or ask() of the context")
        self._conversation.append(Message(role="system", parts=(Text(text=text),)))

    def tell(self, text: str) -> None:
        """Say something without asking for a reply."""
        if self._asking:
            raise SettingError(f"{self!r} was told something while it was still answering: wait for its reply")
        self._conversation.append(Message(role="user", parts=(Text(text=text),)))

    def reward(self, value: float) -> None:
        """Credit the last reply; adds to the seat's return. Raises `RewardError` before the first reply or where not finite."""
        if not self.spoke:
            raise RewardError(f"{self!r}.reward({value!r}): it has not spoken yet; return its reward from play instead")
        if not isfinite(value):
            raise RewardError(f"{self!r}.reward({value!r}): must be finite")
        last = self._turns - 1
        self.turn_rewards[last] = self.turn_rewards.get(last, 0.0) + float(value)

    def fork(self, label: str = "") -> Seat:
        """Another conversation of the same player, starting as a copy of this one: a trajectory and a reward of its own.

        What was said before the fork is its past and trains nothing in it. Forks may run beside each other.
        """
        if self._asking:
            raise SettingError(f"{self!r} was forked while it was still answering: wait for its reply")
        self._forks += 1
        place = self._conversation.place
        path = f"{place.fork}.{self._forks}" if place.fork else str(self._forks)
        copy = self._conversation.copied(Place(seat=place.seat, fork=path))
        seat = Seat(self.name, self._running, label=label or self.label, conversation=copy)
        seat.family = self.family
        self.family.append(seat)
        return seat

    def new_context(self) -> None:
        """Go on in a fresh context of the same trajectory; what `system` said is kept. One more training sample."""
        if self._asking:
            raise SettingError(f"{self!r} got a new context while it was still answering: wait for its reply")
        place = self._conversation.place
        self._conversation = self._conversation.renewed(Place(seat=place.seat, fork=place.fork, context=place.context + 1))

    @property
    def context_left(self) -> int:
        """Tokens that still fit into the player's context before its next reply."""
        return self._running.context_left(self._conversation)
