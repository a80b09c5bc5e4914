"""What an episode was worth to each seat, and the rules by which that is settled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import SupportsFloat

from sparring.environments.score import Score, finite
from sparring.environments.seat import Seat
from sparring.errors import RewardError

Reward = float | Score


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rewards with `metrics` (numbers, averaged over episodes) and `notes` (text, kept with the transcript)."""

    rewards: float | Score | Mapping[Seat, float | Score] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    notes: Mapping[str, str] = field(default_factory=dict[str, str])


Rewards = float | Score | Mapping[Seat, float | Score] | Outcome | None
"""What `play` may return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """`returns` of every seat (and fork) that was rewarded, turn rewards included; `unjudged` the reasons of those without."""

    returns: Mapping[Seat, float]
    unjudged: Mapping[Seat, str]
    metrics: Mapping[str, float]
    notes: Mapping[str, str]


def settle(
    returned: Rewards, seats: Sequence[Seat], *, trained: Collection[str] = (), zero_sum: Collection[str] = ()
) -> Settled:
    """Turn what `play` returned, and the turn rewards it gave, into one return for each seat.

    `seats` are the players in order, without their forks; `trained` the names that must be rewarded if they spoke; `zero_sum`
    the names whose returns (forks included) must add up to zero. Raises `RewardError`, naming value and remedy.
    """
    outcome = returned if isinstance(returned, Outcome) else Outcome(returned)
    family = [seat for root in seats for seat in root.family]
    given = _by_seat(outcome.rewards, seats, family)
    returns: dict[Seat, float] = {}
    unjudged: dict[Seat, str] = {}
    for seat in family:
        reward = given.get(seat)
        if isinstance(reward, Score) and reward.value is None:
            unjudged[seat] = reward.error
        elif seat in given or seat.turn_rewards:
            returns[seat] = _return(seat, given.get(seat, 0.0))
        elif seat.spoke and seat.name in trained:
            raise RewardError(
                f"{seat!r} is trained and spoke, but got no reward: return one for it, or call reward() on it"
            )
    _check_zero_sum(returns, unjudged, zero_sum)
    for name, note in outcome.notes.items():
        if not isinstance(note, str):
            raise RewardError(f"note {name!r} is {note!r}: must be text; numbers are metrics")
    metrics = _metrics(outcome.metrics, given, family)
    return Settled(returns=returns, unjudged=unjudged, metrics=metrics, notes=dict(outcome.notes))


def _by_seat(
    rewards: float | Score | Mapping[Seat, float | Score] | None, seats: Sequence[Seat], family: Sequence[Seat]
) -> dict[Seat, float | Score]:
    if rewards is None:
        return {}
    if isinstance(rewards, Mapping):
        for seat in rewards:
            if seat not in family:
                known = ", ".join(repr(other) for other in family)
                raise RewardError(f"a reward for {seat!r}, which is no seat of this episode: the seats are {known}")
        return dict(rewards)
    if not isinstance(rewards, float | Score | SupportsFloat):
        raise RewardError(
            f"play returned {rewards!r}: return a number, a Score, a mapping from seats, an Outcome or None"
        )
    if len(seats) != 1:
        names = ", ".join(seat.name for seat in seats)
        raise RewardError(
            f"play returned {rewards!r} for {len(seats)} seats ({names}): return a mapping {{seat: reward}}"
        )
    return {seats[0]: rewards}


def _return(seat: Seat, reward: float | Score) -> float:
    remedy = "return Score(error=...) for what could not be judged"
    own = finite(f"the reward of {seat!r}", reward, remedy)
    return finite(f"the return of {seat!r}", own + sum(seat.turn_rewards.values()), remedy)


def _metrics(
    metrics: Mapping[str, float], given: Mapping[Seat, float | Score], family: Sequence[Seat]
) -> Mapping[str, float]:
    """The environment's metrics, the parts of its scores, and how many picks were refused; each name once."""
    found = {
        name: finite(f"metric {name!r}", value, "leave it out where there is none") for name, value in metrics.items()
    }
    for name, value in (*_parts(given, family), *_illegal(family)):
        if name in found:
            raise RewardError(f"metric {name!r} is given by the environment and by sparring: rename the environment's")
        found[name] = value
    return found


def _parts(given: Mapping[Seat, float | Score], family: Sequence[Seat]) -> Iterable[tuple[str, float]]:
    for seat in family:
        reward = given.get(seat)
        if isinstance(reward, Score):
            yield from ((f"{seat.key}/{part}", float(value)) for part, value in reward.parts.items())


def _illegal(family: Sequence[Seat]) -> Iterable[tuple[str, float]]:
    if any(seat.picks for seat in family):
        yield "illegal", float(sum(seat.illegal for seat in family))


def _check_zero_sum(returns: Mapping[Seat, float], unjudged: Mapping[Seat, str], names: Collection[str]) -> None:
    if not names or any(seat.name in names for seat in unjudged):
        return
    total = sum(value for seat, value in returns.items() if seat.name in names)
    if not isclose(total, 0.0, abs_tol=1e-6):
        parts = ", ".join(f"{seat.key}: {value!r}" for seat, value in returns.items() if seat.name in names)
        raise RewardError(f"zero_sum seats got {parts}, which add up to {total!r}: must be 0")
