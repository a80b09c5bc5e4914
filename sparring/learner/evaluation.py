"""Evaluations apart from training: held-out episodes played several times by whoever is to be measured, kept line by line.

The file has a line that says what is measured, then one for each episode that ended. Whoever is interrupted goes on with the
episodes that it lacks; each is seeded by set, task and attempt alone, the first as in the run's own evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from sparring.agents import Agent, Player, name_of
from sparring.environments import Seat, size, task_digest
from sparring.errors import JournalError, RunChanged, SettingError
from sparring.learner.described import described_episodes, differences, task_at, tasks_fingerprint
from sparring.learner.history import Estimate
from sparring.learner.pass_at_k import means, passes
from sparring.learner.run import Episodes
from sparring.rollout import Slots
from sparring.rollout.episode import Episode, EpisodePlan, clean, run_episode, seeded
from sparring.rollout.events import Acted, Affected, Ended
from sparring.rollout.play import transcript


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One episode: which it is, what each seat and fork (`seat/1`) got or why it got nothing, and all that was said."""

    held_out: str
    task: int
    attempt: int
    rewards: dict[str, float] = {}
    unjudged: dict[str, str] = {}
    metrics: dict[str, float] = {}
    fault: str = ""
    detail: str = ""
    transcripts: dict[str, list[tuple[str, str]]] = {}


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    about: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """A held-out set as it is played: who sits where, which seats are measured, and the highest temperature at which anybody's
    replies are drawn."""

    episodes: Episodes
    agents: Mapping[str, Agent]
    measured: Sequence[str]
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is played and how.

    who         what is measured, as data: where its weights are from
    sittings    by the name of the held-out set
    attempts    at each task
    tasks       None: all; or the first so many of each set
    concurrent  episodes at once
    deadline    seconds after which an episode is given up, without a verdict
    """

    who: Mapping[str, Any]
    sittings: Mapping[str, Sitting]
    attempts: int = 1
    tasks: int | None = None
    seed: int = 0
    concurrent: int = 64
    deadline: float = 600.0

    def __post_init__(self) -> None:
        for name in ("attempts", "concurrent"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)!r}: must be at least 1")
        if self.tasks is not None and self.tasks < 1:
            raise SettingError(f"tasks={self.tasks!r}: must be at least 1, or None for all")
        for name, sitting in self.sittings.items():
            if size(sitting.episodes.tasks) is None:
                raise SettingError(f"held-out {name!r} is endless: give a finite list of tasks")
            if self.attempts > 1 and sitting.temperature == 0:
                raise SettingError(
                    f"attempts={self.attempts!r} of greedy play in held-out {name!r}: all of them would be the same; give a "
                    f"temperature above 0"
                )

    def count(self, name: str) -> int:
        """How many tasks of a set are played."""
        there = size(self.sittings[name].episodes.tasks)
        assert there is not None
        return there if self.tasks is None else min(self.tasks, there)

    def described(self) -> dict[str, Any]:
        """What another evaluation must be to go on in the same file: everything but how many attempts and tasks."""
        sets = {
            name: {
                **described_episodes(sitting.episodes),
                "fingerprint": sitting.episodes.environment.fingerprint(),
                "content": tasks_fingerprint(sitting.episodes),
            }
            for name, sitting in self.sittings.items()
        }
        plain: dict[str, Any] = msgspec.to_builtins({"who": dict(self.who), "sets": sets, "seed": self.seed})
        return plain


async def evaluate_apart(
    evaluation: Evaluation, path: Path, *, tell: Callable[[int, int], None] = lambda done, all_: None
) -> list[Told]:
    """Play what the file lacks; returns all its episodes that were asked for. `tell` is told how many are there, of how many.

    Waits for slots and players. Raises `RunChanged` where the file is of another evaluation, `JournalError` where it cannot be
    written.
    """
    about = await anyio.to_thread.run_sync(evaluation.described)
    there = await anyio.to_thread.run_sync(_begin, path, about)
    wanted = [
        (name, task, attempt)
        for name in evaluation.sittings
        for task in range(evaluation.count(name))
        for attempt in range(evaluation.attempts)
    ]
    slots, writing = Slots(evaluation.concurrent), anyio.Lock()
    found = {key: there[key] for key in wanted if key in there}
    tell(len(found), len(wanted))

    async def one(order: int, key: tuple[str, int, int]) -> None:
        async with slots.at((order,)):
            told = await _played(evaluation, *key)
        async with writing:
            await anyio.to_thread.run_sync(_append, path, msgspec.json.encode(told))
        found[key] = told
        tell(len(found), len(wanted))

    async with anyio.create_task_group() as group:
        for order, key in enumerate(wanted):
            if key not in found:
                group.start_soon(one, order, key)
    return [found[key] for key in wanted]


async def _played(evaluation: Evaluation, name: str, index: int, attempt: int) -> Told:
    plan = episode_plan(
        name, evaluation.sittings[name], index, attempt, seed=evaluation.seed, deadline=evaluation.deadline
    )
    ended, seats = await run_episode(Episode(plan, nobody_told), plan)
    return episode_told(name, ended, seats)


def episode_plan(
    name: str, sitting: Sitting, index: int, attempt: int, *, seed: int, deadline: float | None
) -> EpisodePlan:
    """An attempt at a task of a set: its luck is that of set, task and attempt."""
    task = task_at(sitting.episodes, index, f"held-out {name!r}")
    return EpisodePlan(
        environment=sitting.episodes.environment,
        task=task,
        task_digest=task_digest(task),
        agents=sitting.agents,
        trained=frozenset(),
        seed=seeded(seed, "held-out", name),
        group=index,
        member=attempt,
        deadline=deadline,
    )


def episode_told(name: str, ended: Ended, seats: Sequence[Seat]) -> Told:
    """An episode of a set that has ended, as it is kept."""
    results = [(f"{one.seat}/{one.fork}" if one.fork else one.seat, one) for one in ended.results]
    return Told(
        held_out=name,
        task=ended.group,
        attempt=ended.member,
        rewards={key: one.value for key, one in results if one.value is not None},
        unjudged={key: one.unjudged for key, one in results if one.value is None},
        metrics=ended.metrics,
        fault=ended.fault,
        detail=ended.detail,
        transcripts={
            seat.key: [(who, clean(text)) for who, text in transcript(seat)] for root in seats for seat in root.family
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a seat earned in a set, or the environment's headline metric there (`seat` names it), with 95 % intervals over
    tasks; `against` whom. `failed` episodes had no verdict."""

    held_out: str
    seat: str
    against: str
    mean: Estimate | None
    passed: Mapping[int, Estimate | None]
    failed: int


