"""Environments of tinker-cookbook as ours: what one of its builders makes is played in one episode, by forks of the seat.

They speak tokens, which they get from a renderer that they are given: `Messages()` is one that writes messages down as they
are, so that every player is told them in its own template, and its reply comes back as its text.

Needs the extra `cookbook`; `from sparring.environments.cookbook import Messages, cookbook_environment`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import isclass, isfunction, ismethod
from types import SimpleNamespace
from typing import Any

import anyio

from sparring.environments.conversation import Message, Role, Text
from sparring.environments.environment import Environment
from sparring.environments.outcome import Outcome
from sparring.environments.running import effect, gather
from sparring.environments.seat import Seat
from sparring.environments.source import source_digests
from sparring.errors import SettingError, UnsupportedError

_ROLE, _END = 256, 257
"""What ends a role, and what ends a message, above the bytes of UTF-8."""

_PATIENCE = 600.0  # seconds of one step, or of cleaning up: it may ask a judge, or end a sandbox

_FOREIGN = "an environment of tinker-cookbook must be made with the renderer Messages(), not with a model's"

_STOPPED, _CONTINUED = "stop/", "num_truncations_max_turn_tokens"
"""Metrics of theirs: why an episode ended, in front of the reason; how many replies were cut before it went on."""

Said = tuple[str, str]
"""A message: who says it, and what."""

_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "tool": "user"}


@cache
def _theirs() -> SimpleNamespace:
    """What is used of the package."""
    try:
        types, renderers = import_module("tinker_cookbook.rl.types"), import_module("tinker_cookbook.renderers")
        completers, tinker = import_module("tinker_cookbook.completers"), import_module("tinker")
    except ModuleNotFoundError as missing:
        raise UnsupportedError(
            f"environments of tinker-cookbook need {missing.name!r}: pip install 'sparring[cookbook]'"
        ) from missing
    return SimpleNamespace(
        Input=tinker.ModelInput,
        Ending=renderers.base.ParseTermination,
        Tokens=completers.TokensWithLogprobs,
        Trajectory=types.Trajectory,
        Transition=types.Transition,
    )


class Messages:
    """The renderer to make environments of the cookbook with: a token is a byte of UTF-8, also in limits that an environment
    counts in tokens, and what its marks are is known here alone. Images, tools, their calls and prefilled replies raise
    `UnsupportedError`; parts that hold thoughts are left out."""

    tokenizer = SimpleNamespace(
        encode=lambda text, **_: list(text.encode()),
        decode=lambda tokens, **_: bytes(token for token in tokens if token < _ROLE).decode(errors="replace"),
    )

    def build_generation_prompt(
        self, messages: Sequence[Mapping[str, Any]], role: str = "assistant", prefill: str | None = None
    ) -> Any:
        """The messages, and that it is the player's turn."""
        if prefill:
            raise UnsupportedError(f"prefill={prefill!r}: the player's template begins its replies")
        tokens: list[int] = []
        for message in messages:
            tokens += [*_said(message)[0].encode(), _ROLE, *_said(message)[1].encode(), _END]
        return _theirs().Input.from_ints([*tokens, *role.encode(), _ROLE])

    def create_conversation_prefix_with_tools(self, tools: Sequence[Mapping[str, Any]], system_prompt: str = "") -> Any:
        """Raises `UnsupportedError`."""
        names = ", ".join(str(tool.get("name")) for tool in tools) or "none"
        raise UnsupportedError(
            f"tools ({names}) are not told to a player: write an environment of ours, with seat.tools(...)"
        )

    def get_stop_sequences(self) -> list[int]:
        """What ends a reply that its player ended."""
        return [_END]

    def parse_response(self, response: Sequence[int]) -> tuple[dict[str, str], Any]:
        """The reply as a message, and whether its player ended it."""
        ending = _theirs().Ending
        ended = bool(response) and response[-1] == _END
        text = self.tokenizer.decode(response)
        return {
            "role": "assistant",
            "content": text,
        }, ending.STOP_SEQUENCE if ended else ending.MALFORMED


