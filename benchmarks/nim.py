"""The role baseline in a game with a large value of the seat: the variance of its advantages, against closed forms.

    python -m benchmarks.nim

Nim from a won position, 10,000 games; `rae()`'s baseline for each seat, against one that both seats share.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random
from statistics import fmean, pvariance

import anyio
import numpy as np

from benchmarks._rows import Row, at_most, report
from sparring.agents import ScriptedAgent
from sparring.environments import Conversation, Message
from sparring.environments.games import Heaps, nim
from sparring.learner.advantages import Comparable, RoleBaseline
from sparring.rollout import play

EPISODES, DECAY, SKIPPED = 10_000, 0.95, 500


def main() -> int:
    """Print the rows; 0 if every target is met."""
    return 0 if report("the role baseline in Nim", anyio.run(_nim)) else 1


async def _nim() -> list[Row]:
    """The first seat of Nim has won from (1, 2, 4) on and plays well but for one move in twenty; the second plays at random.

    Closed forms: r = +-1 has the mean v for the first seat, as measured, and the variance s^2 = 1 - v^2; b is the decay. A mean
    that runs over a seat's earlier rewards has the variance s^2 (1 - b) / (1 + b), so that an advantage has s^2 2 / (1 + b).
    Where both seats share one, `shared_variance`.
    """
    rewards = await nim_rewards(EPISODES, seed=0)
    value, variance = fmean(rewards), pvariance(rewards)
    own = [pvariance(row[SKIPPED:]) for row in (advantages(rewards, 1.0, "first"), advantages(rewards, -1.0, "second"))]
    shared = pvariance(both(rewards)[2 * SKIPPED :])
    predicted, together = variance * 2 / (1 + DECAY), shared_variance(value)
    return [
        Row(name="Nim, value of the first seat", figure=f"{value:.3f}", target=">= 0.8", met=value >= 0.8),
        *(
            at_most(f"Nim, variance of role advantages, {seat}, off the closed form", abs(one / predicted - 1), 0.1)
            for seat, one in zip(("first", "second"), own, strict=True)
        ),
        at_most("Nim, variance under a shared baseline, off the closed form", abs(shared / together - 1), 0.1),
        at_most(
            "Nim, role / shared variance, off the closed form",
            abs(fmean(own) / shared / (predicted / together) - 1),
            0.1,
        ),
        Row(name="Nim, variance of advantages, by role and shared", figure=f"{fmean(own):.3f}, {shared:.3f}"),
    ]


def shared_variance(value: float) -> float:
    """Of r - c, where c is one running mean of both seats' rewards, r of the first seat, then -r of the second, of each game.

    c before a game has the steady variance V: with a = 1 - b, c' = b^2 c + a (b r - r) = b^2 c - a^2 r, so that its mean is
    m = -a^2 v / (1 - b^2) and V = a^4 s^2 / (1 - b^4). The first advantage is r - c; the second -r - (b c + a r).
    """
    a, b, spread = 1 - DECAY, DECAY, 1 - value**2
    mean, steady = -(a**2) * value / (1 - b**2), a**4 * spread / (1 - b**4)
    means = value - mean, -(1 + a) * value - b * mean
    variances = spread + steady, (1 + a) ** 2 * spread + b**2 * steady
    return fmean(variances) + pvariance(means)


async def nim_rewards(count: int, *, seed: int) -> list[float]:
    """What the first seat got in each game."""
    rng = Random(seed)
    first, second = ScriptedAgent(lambda seen: _well(seen, rng)), ScriptedAgent(lambda seen: rng.choice(_moves(seen)))
    lineup = {"first": first, "second": second}
    return [(await play(nim, Heaps((1, 2, 4)), lineup)).rewards["first"] for _ in range(count)]


def _well(seen: Conversation, rng: Random) -> str:
    """A move that leaves the binary sum zero, where there is one; now and then any."""
    moves, heaps = _moves(seen), _heaps(seen)
    good = [move for move in moves if not _sum(heaps, move)]
    return rng.choice(moves if not good or rng.random() < 0.05 else good)


def _sum(heaps: Sequence[int], move: str) -> int:
    after = list(heaps)
    after["ABC".index(move[0])] -= int(move[1:])
    return after[0] ^ after[1] ^ after[2]


def _asked(seen: Conversation) -> str:
    entry = seen.entries[-1]
    assert isinstance(entry, Message)
    return entry.text


def _moves(seen: Conversation) -> list[str]:
    return _asked(seen).rpartition("exactly one of: ")[2].removesuffix(".").split(", ")


def _heaps(seen: Conversation) -> list[int]:
    listed = _asked(seen).partition("Heaps: ")[2].partition(".")[0]
    return [int(one.partition(": ")[2]) for one in listed.split(", ")]


def advantages(rewards: Sequence[float], sign: float, seat: str) -> list[float]:
    """Of the role baseline, game by game."""
    found, state = list[float](), dict[str, object]()
    for reward in rewards:
        (value,), after = RoleBaseline(decay=DECAY)(_one(sign * reward, seat), state)
        state = dict(after)
        found.append(float(value))
    return found


def both(rewards: Sequence[float]) -> list[float]:
    """The same, of both seats under one baseline: as if they were one role."""
    found, state = list[float](), dict[str, object]()
    for reward in rewards:
        for own in (reward, -reward):
            (value,), after = RoleBaseline(decay=DECAY)(_one(own, "either"), state)
            state = dict(after)
            found.append(float(value))
    return found


def _one(reward: float, seat: str) -> Comparable:
    return Comparable(
        environment="nim",
        seat=seat,
        label="",
        rewards=np.array([reward], np.float32),
        lengths=np.ones(1, np.int32),
        turn_rewards=(np.zeros(1, np.float32),),
        turns=(np.zeros(1, np.int32),),
        episodes=np.zeros(1, np.int32),
    )


if __name__ == "__main__":
    sys.exit(main())