def scores(evaluation: Evaluation, told: Sequence[Told], ks: Sequence[int], success: float) -> list[Score]:
    """One for each set and each seat that is measured, and for each headline metric. Raises `SettingError` for a k beyond the
    attempts."""
    for k in ks:
        if not 1 <= k <= evaluation.attempts:
            raise SettingError(
                f"pass@{k} with attempts={evaluation.attempts!r}: k must be from 1 to the attempts at a task"
            )
    found: list[Score] = []
    for name, sitting in evaluation.sittings.items():
        mine = [one for one in told if one.held_out == name]
        headline = sitting.episodes.environment.headline
        whom: list[tuple[str, str]] = [(seat, against(sitting, seat)) for seat in sitting.measured]
        for what, others in [*whom, *([(headline, "")] if headline else [])]:
            rows: list[list[float | None]] = [[] for _ in range(evaluation.count(name))]
            for one in mine:
                values = one.metrics if others == "" and what == headline else one.rewards
                rows[one.task].append(None if one.fault else values.get(what))
            found.append(_score(name, what, others, rows, ks, success))
    return found


def against(sitting: Sitting, seat: str) -> str:
    """Who plays the other seats."""
    players: Mapping[str, Player] = sitting.episodes.lineups[0].players
    others = [other for other in sitting.episodes.environment.seats if other != seat]
    return ", ".join(f"{other}: {name_of(players.get(other, 'itself'))}" for other in others)


def _score(
    name: str, seat: str, others: str, rows: Sequence[Sequence[float | None]], ks: Sequence[int], success: float
) -> Score:
    return Score(
        held_out=name,
        seat=seat,
        against=others,
        mean=means(rows),
        passed={k: passes(rows, k, success) for k in ks},
        failed=sum(value is None for row in rows for value in row),
    )


def _begin(path: Path, about: Mapping[str, Any]) -> dict[tuple[str, int, int], Told]:
    """The episodes in the file, which is begun where it is not there; what a crash cut off is cut off."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.encode(_About(about=dict(about))) + b"\n")
            return {}
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        first, *lines = whole.splitlines()
        before = msgspec.json.decode(first, type=_About).about
        told = [msgspec.json.decode(line, type=Told) for line in lines]
    except (ValueError, msgspec.MsgspecError) as error:
        raise SettingError(f"{path} is no file of an evaluation ({error}): name another") from error
    changed = list(differences(before, msgspec.json.decode(msgspec.json.encode(about))))
    if changed:
        raise RunChanged(f"{path} was begun with {'; '.join(changed)}: use the same, or another file")
    return {(one.held_out, one.task, one.attempt): one for one in told}


def _append(path: Path, line: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(line + b"\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> JournalError:
    return JournalError(f"{str(path)!r} cannot be written: {error.strerror}; free some disk space and go on")


async def nobody_told(event: Acted | Affected) -> None:
    """Whoever keeps the episode gets it when it has ended."""
