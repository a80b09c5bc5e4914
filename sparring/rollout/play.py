"""One episode without a run: for tests, notebooks and `sparring play`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread

from sparring.agents import (
    Agent,
    External,
    Frozen,
    Human,
    HumanAgent,
    League,
    Lineup,
    Player,
    Scripted,
    ScriptedAgent,
    name_of,
)
from sparring.environments import Environment, Message, Seat, settle, task_digest
from sparring.errors import SettingError
from sparring.rollout.episode import Episode, EpisodePlan, open_seats, played
from sparring.rollout.events import Acted, Affected


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One episode's `rewards` by seat (forks as `seat/1`), `metrics`, and `transcripts`: per conversation, (who, text)
    in order."""

    rewards: Mapping[str, float]
    unjudged: Mapping[str, str]
    metrics: Mapping[str, float]
    notes: Mapping[str, str]
    transcripts: Mapping[str, Sequence[tuple[str, str]]]


async def play(
    environment: Environment[Any], task: Any, lineup: Lineup | Mapping[str, Player], *, seed: int = 0
) -> Finished:
    """Play one episode and settle it. Whatever the environment raises is raised.

    `lineup` names a player for every seat; names of policies need a run and are refused here (`SettingError`).
    """
    chosen = lineup if isinstance(lineup, Lineup) else Lineup(lineup)
    agents = {seat: agent_of(seat, player) for seat, player in chosen.resolved(environment.seats, ()).items()}
    plan = EpisodePlan(
        environment=environment,
        task=task,
        task_digest=task_digest(task),
        agents=agents,
        trained=frozenset(),
        seed=seed,
        group=0,
        member=0,
        deadline=None,
    )
    episode = Episode(plan, _keep_nothing)
    seats = open_seats(episode, plan)
    returned = await played(episode, plan, seats)
    settled = settle(returned, seats, trained=environment.seats, zero_sum=environment.zero_sum)
    return Finished(
        rewards={seat.key: value for seat, value in settled.returns.items()},
        unjudged={seat.key: reason for seat, reason in settled.unjudged.items()},
        metrics=settled.metrics,
        notes=settled.notes,
        transcripts={seat.key: transcript(seat) for root in seats for seat in root.family},
    )


def agent_of(seat: str, player: Player) -> Agent:
    """The agent of a player that needs no run. Raises `SettingError` for one that does."""
    if isinstance(player, str | Frozen | League):
        raise SettingError(
            f"seat {seat!r} is played by policy {name_of(player)!r}, which needs a run; use Scripted(fn), Human() or an agent"
        )
    if isinstance(player, Scripted):
        return ScriptedAgent(player.script)
    if isinstance(player, Human):
        return HumanAgent(_read_line)
    if isinstance(player, External):
        return player.agent()
    return player


def transcript(seat: Seat) -> list[tuple[str, str]]:
    """(who, text) of every message and reply of the seat's current context."""
    return [
        (entry.role, entry.text) if isinstance(entry, Message) else (seat.name, entry.reply.text)
        for entry in seat.conversation.entries
    ]


async def _read_line(shown: str) -> str:
    def ask() -> str:
        sys.stdout.write(shown)
        sys.stdout.flush()
        return sys.stdin.readline().rstrip("\n")

    return await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)


async def _keep_nothing(event: Acted | Affected) -> None:
    """An episode without a run has no journal."""
