"""What a learner trains on: the exact tokens of one seat's part in one episode, with its return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparring.agents import Sample
from sparring.arrays import F32, I16, I32, Bools
from sparring.rollout.events import Acted, Ended, Planned, SeatResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One context of a trajectory, T tokens.

    tokens       i32[T]
    action_mask  bool[T]  sampled by this policy in this trajectory; the sampled end-of-turn token is an action
    logprobs     f32[T]   of the actions under the distribution they were sampled from (0 elsewhere)
    versions     i32[T]   the weights that made each action (-1 elsewhere)
    turn         i16[T]   the turn of each action (-1 elsewhere)
    temperature           of that distribution
    """

    tokens: I32
    action_mask: Bools
    logprobs: F32
    versions: I32
    turn: I16
    temperature: float

    @property
    def action_tokens(self) -> int:
        return int(np.count_nonzero(self.action_mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One seat or fork of one episode. `reward` is its return, turn rewards included; `turn_rewards` f32[turns]."""

    contexts: tuple[Context, ...]
    reward: float
    turn_rewards: F32
    policy: str
    seat: str
    fork: str
    label: str
    group: int
    episode: int
    truncated: bool

    @property
    def action_tokens(self) -> int:
        return sum(context.action_tokens for context in self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """(group, policy): all judged trajectories of one policy in one group, in canonical order. The unit of batches and
    drops. `episodes` are the group's, in order, failed ones included: its metrics are counted from them. `scores` are those
    of its games against players that do not learn, (the player, 1 won, 0.5 drawn, 0 lost); of a league's members, ("", ...).
    `players` are {seat: who plays it} in the group: a policy by its name, another player as the line-up names it, a league's
    with the version that was drawn."""

    policy: str
    group: int
    source: int
    trajectories: tuple[Trajectory, ...]
    episodes: tuple[Ended, ...] = ()
    scores: tuple[tuple[str, float], ...] = ()
    players: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def action_tokens(self) -> int:
        return sum(trajectory.action_tokens for trajectory in self.trajectories)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The units of a planned step: fresh ones, and those that are used `again`."""

    planned: Planned
    units: tuple[Unit, ...]
    again: tuple[Unit, ...] = ()


def trajectories(acted: Sequence[Acted], finished: Ended, policies: Mapping[str, str]) -> list[Trajectory]:
    """The judged trajectories of one episode, for the seats that `policies` (seat -> policy) trains.

    A seat that never spoke, was not judged, or belongs to an episode that failed and was not scored makes none.
    """
    spoken: dict[tuple[str, str], list[Acted]] = {}
    for event in acted:
        if event.sample is not None:
            spoken.setdefault((event.seat, event.fork), []).append(event)
    made: list[Trajectory] = []
    for result in sorted(finished.results, key=lambda result: (result.seat, result.fork)):
        turns = spoken.get((result.seat, result.fork))
        if result.seat not in policies or result.value is None or not turns:
            continue
        made.append(_trajectory(sorted(turns, key=lambda event: event.turn), result, policies[result.seat]))
    return made


def turn_numbers(acted: Iterable[Acted]) -> dict[tuple[str, str, int], int]:
    """{(seat, fork, turn): which of the replies of that seat or fork it is}, from 0. These are the same but for what was said
    through an endpoint, where turns are numbered by content (`environments/endpoint.py`)."""
    turns: dict[tuple[str, str], set[int]] = {}
    for event in acted:
        if event.reply is not None:
            turns.setdefault((event.seat, event.fork), set()).add(event.turn)
    return {(*place, turn): number for place, found in turns.items() for number, turn in enumerate(sorted(found))}


def _trajectory(turns: Sequence[Acted], result: SeatResult, policy: str) -> Trajectory:
    numbers = {turn: number for (_, _, turn), number in turn_numbers(turns).items()}
    samples = [
        (numbers[event.turn], event.context, event.sample.unpacked()) for event in turns if event.sample is not None
    ]
    rewards = np.zeros(len(numbers), np.float32)
    for turn, value in result.turn_rewards.items():
        rewards[numbers[turn]] = value
    last = turns[-1].reply
    contexts = sorted({context for _, context, _ in samples})
    assert result.value is not None
    return Trajectory(
        contexts=tuple(
            context_of([(turn, sample) for turn, at, sample in samples if at == context]) for context in contexts
        ),
        reward=float(np.float32(result.value)),
        turn_rewards=rewards,
        policy=policy,
        seat=result.seat,
        fork=result.fork,
        label=result.label,
        group=turns[0].group,
        episode=turns[0].member,
        truncated=last is not None and last.stop == "length",
    )


def context_of(samples: Sequence[tuple[int, Sample]]) -> Context:
    """The tokens of one context from the turns that were sampled in it, (number, sample), in order."""
    length = sum(len(sample.prompt) + len(sample.tokens) for _, sample in samples)
    tokens, mask, logprobs = np.empty(length, np.int32), np.zeros(length, np.bool_), np.zeros(length, np.float32)
    versions, turn = np.empty(length, np.int32), np.empty(length, np.int16)
    versions.fill(-1)
    turn.fill(-1)
    at = 0
    for number, sample in samples:
        assert not sample.whole or not at, "a sample with its whole context comes first in it"
        start = at + len(sample.prompt)
        end = start + len(sample.tokens)
        tokens[at:start], tokens[start:end] = sample.prompt, sample.tokens
        mask[start:end], logprobs[start:end], turn[start:end] = True, sample.logprobs, number
        at = end
        for version, count in sample.versions:
            versions[start : start + count] = version
            start += count
        assert start == end, (sample.versions, len(sample.tokens))
    return Context(
        tokens=tokens,
        action_mask=mask,
        logprobs=logprobs,
        versions=versions,
        turn=turn,
        temperature=samples[0][1].temperature,
    )


def tokens_by_seat(made: Sequence[Trajectory]) -> dict[str, int]:
    """The action tokens of all of them, by seat."""
    tokens: dict[str, int] = {}
    for trajectory in made:
        tokens[trajectory.seat] = tokens.get(trajectory.seat, 0) + trajectory.action_tokens
    return tokens
