"""A run's training episodes as a file of lines (`sparring.rollout.stored`), from its journal.

The journal holds what players said, and digests of what they were told. Whole conversations come from telling each episode
again with the environment and the tasks of the run's own file; without it, an episode is its players' replies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
from msgspec import UNSET

from sparring.agents import Frozen, Sample
from sparring.environments import Environment, FunctionEnvironment, Message, Reply, Seat, Turn, task_digest
from sparring.environments.plain import canonical
from sparring.errors import RunChanged, SettingError
from sparring.learner.described import plain, task_at
from sparring.learner.folder import written_whole
from sparring.learner.history import read_events
from sparring.learner.run import Run
from sparring.rollout import Schedule
from sparring.rollout.episode import EpisodePlan
from sparring.rollout.events import (
    QUARANTINED,
    Acted,
    Admitted,
    AnyEvent,
    Ended,
    Opened,
    Planned,
    SeatResult,
    Stepped,
)
from sparring.rollout.finished import Gathering, Past
from sparring.rollout.retold import replies, retold
from sparring.rollout.stored import (
    StoredConversation,
    StoredEpisode,
    StoredMessage,
    StoredResult,
    StoredTokens,
    line_of,
)
from sparring.rollout.trajectory import context_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """How many episodes were written, how many of them as replies alone, and how many had not ended."""

    episodes: int
    replies_alone: int
    under_way: int


def export(folder: Path, path: Path, *, run: Run | None = None, tokens: bool = False) -> Exported:
    """Write the training episodes of the run in `folder` that have ended to a new file, in the order of their ends.

    With `run`, whole conversations and the tasks' content; with `tokens`, token ids, masks and log-probs. Runs an event loop of
    its own. Raises `SettingError` where `path` is there already or the folder is no run's, `RunChanged` and `ReplayDiverged`
    where `run` is not what was played, `JournalError` where the disk is full.
    """
    if path.exists():
        raise SettingError(f"file {str(path)!r} is there already: name a new one")
    if not path.absolute().parent.is_dir():
        raise SettingError(f"file {str(path)!r}: its folder is not there; make it, or name another")
    steps = steps_of(read_events(folder))
    told = Telling(steps, run=run, tokens=tokens)
    with written_whole(path) as file:

        async def write() -> None:
            for event in read_events(folder):
                episode = await told.add(event)
                if episode is not None:
                    file.write(line_of(episode))

        anyio.run(write)
    return told.exported


def steps_of(events: Iterable[AnyEvent]) -> Mapping[int, Mapping[str, list[int]]]:
    """{group: {policy: the steps that trained on it}}."""
    planned: dict[str, Planned] = {}
    steps: dict[int, dict[str, list[int]]] = {}
    for event in events:
        if isinstance(event, Planned):
            planned[event.policy] = event
        elif isinstance(event, Stepped):
            plan = planned.pop(event.policy)
            for group in (*plan.groups, *plan.reused):
                steps.setdefault(group, {}).setdefault(event.policy, []).append(event.step)
    return steps


class Telling:
    """Turns a run's events, in the journal's order, into its episodes; `exported` counts them."""

    def __init__(self, steps: Mapping[int, Mapping[str, list[int]]], *, run: Run | None, tokens: bool) -> None:
        self._steps = steps
        self._run = run
        self._tokens = tokens
        self._described: Mapping[str, Any] = {}
        self._schedule = Schedule(sources=(), bounds={}, group_size=0, seed=0)
        self._gathering = Gathering(0)
        self._episodes = 0
        self._replies_alone = 0

    @property
    def exported(self) -> Exported:
        return Exported(episodes=self._episodes, replies_alone=self._replies_alone, under_way=self._gathering.under_way)

    async def add(self, event: AnyEvent) -> StoredEpisode | None:
        """The episode that ends with this event, if one does. Waits for its environment where it is told again."""
        if isinstance(event, Opened):
            self._open(event)
        finished = self._gathering.add(event)
        return None if finished is None else await self._stored(finished.admitted, finished.past, finished.ended)

    def _open(self, event: Opened) -> None:
        self._described = event.run
        self._schedule = msgspec.convert(event.run["schedule"], Schedule)
        self._gathering = Gathering(self._schedule.group_size)
        if self._run is not None and len(self._run.sources) != len(self._schedule.sources):
            raise RunChanged(
                f"run {self._run.name!r} has {len(self._run.sources)} training sources, the journal "
                f"{len(self._schedule.sources)}: name the file that the run was started with"
            )

    async def _stored(self, admitted: Admitted, past: Past, ended: Ended) -> StoredEpisode:
        episodes = self._described["episodes"][f"train/{admitted.source}"]
        lineup = self._schedule.sources[admitted.source].lineups[admitted.lineup]
        said = replies(past)
        ends_processes = ended.fault == QUARANTINED
        plan = None if ends_processes else self._plan(admitted, past, ended.member)
        conversations = _alone(said) if plan is None else _whole(await retold(plan, ended))
        self._episodes += 1
        self._replies_alone += plan is None
        return StoredEpisode(
            run=self._described["settings"]["name"],
            group=ended.group,
            member=ended.member,
            environment=episodes["environment"]["name"],
            source=admitted.source,
            index=admitted.index,
            task=admitted.task,
            content=UNSET if plan is None else msgspec.json.decode(canonical(plan.task)),
            lineup=admitted.lineup,
            players={**episodes["lineups"][admitted.lineup], **lineup, **_drawn(self._schedule, admitted)},
            trained={seat: policy for seat, policy in lineup.items() if policy in admitted.trained},
            steps={policy: list(steps) for policy, steps in self._steps.get(ended.group, {}).items()},
            whole=plan is not None,
            results=tuple(_result(one) for one in ended.results),
            metrics=ended.metrics,
            notes=ended.notes,
            fault=ended.fault,
            detail=ended.detail,
            conversations=_with_tokens(conversations, said) if self._tokens else tuple(conversations),
        )

    def _plan(self, admitted: Admitted, past: Past, member: int) -> EpisodePlan | None:
        """What tells the episode again; None where its replies alone can be told."""
        if self._run is None:
            return None
        where = f"train source {admitted.source}"
        source = self._run.sources[admitted.source]
        if not source.environment.resumable:
            return None
        task = task_at(source, admitted.index, where)
        if task_digest(task) != admitted.task:
            raise RunChanged(
                f"task {admitted.index} of {where} is not the one that group {admitted.group} was played with: name the file "
                f"that the run was started with"
            )
        return EpisodePlan(
            environment=self._environment(admitted.source),
            task=task,
            task_digest=admitted.task,
            agents={},
            trained=frozenset(),
            seed=self._schedule.seed,
            group=admitted.group,
            member=member,
            deadline=None,
            clock=False,
            past=tuple(past),
        )

    def _environment(self, source: int) -> Environment[Any]:
        """The run's environment, with the settings that it was played with."""
        assert self._run is not None
        environment = self._run.sources[source].environment
        settings = self._described["episodes"][f"train/{source}"]["environment"].get("settings", {})
        return environment(**settings) if isinstance(environment, FunctionEnvironment) else environment


