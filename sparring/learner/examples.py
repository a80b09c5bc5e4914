"""What is imitated or preferred, as tokens, and where it comes from: files, scripted play, the journal of a run.

A source gives items; an item is one `Example` to be imitated, or two of which the first is preferred. Letter: `T` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import anyio.to_thread
import msgspec
import numpy as np

from sparring.agents import Frozen, League
from sparring.agents.policy import merged
from sparring.arrays import I32, Bools
from sparring.backend import Datum, Renderer, reply_tokens
from sparring.backend.messages import check_messages
from sparring.backend.renderer import RenderedMessage
from sparring.environments import Conversation, Message, Turn, size, task_digest
from sparring.errors import SettingError
from sparring.learner.described import task_at
from sparring.learner.history import read_events
from sparring.learner.run import Episodes
from sparring.rollout import Schedule, Trajectory, trajectories
from sparring.rollout.episode import Episode, EpisodePlan, run_episode
from sparring.rollout.events import Acted, Affected, Opened
from sparring.rollout.finished import Gathering
from sparring.rollout.play import agent_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A context i32[T] and which of its tokens are learned, bool[T]; `where` it comes from, for messages."""

    tokens: I32
    mask: Bools
    where: str

    @property
    def datum(self) -> Datum:
        """With weight 1 at each token that is learned."""
        zeros = np.zeros(len(self.tokens), np.float32)
        weights = self.mask.astype(np.float32)
        return Datum(tokens=self.tokens, mask=self.mask, logprobs=zeros, advantages=zeros, weights=weights)

    @property
    def digest(self) -> str:
        """Hex sha256 of tokens and mask."""
        return sha256(self.tokens.astype("<i4").tobytes() + self.mask.tobytes()).hexdigest()


Item = tuple[Example, ...]


@runtime_checkable
class Source(Protocol):
    """Where items come from; `width` is how many examples each has."""

    @property
    def width(self) -> int: ...
    async def items(self, renderer: Renderer) -> list[Item]:
        """All of them, in an order that is always the same, rendered as the model reads. Waits for files and for play."""
        ...


@dataclass(frozen=True, slots=True)
class Lines:
    """A UTF-8 file of one JSON object a line: {"messages": [{"role", "content"}, ...]}, of which every turn of the assistant is
    learned (the last alone with `last`), or {"prompt": text or messages, "completion": text}."""

    path: str | Path
    last: bool = False

    @property
    def width(self) -> int:
        return 1

    async def items(self, renderer: Renderer) -> list[Item]:
        rows = await anyio.to_thread.run_sync(_rows, self.path)
        return [(self._example(row, where, renderer),) for where, row in rows]

    def _example(self, row: Mapping[str, Any], where: str, renderer: Renderer) -> Example:
        if set(row) == {"messages"}:
            messages = _messages(row["messages"], where, "messages")
            return _rendered(messages, renderer, where, last=self.last)
        if set(row) == {"prompt", "completion"}:
            prompt = _prompt(row["prompt"], where)
            return _rendered([*prompt, _reply(row["completion"], where, "completion")], renderer, where, last=True)
        raise SettingError(
            f"{where}: an object with the keys {sorted(row)!r}: must be messages alone, or prompt and completion"
        )


