"""The role baseline in a game with a large value of the seat: the variance of its advantages, against closed forms.

    python -m benchmarks.nim [--seeds 0 1 2] [--picture docs/nim.svg]

Nim from a won position, 10,000 games a seed; `rae()`'s baseline for each seat, against one that both seats share.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, pvariance

import anyio
import numpy as np

from benchmarks import _pictures as pictures
from benchmarks._rows import Row, at_least, at_most, report
from sparring.agents import ScriptedAgent
from sparring.environments import Conversation, Message
from sparring.environments.games import Heaps, nim
from sparring.learner.advantages import Comparable, RoleBaseline
from sparring.rollout import play

PICTURE = Path(__file__).parent.parent / "docs" / "nim.svg"
EPISODES, DECAY, SKIPPED, WINDOW = 10_000, 0.95, 500, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Games:
    """What the first seat got in each game, and the advantages of both seats, first, second, first, ...: with a baseline for
    each, and with one for both."""

    rewards: Sequence[float]
    by_role: Sequence[float]
    shared: Sequence[float]

    @property
    def value(self) -> float:
        return fmean(self.rewards)

    @property
    def variances(self) -> tuple[float, float]:
        """By role and shared, once both have settled."""
        return pvariance(self.by_role[2 * SKIPPED :]), pvariance(self.shared[2 * SKIPPED :])

    @property
    def off(self) -> tuple[float, float, float]:
        """How far from their closed forms, as a share of these: both variances, and the one in the other."""
        (own, shared), predicted, together = self.variances, role_variance(self.value), shared_variance(self.value)
        return abs(own / predicted - 1), abs(shared / together - 1), abs(own / shared / (predicted / together) - 1)


def main() -> int:
    """Play, draw and print the rows; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    found = {seed: games_of(anyio.run(nim_rewards, EPISODES, seed)) for seed in given.seeds}
    given.picture.write_text(picture(list(found.values())))
    rows = [
        Row(
            name=f"seed {seed}: value, variance by role, shared, ratio",
            figure=f"{one.value:.3f}, {own:.3f}, {shared:.3f}, {own / shared:.3f}",
        )
        for seed, one in found.items()
        for own, shared in [one.variances]
    ]
    return 0 if report("the role baseline in Nim", [*rows, *worst(list(found.values()))]) else 1


def worst(found: Sequence[Games]) -> list[Row]:
    """Of all seeds, what is furthest from each target."""
    role, shared, ratio = (max(column) for column in zip(*(one.off for one in found), strict=True))
    return [
        at_least("value of the first seat, the lowest", min(one.value for one in found), 0.8),
        at_most("variance by role, off the closed form, the furthest", role, 0.1),
        at_most("variance under a shared baseline, off the closed form, the furthest", shared, 0.1),
        at_most("role / shared variance, off the closed form, the furthest", ratio, 0.1),
    ]


def role_variance(value: float) -> float:
    """Of r - b, where b is a running mean of the same seat's earlier rewards, of both seats.

    r = +-1 of mean v has the variance s^2 = 1 - v^2, b that of s^2 (1 - d) / (1 + d) with the decay d, and r - b, as r is
    independent of b, s^2 2 / (1 + d), around 0. The second seat's advantages are the first's negated, as are its rewards, so
    that a row of its own could never differ; but both are made with one state, as in a run, where seats that mixed would show.
    """
    return (1 - value**2) * 2 / (1 + DECAY)


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


# ---------------------------------------------------------------------------------------------------------------- games


async def nim_rewards(count: int, seed: int) -> list[float]:
    """What the first seat got in each game: it has won from (1, 2, 4) on and plays well but for one move in twenty; the second
    plays at random."""
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


def games_of(rewards: Sequence[float]) -> Games:
    """What the role baseline makes of them."""
    by_role, shared = advantages(rewards, ("first", "second")), advantages(rewards, ("either", "either"))
    return Games(rewards=rewards, by_role=by_role, shared=shared)


def advantages(rewards: Sequence[float], seats: tuple[str, str]) -> list[float]:
    """Of both seats, game by game, the second with the reward negated; of one name they share a baseline."""
    found, state = list[float](), dict[str, object]()
    for reward in rewards:
        for seat, own in zip(seats, (reward, -reward), strict=True):
            (value,), after = RoleBaseline(decay=DECAY)(_one(own, seat), state)
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


# ---------------------------------------------------------------------------------------------------------------- picture


def picture(found: Sequence[Games]) -> str:
    """The baselines, and the variance of the advantages of the last games, by game: mean and range of all seeds."""
    count = len(found[0].rewards)
    each, windows = range(0, count, max(1, count // 100)), range(WINDOW, count + 1, max(1, count // 100))
    baselines = [
        pictures.over_seeds("first", each, [[one.rewards[at] - one.by_role[2 * at] for at in each] for one in found]),
        pictures.over_seeds(
            "second", each, [[-one.rewards[at] - one.by_role[2 * at + 1] for at in each] for one in found]
        ),
        pictures.over_seeds("shared", each, [[one.rewards[at] - one.shared[2 * at] for at in each] for one in found]),
    ]
    variances = [
        pictures.over_seeds(
            label, windows, [[pvariance(row[2 * (at - WINDOW) : 2 * at]) for at in windows] for row in rows]
        )
        for label, rows in (("by role", [one.by_role for one in found]), ("shared", [one.shared for one in found]))
    ]
    return pictures.picture(
        [
            [
                pictures.panel("Nim: baseline", baselines, (-1.0, 1.0), "games"),
                pictures.panel(f"Nim: variance of the advantages of {WINDOW} games", variances, (0.0, None), "games"),
            ]
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
