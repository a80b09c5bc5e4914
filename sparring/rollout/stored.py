"""Episodes outside a journal: one JSON object a line, for whoever studies or trains on them elsewhere, and back again.

What is read equals what was written, bit for bit; a `StoredEpisode` with its tokens gives the very trajectories that a
learner was given. `SCHEMA` is the version of these lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from sparring.environments.conversation import ToolSpec
from sparring.environments.reply import StopReason, ToolCall
from sparring.errors import SettingError
from sparring.rollout.trajectory import Context, Trajectory

SCHEMA = 2
_LARGEST = float(np.finfo(np.float32).max)
_I16, _I32 = int(np.iinfo(np.int16).max), int(np.iinfo(np.int32).max)


class Stored(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The base of these records: a field that is not theirs is refused."""


class StoredMessage(Stored, frozen=True, kw_only=True):
    """Something a seat was told (`tool`: the answer to a call), or its own reply (`assistant` with a `turn`), which alone has
    what follows `content`; an `assistant` without a turn is what others said in its name, with their calls.

    turn      which of the seat's replies it is, from 0
    versions  runs (version, tokens): which weights made it; none of a player that samples no tokens
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop: StopReason | UnsetType = UNSET
    turn: int | UnsetType = UNSET
    versions: tuple[tuple[int, int], ...] = ()


class StoredTokens(Stored, frozen=True, kw_only=True):
    """The T tokens of one conversation; each list has T items. `mask` is 1 where the player sampled the token: there `logprobs`
    are those under the distribution sampled from (elsewhere 0), `versions` and `turns` say which weights made it and in which
    reply (elsewhere -1)."""

    tokens: list[int]
    mask: list[Literal[0, 1]]
    logprobs: list[float]
    versions: list[int]
    turns: list[int]
    temperature: float

    @staticmethod
    def of(context: Context) -> StoredTokens:
        if not np.isfinite(context.logprobs).all():
            raise SettingError("a log-prob is not finite, which no JSON file can hold: export without tokens")
        return StoredTokens(
            tokens=context.tokens.tolist(),
            mask=context.action_mask.astype(np.int8).tolist(),
            logprobs=context.logprobs.tolist(),
            versions=context.versions.tolist(),
            turns=context.turn.tolist(),
            temperature=context.temperature,
        )

    def context(self) -> Context:
        """The same as a learner has it."""
        return Context(
            tokens=np.array(self.tokens, np.int32),
            action_mask=np.array(self.mask, np.bool_),
            logprobs=np.array(self.logprobs, np.float32),
            versions=np.array(self.versions, np.int32),
            turn=np.array(self.turns, np.int16),
            temperature=self.temperature,
        )

    def check(self) -> None:
        """Raises `ValueError`, naming the field, for what no sampler gives."""
        for name in ("mask", "logprobs", "versions", "turns"):
            count = len(getattr(self, name))
            if count != len(self.tokens):
                raise ValueError(f"{count} {name} for {len(self.tokens)} tokens")
        if not all(abs(value) <= _LARGEST for value in self.logprobs):
            raise ValueError("logprobs beyond what a float holds")
        for sampled, version, turn, logprob in zip(self.mask, self.versions, self.turns, self.logprobs, strict=True):
            if not (min(version, turn) >= 0 if sampled else version == turn == -1 and logprob == 0):
                raise ValueError("versions and turns must be at least 0 where mask is 1, elsewhere -1, and logprobs 0")
        for name, values, most in (
            ("tokens", self.tokens, _I32),
            ("versions", self.versions, _I32),
            ("turns", self.turns, _I16),
        ):
            if max(values, default=0) > most or (name == "tokens" and min(values, default=0) < 0):
                raise ValueError(f"{name} outside 0 to {most}")


class StoredConversation(Stored, frozen=True, kw_only=True):
    """One context of a seat, or of a fork of it. The first `inherited` messages are those that a fork took over: its past, said
    by the seat that it was made from. `tools` are those that it could call."""

    seat: str
    fork: str = ""
    context: int = 0
    inherited: int = 0
    tools: tuple[ToolSpec, ...] = ()
    messages: tuple[StoredMessage, ...] = ()
    tokens: StoredTokens | None = None


class StoredResult(Stored, frozen=True, kw_only=True):
    """What a seat or fork got: its return, or why it has none, and the rewards of its turns (parts of the return)."""

    seat: str
    fork: str = ""
    label: str = ""
    reward: float | None = None
    unjudged: str = ""
    turn_rewards: dict[int, float] = {}


class StoredEpisode(Stored, frozen=True, kw_only=True):
    """One training episode that ended. (run, group, member) names it.

    environment   its name; `source` is which `Episodes` of the run it belongs to
    index, task   which of the source's tasks, and the digest of its content; `content` is the task itself, where it is told
    lineup        which line-up; `players` says who played each seat, `trained` is {seat: policy} of those that learn
    steps         {policy: the steps that trained on it}; a policy that is not there did not
    whole         whether `messages` are whole conversations; else they are the players' replies alone
    fault         how it failed, if it did (then there are results only where failed episodes are scored), and `detail`
    """

    schema: int = msgspec.field(default_factory=lambda: SCHEMA)  # by a factory, as a plain default would not be written
    run: str
    group: int
    member: int
    environment: str
    source: int
    index: int
    task: str
    content: Any = UNSET
    lineup: int
    players: dict[str, Any]
    trained: dict[str, str]
    steps: dict[str, list[int]] = {}
    whole: bool
    results: tuple[StoredResult, ...] = ()
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}
    fault: str = ""
    detail: str = ""
    conversations: tuple[StoredConversation, ...] = ()

    def trajectories(self) -> list[Trajectory]:
        """What a learner trains on: the judged seats and forks of its policies, as the run itself had them. Raises
        `SettingError` where the episode was stored without its tokens."""
        made: list[Trajectory] = []
        for result in sorted(self.results, key=lambda result: (result.seat, result.fork)):
            policy = self.trained.get(result.seat)
            mine = [one for one in self.conversations if (one.seat, one.fork) == (result.seat, result.fork)]
            mine = [one for one in mine if any(message.versions for message in one.messages[one.inherited :])]
            if policy is not None and result.reward is not None and mine:
                made.append(self._trajectory(result, result.reward, policy, mine))
        return made

    def _trajectory(
        self, result: StoredResult, reward: float, policy: str, mine: Sequence[StoredConversation]
    ) -> Trajectory:
        contexts: list[Context] = []
        mine = sorted(mine, key=lambda one: one.context)
        for one in mine:
            if one.tokens is None:
                raise SettingError(
                    f"group {self.group}, episode {self.member}: seat {one.seat!r} has no tokens: export with --tokens"
                )
            contexts.append(one.tokens.context())
        turn_rewards = np.zeros(max(int(context.turn.max()) for context in contexts) + 1, np.float32)
        for turn, value in result.turn_rewards.items():
            if not 0 <= turn < len(turn_rewards):
                raise SettingError(
                    f"group {self.group}, episode {self.member}: a reward for turn {turn} of seat {result.seat!r}, which has "
                    f"{len(turn_rewards)} turns"
                )
            turn_rewards[turn] = value
        last = [message for one in mine for message in one.messages[one.inherited :] if message.versions][-1]
        return Trajectory(
            contexts=tuple(contexts),
            reward=float(np.float32(reward)),
            turn_rewards=turn_rewards,
            policy=policy,
            seat=result.seat,
            fork=result.fork,
            label=result.label,
            group=self.group,
            episode=self.member,
            truncated=last.stop == "length",
        )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StoredEpisode)


def line_of(episode: StoredEpisode) -> bytes:
    """The episode as a line of its file."""
    return _encoder.encode(episode) + b"\n"


def read_episodes(path: str | Path) -> Iterator[StoredEpisode]:
    """The episodes in a file of such lines, one after the other; empty lines are none.

    Raises `SettingError` naming file, line and field for what is no such episode.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _checked(line, f"{path}, line {number}")
    except OSError as error:
        raise SettingError(f"episodes file {str(path)!r}: {error.strerror}") from error


def episodes_to_trajectories(episodes: Iterable[StoredEpisode]) -> Iterator[Trajectory]:
    """The trajectories of all of them, in order."""
    for episode in episodes:
        yield from episode.trajectories()


class _Version(msgspec.Struct):
    schema: int = SCHEMA


def _checked(line: bytes, where: str) -> StoredEpisode:
    try:
        version = msgspec.json.decode(line, type=_Version).schema
        if version > SCHEMA:
            raise SettingError(f"{where}: schema {version}, this sparring reads up to {SCHEMA}: use the newer one")
        episode = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingError(f"{where}: {error}") from error
    for index, conversation in enumerate(episode.conversations):
        name = f"$.conversations[{index}]"
        if not 0 <= conversation.inherited <= len(conversation.messages):
            raise SettingError(
                f"{where}: inherited={conversation.inherited!r} of {len(conversation.messages)} messages - at `{name}`"
            )
        if conversation.tokens is not None:
            try:
                conversation.tokens.check()
            except ValueError as error:
                raise SettingError(f"{where}: {error} - at `{name}.tokens`") from error
    return episode