@dataclass(frozen=True, slots=True)
class Pairs:
    """A UTF-8 file of one JSON object a line: {"prompt": text or messages, "chosen": text, "rejected": text}."""

    path: str | Path

    @property
    def width(self) -> int:
        return 2

    async def items(self, renderer: Renderer) -> list[Item]:
        rows = await anyio.to_thread.run_sync(_rows, self.path)
        return [self._pair(row, where, renderer) for where, row in rows]

    def _pair(self, row: Mapping[str, Any], where: str, renderer: Renderer) -> Item:
        if set(row) != {"prompt", "chosen", "rejected"}:
            raise SettingError(f"{where}: an object with the keys {sorted(row)!r}: must be prompt, chosen and rejected")
        prompt = _prompt(row["prompt"], where)
        chosen, rejected = (_reply(row[name], where, name) for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise SettingError(f"{where}: chosen and rejected are both {chosen['content']!r}: leave the line out")
        return tuple(_rendered([*prompt, reply], renderer, where, last=True) for reply in (chosen, rejected))


@dataclass(frozen=True, slots=True)
class Played:
    """Every task of `episodes` played once by their line-ups, which seat no policy; what the `seats` say is learned (None: all
    of them), where it got at least the reward `at_least` (None: whatever it got)."""

    episodes: Episodes
    seats: Sequence[str] | None = None
    at_least: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        name = self.episodes.environment.name
        if size(self.episodes.tasks) is None:
            raise SettingError(f"Played({name}): its tasks are endless; give a finite list")
        for seat in self.seats or ():
            if seat not in self.episodes.environment.seats:
                known = ", ".join(self.episodes.environment.seats)
                raise SettingError(f"Played({name}): seats={self.seats!r}: no seat {seat!r}; it has {known}")
        for lineup in self.episodes.lineups:
            for seat in self.episodes.environment.seats:
                player = lineup.players.get(seat)
                if player is None or isinstance(player, str | Frozen | League):
                    raise SettingError(
                        f"Played({name}): seat {seat!r} is played by {player!r}: there is no policy here; seat Scripted(fn)"
                    )

    @property
    def width(self) -> int:
        return 1

    async def items(self, renderer: Renderer) -> list[Item]:
        count = size(self.episodes.tasks)
        assert count is not None
        found: list[Item] = []
        for number in range(count * len(self.episodes.lineups)):
            found += [(one,) for one in await self._episode(number, renderer)]
        return found

    async def _episode(self, number: int, renderer: Renderer) -> list[Example]:
        index, lineup = divmod(number, len(self.episodes.lineups))
        environment, players = self.episodes.environment, self.episodes.lineups[lineup].players
        where = f"task {index} of {environment.name}"
        task = task_at(self.episodes, index, environment.name)
        plan = EpisodePlan(
            environment=environment,
            task=task,
            task_digest=task_digest(task),
            agents={seat: agent_of(seat, player) for seat, player in players.items()},
            trained=frozenset(),
            seed=self.seed,
            group=index,
            member=lineup,
            deadline=None,
        )
        ended, seats = await run_episode(Episode(plan, _nobody_told), plan)
        if ended.fault:
            raise SettingError(f"{where} failed as it was played: {ended.detail.strip().splitlines()[-1]}")
        rewards = {(result.seat, result.fork): result.value for result in ended.results}
        least = self.at_least
        return [
            _told(conversation, renderer, where)
            for root in seats
            if self.seats is None or root.name in self.seats
            for seat in root.family
            for conversation in seat.contexts
            if any(isinstance(entry, Turn) for entry in conversation.entries[conversation.inherited :])
            if least is None or _reached(rewards.get((root.name, conversation.place.fork)), least)
        ]


@dataclass(frozen=True, slots=True)
class Best:
    """What a policy said in the training episodes of a run: in each group, the `per_group` trajectories of the highest reward
    (the first to be played, where several have it), if it is at least `at_least` (rejection sampling, as in RAFT,
    arXiv 2304.06767). The very tokens that were sampled."""

    folder: str | Path
    at_least: float
    per_group: int = 1
    policy: str = "policy"

    def __post_init__(self) -> None:
        if not isinstance(self.per_group, int) or isinstance(self.per_group, bool) or self.per_group < 1:
            raise SettingError(f"Best(per_group={self.per_group!r}): must be a whole number, at least 1")

    @property
    def width(self) -> int:
        return 1

    async def items(self, renderer: Renderer) -> list[Item]:
        made = await anyio.to_thread.run_sync(self._trajectories, renderer.fingerprint)
        return [(one,) for group in sorted(made) for one in self._chosen(made[group])]

    def _chosen(self, made: Sequence[Trajectory]) -> Iterator[Example]:
        good = [one for one in made if one.reward >= self.at_least]
        ranked = sorted(good, key=lambda one: (-one.reward, one.episode, one.seat, one.fork))
        for one in ranked[: self.per_group]:
            where = f"group {one.group}, episode {one.episode} of {self.folder}"
            for context in one.contexts:
                yield Example(tokens=context.tokens, mask=context.action_mask, where=where)

    def _trajectories(self, fingerprint: str) -> dict[int, list[Trajectory]]:
        """By group, from the journal."""
        schedule, gathering = Schedule(sources=(), bounds={}, group_size=0, seed=0), Gathering(0)
        made: dict[int, list[Trajectory]] = {}
        for event in read_events(Path(self.folder)):
            if isinstance(event, Opened):
                schedule = msgspec.convert(event.run["schedule"], Schedule)
                gathering = Gathering(schedule.group_size)
                self._check(event, schedule, fingerprint)
            finished = gathering.add(event)
            if finished is not None and not finished.ended.fault:
                admitted = finished.admitted
                seats = schedule.sources[admitted.source].lineups[admitted.lineup]
                acted = [one for one in finished.past if isinstance(one, Acted)]
                mine = [one for one in trajectories(acted, finished.ended, seats) if one.policy == self.policy]
                made.setdefault(admitted.group, []).extend(mine)
        return made

    def _check(self, event: Opened, schedule: Schedule, fingerprint: str) -> None:
        if self.policy not in schedule.bounds:
            known = ", ".join(schedule.bounds)
            raise SettingError(f"Best(policy={self.policy!r}): the run in {str(self.folder)!r} has {known}")
        if event.run["fingerprints"].get(f"renderer of {self.policy}") != fingerprint:
            raise SettingError(
                f"Best({str(self.folder)!r}): its tokens are those of another tokenizer or template; train the model that the "
                f"run trained, or export the run and give its texts as Lines"
            )


def _reached(reward: float | None, least: float) -> bool:
    return reward is not None and reward >= least


def _told(conversation: Conversation, renderer: Renderer, where: str) -> Example:
    """One context of a seat as a policy would have it: what it was told as it was told, its own turns learned."""
    turns: list[tuple[Sequence[RenderedMessage], str, bool]] = []
    fresh: list[Message] = []
    for number, entry in enumerate(conversation.entries):
        if isinstance(entry, Message):
            fresh.append(entry)
        else:
            turns.append((merged(fresh), entry.reply.text, number >= conversation.inherited))
            fresh = []
    return _joined(turns, renderer, where)


def _rendered(messages: Sequence[RenderedMessage], renderer: Renderer, where: str, *, last: bool) -> Example:
    """A conversation that ends with the assistant; `last`: what it says before is not learned."""
    if not messages or messages[-1]["role"] != "assistant":
        raise SettingError(
            f"{where}: the conversation does not end with the assistant, whose turns are learned; cut it there"
        )
    turns: list[tuple[Sequence[RenderedMessage], str, bool]] = []
    fresh: list[RenderedMessage] = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            turns.append((fresh, message["content"], not last or number == len(messages) - 1))
            fresh = []
        else:
            fresh.append(message)
    return _joined(turns, renderer, where)


def _joined(turns: Sequence[tuple[Sequence[RenderedMessage], str, bool]], renderer: Renderer, where: str) -> Example:
    """(what was told, what is said to it, whether that is learned), as a policy would have rendered and sampled it."""
    pieces: list[I32] = []
    learned: list[bool] = []
    if not turns[0][0]:
        raise SettingError(f"{where}: the conversation begins with the assistant; put what it answers before it")
    for told, said, mine in turns:
        prompt = renderer.start(told) if not pieces else renderer.extend(told, pieces[-1])
        pieces += [prompt, reply_tokens(renderer, said)]
        learned += [False, mine]
    mask = np.repeat(np.array(learned, np.bool_), [len(piece) for piece in pieces])
    return Example(tokens=np.concatenate(pieces), mask=mask, where=where)


def _rows(path: str | Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(which line, its object) of each line that is not empty."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(f"examples file {str(path)!r}: {error.strerror}") from error
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                rows.append((where, msgspec.json.decode(line, type=dict[str, Any])))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SettingError(f"{where}: {error}") from error
    return rows


def _messages(value: Any, where: str, name: str) -> list[RenderedMessage]:
    try:
        messages: list[RenderedMessage] = [*msgspec.convert(value, list[dict[str, str]])]
        check_messages(messages)
    except (msgspec.ValidationError, SettingError) as error:
        raise SettingError(f"{where}: {name} must be a list of messages with role and content: {error}") from error
    return messages


def _prompt(value: Any, where: str) -> list[RenderedMessage]:
    return [{"role": "user", "content": value}] if isinstance(value, str) else _messages(value, where, "prompt")


def _reply(value: Any, where: str, name: str) -> RenderedMessage:
    if not isinstance(value, str):
        raise SettingError(f"{where}: {name} is {value!r}: must be text, what the assistant says")
    return {"role": "assistant", "content": value}


async def _nobody_told(event: Acted | Affected) -> None:
    """Scripted play has no journal."""