def _said(message: Mapping[str, Any]) -> Said:
    """Of a message of theirs."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    other = {part["type"] for part in parts} - {"text", "thinking"} or (message.get("tool_calls") and {"tool calls"})
    if other:
        raise UnsupportedError(f"a message with {', '.join(sorted(other))}: only text is told to a player")
    return str(message["role"]), "".join(part["text"] for part in parts if part["type"] == "text")


def _read(tokens: Sequence[int]) -> list[Said]:
    """The messages that `Messages` wrote."""
    found: list[Said] = []
    piece, role = bytearray(), ""
    for token in tokens:
        if token == _ROLE:
            role, piece = piece.decode(), bytearray()
        elif token == _END:
            found.append((role, piece.decode()))
            piece = bytearray()
        elif token < _ROLE:
            piece.append(token)
        else:
            break
    if not tokens or tokens[-1] != _ROLE or role != "assistant":
        raise SettingError(_FOREIGN)
    return found


@dataclass(slots=True)
class _Game:
    """One of their environments, and the seat that plays it. `observed` is what it said last, in tokens."""

    env: Any
    seat: Seat
    known: list[Said] = field(default_factory=list[Said])
    observed: list[int] = field(default_factory=list[int])
    transitions: list[Any] = field(default_factory=list[Any])
    early: float = 0.0

    async def play(self) -> None:
        at = await effect(self.begin, timeout=_PATIENCE)
        if at["done"]:
            self.early = at["reward"]
            self._keep([], "stop", at)
        while not at["done"]:
            self.observed = at["observation"]
            self._tell(_read(self.observed))
            reply = await self.seat.ask(stop=at["stop"])
            self.known = [*self.known, ("assistant", reply.text)]
            stop = "length" if reply.stop == "length" else "stop"
            at = await effect(self.step, len(self.transitions), reply.text, stop, timeout=_PATIENCE)
            self.seat.reward(at["reward"])
            self._keep(_action(reply.text, stop), stop, at)
        self.observed = at["observation"]
        continued = sum(one.ac.stop_reason == "length" for one in self.transitions if not one.episode_done)
        self.transitions[-1].metrics.update({_CONTINUED: float(continued)} if continued else {})

    async def begin(self) -> dict[str, Any]:
        """What it says first; where that is over its own limit, the episode has ended with the reward that it names."""
        first = await self.env.initial_observation()
        if not isinstance(first, tuple):
            return {"done": True, "observation": [], **_result(first)}
        return {"done": False, **_waits(*first)}

    async def step(self, _: int, text: str, stop: str) -> dict[str, Any]:
        """What comes of a reply; its number tells it from others."""
        found = await self.env.step(_action(text, stop), extra={"stop_reason": stop})
        if found.episode_done:
            return {"done": True, "observation": list(found.next_observation.to_ints()), **_result(found)}
        return {"done": False, **_waits(found.next_observation, found.next_stop_condition), **_result(found)}

    @property
    def trajectory(self) -> Any:
        """As one of theirs."""
        ended = [one.removeprefix(_STOPPED) for one in self.transitions[-1].metrics if one.startswith(_STOPPED)]
        last = _input(self.observed)
        return _theirs().Trajectory(
            transitions=self.transitions, final_ob=last, stop_reason=ended[0] if ended else None
        )

    def _tell(self, messages: list[Said]) -> None:
        """What is new; in a context of its own where what was said before is told otherwise now."""
        if messages[: len(self.known)] != self.known:
            self.seat.new_context()
            self.known = [said for said in self.known if said[0] == "system"]
            if messages[: len(self.known)] != self.known:
                raise UnsupportedError("its system message changes within an episode")
        for role, text in messages[len(self.known) :]:
            if role == "system":
                self.seat.system(text)
            elif role in _ROLES:
                self.seat.conversation.append(Message(role=_ROLES[role], parts=(Text(text=text),)))
            else:
                raise UnsupportedError(
                    f"a message of the role {role!r}: must be of 'system', 'user', 'assistant' or 'tool'"
                )
        self.known = messages
        if not self.seat.conversation.awaits_reply:
            raise UnsupportedError(
                f"{type(self.env).__name__} asks for a reply without a message of the user's or a tool's before it; where it "
                "goes on after a reply that was cut, make it with terminate_on_length=True"
            )

    def _keep(self, action: list[int], stop: str, at: Mapping[str, Any]) -> None:
        self.transitions.append(
            _theirs().Transition(
                ob=_input(self.observed),
                ac=_theirs().Tokens(tokens=action, maybe_logprobs=None if action else [], stop_reason=stop),
                reward=at["reward"],
                episode_done=at["done"],
                metrics=at["metrics"],
                logs=at["logs"],
            )
        )


def _result(found: Any) -> dict[str, Any]:
    """Of a step, or of a first observation that is too long."""
    logs = {name: value if isinstance(value, int | float) else str(value) for name, value in found.logs.items()}
    return {"reward": float(found.reward), "metrics": _numbers(found.metrics), "logs": logs}


def _action(text: str, stop: str) -> list[int]:
    return [*text.encode(), *([] if stop == "length" else [_END])]


def _input(tokens: Sequence[int]) -> Any:
    return _theirs().Input.from_ints(tokens) if tokens else _theirs().Input.empty()


def _waits(observation: Any, stop: Sequence[str | int]) -> dict[str, Any]:
    """For an action."""
    strings = [one for one in stop if isinstance(one, str)]
    if len(strings) < len(stop) and list(stop) != [_END]:
        raise SettingError(f"{_FOREIGN}; it stops replies at the tokens {list(stop)!r}")
    return {"observation": list(observation.to_ints()), "stop": strings}


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric, over those that have it."""
    names = sorted({name for metrics in found for name in metrics})
    values = {name: [metrics[name] for metrics in found if name in metrics] for name in names}
    return {name: sum(all_) / len(all_) for name, all_ in values.items()}