def _drawn(schedule: Schedule, admitted: Admitted) -> dict[str, Any]:
    """{seat: who} of the members that leagues sent."""
    opponents = schedule.opponents(admitted.source, admitted.lineup)
    return {seat: plain(Frozen(opponents[seat].drawn(version))) for seat, version in admitted.opponents.items()}


def _result(result: SeatResult) -> StoredResult:
    return StoredResult(
        seat=result.seat,
        fork=result.fork,
        label=result.label,
        reward=result.value,
        unjudged=result.unjudged,
        turn_rewards=result.turn_rewards,
    )


def _whole(seats: Sequence[Seat]) -> list[StoredConversation]:
    """All contexts of the seats in which anything was said."""
    return [
        StoredConversation(
            seat=conversation.place.seat,
            fork=conversation.place.fork,
            context=conversation.place.context,
            inherited=conversation.inherited,
            messages=tuple(_message(entry) for entry in conversation.entries),
        )
        for root in seats
        for seat in root.family
        for conversation in seat.contexts
        if conversation.entries
    ]


def _message(entry: Message | Turn) -> StoredMessage:
    if isinstance(entry, Message):
        return StoredMessage(role=entry.role, content=entry.text)
    return _reply(entry.reply, entry.number, entry.record.versions if isinstance(entry.record, Sample) else ())


def _reply(reply: Reply, turn: int, versions: Sequence[tuple[int, int]]) -> StoredMessage:
    return StoredMessage(
        role="assistant",
        content=reply.text,
        reasoning=reply.reasoning,
        tool_calls=reply.tool_calls,
        stop=reply.stop,
        turn=turn,
        versions=tuple((version, count) for version, count in versions),
    )


def _alone(said: Sequence[Acted]) -> list[StoredConversation]:
    """The replies of each seat, fork and context."""
    found: dict[tuple[str, str, int], list[StoredMessage]] = {}
    for event in said:
        assert event.reply is not None
        versions = event.sample.versions if event.sample is not None else ()
        message = _reply(event.reply, event.turn, versions)
        found.setdefault((event.seat, event.fork, event.context), []).append(message)
    return [
        StoredConversation(seat=seat, fork=fork, context=context, messages=tuple(messages))
        for (seat, fork, context), messages in found.items()
    ]


def _with_tokens(conversations: Sequence[StoredConversation], said: Sequence[Acted]) -> tuple[StoredConversation, ...]:
    samples: dict[tuple[str, str, int], list[tuple[int, Sample]]] = {}
    for event in said:
        if event.sample is not None:
            place = (event.seat, event.fork, event.context)
            samples.setdefault(place, []).append((event.turn, event.sample.unpacked()))
    tokens = {place: StoredTokens.of(context_of(made)) for place, made in samples.items()}
    return tuple(
        msgspec.structs.replace(one, tokens=tokens.get((one.seat, one.fork, one.context))) for one in conversations
    )
