"""One player's token-exact conversation, as an environment holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from math import exp, isfinite

from sparring.environments.conversation import Conversation, Message, Place, Role, Text, Turn
from sparring.environments.endpoint import Programs
from sparring.environments.reply import Reply, ToolCall
from sparring.environments.running import Branch, Request, Running, branches, in_branch
from sparring.environments.score import finite
from sparring.environments.tools import Tool, checked_tools, offered
from sparring.errors import RewardError, SettingError


class Seat:
    """A player's place in one episode: what it is told, asked and given. Usable as a dictionary key.

    `name` is the parameter's name in the environment, `label` what a fork was given. One thing at a time happens on a seat:
    two asks at once on the same one are refused, as is using it in two branches of one `gather` (fork it, or use two seats).
    """

    def __init__(
        self, name: str, running: Running, *, label: str = "", conversation: Conversation | None = None
    ) -> None:
        self.name = name
        self.label = label
        self.turn_rewards: dict[int, float] = {}
        self.illegal = 0
        self.picks = 0
        self._running = running
        self._contexts = [conversation or Conversation(Place(seat=name))]
        self._tools: tuple[Tool, ...] = ()
        self._programs: Programs | None = None
        # None for the root: a seat in a circle would keep all of its episode until Python's collector comes by.
        self._root: Seat | None = None
        self._descendants: list[Seat] = []
        self._order: tuple[tuple[tuple[int, ...], int], ...] = ()
        self._turns = 0
        self._attempts = 0
        self._asking = False
        self._forks: dict[tuple[int, ...], int] = {}
        self._born = _path(branches())
        self._used_in = branches()
        self._forked_in: list[tuple[Branch, ...]] = []

    def __repr__(self) -> str:
        return f"Seat({self.key!r})"

    @property
    def key(self) -> str:
        """Its name in journals and transcripts: `solver`, or `solver/2.1` for a fork."""
        place = self.conversation.place
        return f"{place.seat}/{place.fork}" if place.fork else place.seat

    @property
    def conversation(self) -> Conversation:
        """What it saw and said in its current context."""
        return self._contexts[-1]

    @property
    def contexts(self) -> Sequence[Conversation]:
        """All its contexts: its own, the current one last, then those that programs had with it through `endpoint`."""
        return (*self._contexts, *self.programs)

    @property
    def programs(self) -> Sequence[Conversation]:
        """The conversations that programs had with it through `endpoint`."""
        return self._programs.conversations if self._programs is not None else ()

    @property
    def family(self) -> Sequence[Seat]:
        """The seat, its forks and theirs, the same from each of them, in an order that no timing changes."""
        root = self._root or self
        return sorted([root, *root._descendants], key=lambda seat: seat._order)

    @property
    def spoke(self) -> bool:
        """Whether it replied at least once itself (a fork's inherited turns are not its own)."""
        return self._turns > 0 or (self._programs is not None and self._programs.spoke)

    async def ask(
        self,
        text: str | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Reply:
        """Say `text` to the player, if given, and wait for its reply.

        `max_tokens` lowers the player's own limit, `stop` are strings that end the reply, `timeout` is in seconds. Raises
        `TimeoutError`, `ContextFull` (nothing is cut), and `SettingError` where nothing was said since its last reply. What it
        was told stays told when no reply came: `ask()` tries again.
        """
        _check_request(f"{self!r}.ask", max_tokens, stop, timeout)
        self._use("asked")
        if text is not None:
            self.tell(text)
        if not self.conversation.awaits_reply:
            raise SettingError(f"{self!r} was asked for a reply but told nothing since its last one: ask(text)")
        request = Request(
            turn=self._turns, max_tokens=max_tokens, stop=tuple(stop), timeout=timeout, attempt=self._attempts
        )
        self._attempts += 1
        self._asking = True
        try:
            reply, record = await self._running.act(self.conversation, request)
        finally:
            self._asking = False
        self.conversation.append(Turn(reply=reply, record=record, number=self._turns))
        self._turns += 1
        self._attempts = 0
        return offered(reply, self._tools)

    async def pick(self, text: str, options: Sequence[str], *, retries: int = 1) -> str | None:
        """Ask for exactly one of `options`; None after `retries` further tries. Case, spaces and a full stop at the ends do not
        count. Every refused reply is counted in the episode's metric `illegal`."""
        by_form = _forms(f"{self!r}.pick", options)
        if retries < 0:
            raise SettingError(f"{self!r}.pick(retries={retries!r}): must be at least 0")
        question = to_pick(text, options)
        for _ in range(retries + 1):
            reply = await self.ask(question)
            self.picks += 1
            choice = by_form.get(_form(reply.text))
            if choice is not None:
                return choice
            self.illegal += 1
            question = to_pick("That is not one of the options.", options, between=" ")
        return None

    async def choose(self, text: str, options: Sequence[str]) -> Mapping[str, float]:
        """How likely each option is to be the player's reply to `text`, at temperature 1, given that it is one of them: the
        probabilities sum to 1.

        Nothing is sampled or trained, and the conversation does not change, so that it may be asked several times at once.
        Raises `ContextFull` where an option does not fit, `UnsupportedError` for a player without probabilities (a program
        behind an endpoint).
        """
        _forms(f"{self!r}.choose", options)
        self._check("asked what it would choose", self._used_in)
        self._forked_in.append(branches())
        asked = self.conversation.copied(self.conversation.place)
        asked.append(_message("user", text, f"{self!r} was asked"))
        logprobs = await self._running.choose(asked, tuple(options), in_branch(f"choose {self.key}"))
        likeliest = max(logprobs)
        weights = [exp(logprob - likeliest) for logprob in logprobs]
        return {option: weight / sum(weights) for option, weight in zip(options, weights, strict=True)}

    def tools(self, *tools: Tool) -> None:
        """Offer tools, before anything but rules is said in this context; a new context and a fork keep them. The player sees
        them as its own template shows tools, and its calls are in `reply.tool_calls`: `answer(call, await call.run())`."""
        self._use("given tools")
        self._check_first("tools")
        known = checked_tools(repr(self), self._tools, tools)
        self.conversation.offer([one.spec for one in known[len(self._tools) :]])
        self._tools = known

    def answer(self, call: ToolCall, text: str) -> None:
        """Tell what came of a call: those of a reply in their order, before anything else is said."""
        self._use("given a tool's answer")
        left = self.conversation.unanswered()
        if not left or (call.name, call.arguments) != (left[0].name, left[0].arguments):
            expected = f"next is {left[0].name!r}" if left else "none is left to answer"
            raise SettingError(
                f"{self!r}.answer({call.name!r}): {expected}; answer the calls of its last reply in their order, before "
                "anything else is said"
            )
        self._say("tool", text)

    def endpoint(self) -> AbstractAsyncContextManager[str]:
        """An OpenAI-compatible address (`base_url`), for as long as the block lasts, whose chat completions are this seat's
        replies, token for token.

        A request that extends a conversation that was had here continues it; any other starts a context of the same trajectory.
        What its seat was told by `system`, `tell` and `tools` is not part of these: a program says everything itself. Settings
        that would change how replies are drawn are refused (400), and so is what does not fit (`context_length_exceeded`).
        """
        self._use("given an endpoint")
        if self._programs is None:
            place = self.conversation.place
            self._programs = Programs(running=self._running, seat=place.seat, fork=place.fork)
        return self._programs.address()

    def system(self, text: str) -> None:
        """Set out the rules, before anything else is said in this context."""
        self._use("given its rules")
        self._check_first(f"system({text!r})")
        self._say("system", text)

    def tell(self, text: str) -> None:
        """Say something without asking for a reply."""
        self._use("told something")
        self._say("user", text)

    def reward(self, value: float) -> None:
        """Credit the last reply to `ask`; adds to the seat's return. Raises `RewardError` before the first one or where not
        finite."""
        self._use("rewarded")
        if not self._turns:
            said = "spoken to programs alone" if self.spoke else "not spoken yet"
            raise RewardError(f"{self!r}.reward({value!r}): it has {said}; return its reward from play instead")
        credit = finite(f"{self!r}.reward()", value, "leave out what could not be judged")
        last = self._turns - 1
        self.turn_rewards[last] = self.turn_rewards.get(last, 0.0) + credit

    def fork(self, label: str = "") -> Seat:
        """Another conversation of the same player, starting as a copy of this one: a trajectory and a reward of its own.

        What was said before the fork is its past and trains nothing in it. Forks may run beside each other. Without a `label`
        of its own a fork keeps this seat's.
        """
        self._check("forked", self._used_in)
        self._forked_in.append(branches())
        path = _path(branches())
        if path == self._born[: len(path)]:
            path = ()
        number = self._forks[path] = self._forks.get(path, 0) + 1
        piece = f"{'-'.join(map(str, path))}:{number}" if path else str(number)
        place = self.conversation.place
        copy = self.conversation.copied(Place(seat=place.seat, fork=f"{place.fork}.{piece}" if place.fork else piece))
        seat = Seat(self.name, self._running, label=label or self.label, conversation=copy)
        seat._tools = self._tools
        seat._order = (*self._order, (path, number))
        seat._root = self._root or self
        seat._root._descendants.append(seat)
        return seat

    def new_context(self) -> None:
        """Go on in a fresh context of the same trajectory; its tools and what `system` said are kept. One
        more training sample."""
        self._use("given a new context")
        place = self.conversation.place
        following = Place(seat=place.seat, fork=place.fork, context=place.context + 1)
        self._contexts.append(self.conversation.renewed(following))

    @property
    def context_left(self) -> int:
        """Tokens that still fit into the player's context before its next reply."""
        return self._running.context_left(self.conversation)

    def _check_first(self, what: str) -> None:
        if any(not isinstance(entry, Message) or entry.role != "system" for entry in self.conversation.entries):
            raise SettingError(f"{self!r}.{what}: must come before the first tell() or ask() of the context")

    def _say(self, role: Role, text: str) -> None:
        self.conversation.append(_message(role, text, f"{self!r} was told"))

    def _use(self, what: str) -> None:
        self._check(what, self._used_in, *self._forked_in)
        self._used_in = branches()
        self._forked_in.clear()

    def _check(self, what: str, *before: tuple[Branch, ...]) -> None:
        """Refuse what depends on timing: a second thing while it answers, another branch of a `gather` that used it."""
        if self._asking:
            raise SettingError(
                f"{self!r} was {what} while it was still answering: wait for its reply, or fork() it before"
            )
        here = branches()
        if here and any(_apart(used, here) for used in before):
            raise SettingError(
                f"{self!r} was {what} in one branch of gather() after it was used in another: which came first would be "
                f"chance; fork() it for each branch, or use it after gather()"
            )


def to_pick(text: str, options: Sequence[str], *, between: str = "\n") -> str:
    """What `pick` says, for who wants to ask `choose` the same."""
    return f"{text}{between}Reply with exactly one of: {', '.join(options)}."


def _message(role: Role, text: str, what: str) -> Message:
    if not isinstance(text, str):
        raise SettingError(f"{what} {text!r}: must be text; str(reply) is the text of a reply")
    return Message(role=role, parts=(Text(text=text),))


def _path(inside: Sequence[Branch]) -> tuple[int, ...]:
    return tuple(branch.index for branch in inside)


def _apart(one: Sequence[Branch], other: Sequence[Branch]) -> bool:
    """Whether two places in `play` are in different branches of the same `gather`."""
    for here, there in zip(one, other, strict=False):
        if here != there:
            return here.siblings is there.siblings
    return False


def _check_request(what: str, max_tokens: int | None, stop: Sequence[str], timeout: float | None) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise SettingError(f"{what}(max_tokens={max_tokens!r}): must be at least 1, or None for the player's own limit")
    if isinstance(stop, str) or not all(stop):
        raise SettingError(f"{what}(stop={stop!r}): must be a sequence of strings that are not empty, as in ('\\n',)")
    if timeout is not None and not (isfinite(timeout) and timeout > 0):
        raise SettingError(f"{what}(timeout={timeout!r}): must be a finite number of seconds above 0")


def _form(text: str) -> str:
    """What counts of a picked option."""
    return text.strip().removesuffix(".").strip().casefold()


def _forms(what: str, options: Sequence[str]) -> dict[str, str]:
    by_form = {_form(option): option for option in options}
    if isinstance(options, str) or not options or len(by_form) != len(options) or "" in by_form:
        raise SettingError(
            f"{what}(options={options!r}): give at least one, all different, none empty, as in ('yes', 'no')"
        )
    return by_form