def _check_limits(holders: Sequence[Any]) -> None:
    """Raises `UnsupportedError` where one names limits for its rollouts, which their own runner would keep."""
    for holder in holders:
        limits = getattr(holder, "rollout_limits", None)
        if limits is not None and limits != type(limits)():
            raise UnsupportedError(
                f"{type(holder).__name__} has rollout_limits={limits!r}, which nobody keeps here: leave them out, and limit "
                "replies by the policy's Sampling(max_tokens=...) and episodes by the run's episode_deadline"
            )


def _code(builder: Any) -> Iterator[Any]:
    """The class of a builder, and the functions and classes that it holds, also in lists and in `partial`."""
    yield type(builder)
    held = dict(vars(builder)) if hasattr(builder, "__dict__") else {}
    if is_dataclass(builder):
        held |= {one.name: getattr(builder, one.name) for one in fields(builder)}
    values = list(held.values())
    for value in values:  # which grows
        if isinstance(value, partial):
            values += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, list | tuple):
            values += [one for one in value if callable(one)]
        elif isfunction(value) or isclass(value):
            yield value
        elif ismethod(value):
            yield value.__func__


@dataclass(frozen=True, kw_only=True)
class CookbookEnvironment(Environment[int]):
    """What `cookbook_environment` makes. A task is the number of a builder."""

    builders: Sequence[Any]
    seats: tuple[str, ...] = ("player",)
    resumable: bool = False

    def __hash__(self) -> int:
        return hash((self.seats, len(self.builders)))

    def described(self) -> dict[str, Any]:
        tags = sorted({tag for builder in self.builders for tag in builder.logging_tags()})
        return {**super().described(), "builders": len(self.builders), "tags": tags}

    def fingerprint(self) -> dict[str, str]:
        """And the package's version, and of each kind of builder, and of what they make environments with, the source."""
        found = {"tinker-cookbook": ""}
        with suppress(PackageNotFoundError):
            found["tinker-cookbook"] = version("tinker-cookbook")
        code = {getattr(one, "__code__", one): one for builder in self.builders for one in _code(builder)}
        for one in code.values():
            found |= source_digests(one)
        return super().fingerprint() | found

    async def play(self, task: int, *players: Seat) -> Outcome:
        """One group. Its metrics: theirs, the mean over the steps and groups that have them."""
        (player,) = players
        builder = self.builders[task]
        try:
            return await self._played(builder, player)
        finally:
            if hasattr(builder, "cleanup"):
                with anyio.move_on_after(_PATIENCE, shield=True):
                    await builder.cleanup()

    async def _played(self, builder: Any, player: Seat) -> Outcome:
        envs = list(await builder.make_envs())
        _check_limits([builder, *envs])
        games = [_Game(env, player if len(envs) == 1 else player.fork()) for env in envs]
        await gather(*(game.play() for game in games))

        async def rewarded() -> list[tuple[float, dict[str, float]]]:
            given = await builder.compute_group_rewards([game.trajectory for game in games], envs)
            return [(float(reward), _numbers(metrics)) for reward, metrics in given]

        of_group = await effect(rewarded, timeout=_PATIENCE)
        rewards = {game.seat: game.early + reward for game, (reward, _) in zip(games, of_group, strict=True)}
        found = [one.metrics for game in games for one in game.transitions] + [metrics for _, metrics in of_group]
        return Outcome(rewards, metrics=_mean(found))


def cookbook_environment(dataset: Any) -> CookbookEnvironment:
    """The environments of tinker-cookbook (https://github.com/thinking-machines-lab/tinker-cookbook) that a dataset's builders
    make: one seat, `player`; tasks are the numbers of the builders, `range(len(environment.builders))`.

    dataset  an `RLDataset`, all of whose batches are asked for, or a sequence of `EnvGroupBuilder`; the environments that these
             make must have the renderer `Messages()`

    A builder's whole group is one episode, in which a fork of the seat plays each environment (the seat itself a single one):
    `compute_group_rewards` sees all of them, and `cleanup` follows, whatever happened. Play one episode a task, and compare
    within it, as the cookbook does: `grpo(compare={"player": "episode"})`, `Run(group_size=1)`. Steps and rewards are effects,
    so that they may ask judges; an episode that a crash cuts off begins again.

    What uses asyncio itself, as `EnvFromMessageEnv` does, plays on asyncio alone, as in `train`, not on trio. Rollout limits
    raise `UnsupportedError`, as does a missing package.
    """
    _theirs()
    if hasattr(dataset, "get_batch"):
        builders = [builder for index in range(len(dataset)) for builder in dataset.get_batch(index)]
    else:
        builders = list(dataset)
    unfit = [one for one in builders if not hasattr(one, "make_envs")]
    if not builders or unfit:
        raise SettingError(
            f"dataset={(unfit or [dataset])[0]!r}: give an RLDataset or a sequence of EnvGroupBuilder, not empty"
        )
    return CookbookEnvironment(builders=tuple(builders))
