"""Matching pennies by self-play and against a league of past selves: how far the policy swings, and where its average is.

    python -m benchmarks.pennies [--models table network] [--ways self-play league] [--seeds 0 1 2] [--steps 300]
                                 [--picture docs/pennies.svg]

One policy on both seats, `rae()`. Self-play is a circle round the equilibrium (0.5, 0.5) that widens with steps of finite size;
against the uniform mixture of its past a policy answers an average, as in fictitious play, whose average converges in zero-sum
games, however slowly (J. Robinson, 1951). Other ways: `recent`, a league of the newest four members; `self-play+magnet` and
`league+magnet`, with a KL to the policy that it began as. A place is how likely heads is in each seat, asked after every other
step; over the second half of a run, the amplitude is the mean distance of these places from the equilibrium, the average's
distance that of their mean, and cornered the share of them at which both seats show a side with 0.9 or more. Turns: how often
a seat comes to the other side in the whole run. Nothing is a target: these are measurements. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import dist
from pathlib import Path
from statistics import fmean

from benchmarks import _pictures as pictures
from benchmarks._answers import Answers
from benchmarks._rows import Row, report
from sparring import KL, Adam, Episodes, League, Lineup, Policy, Run, Sampling, Seat, environment, rae
from sparring.backend import SmallModels
from sparring.environments import Outcome
from sparring.environments.games import matching_pennies
from sparring.environments.seat import to_pick
from sparring.learner import train
from sparring.learner.chart import Series

PICTURE = Path(__file__).parent.parent / "docs" / "pennies.svg"
SIDES = ("heads", "tails")
WANTS = ("you want the same side", "you want the other side")
MIDDLE = (0.5, 0.5)
MAGNET = KL(coefficient=0.1)
RATES = {"table": 0.05, "network": 0.001}
STEPS, GAMES = 300, 64

Place = tuple[float, float]
"""How likely heads is: (even, odd)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Who plays whom, and what pulls the policy."""

    lineups: Sequence[Lineup]
    kl: KL | None = None


def _against(past: League) -> Sequence[Lineup]:
    return [Lineup({"even": "alice", "odd": past}), Lineup({"even": past, "odd": "alice"})]


SELF = [Lineup({"even": "alice", "odd": "alice"})]
PAST = _against(League("alice", every=2, size=1000))
WAYS: Mapping[str, Way] = {
    "self-play": Way(lineups=SELF),
    "league": Way(lineups=PAST),
    "recent": Way(lineups=_against(League("alice", every=2, size=4))),
    "self-play+magnet": Way(lineups=SELF, kl=MAGNET),
    "league+magnet": Way(lineups=PAST, kl=MAGNET),
}


@environment(headline="heads")
async def heads(task: int, even: Seat, odd: Seat) -> Outcome:
    """How likely the player of a seat (task 0: even, 1: odd) shows heads, asked in the game's words."""
    seat = (even, odd)[task]
    likely = await seat.choose(to_pick(f"Matching pennies. In this round {WANTS[task]}.", SIDES), SIDES)
    return Outcome({even: 0.0, odd: 0.0}, {"heads": likely["heads"]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Orbit:
    """Where a run was, evaluation by evaluation, the untrained policy first."""

    steps: Sequence[int]
    places: Sequence[Place]
    seconds: float

    @property
    def second_half(self) -> Sequence[Place]:
        return [place for step, place in zip(self.steps, self.places, strict=True) if 2 * step >= self.steps[-1]]

    @property
    def amplitude(self) -> float:
        """The mean distance from the equilibrium."""
        return fmean(dist(place, MIDDLE) for place in self.second_half)

    @property
    def off(self) -> float:
        """The distance of the mean place."""
        return dist(mean_place(self.second_half), MIDDLE)

    @property
    def cornered(self) -> float:
        """The share of places at which both seats show a side with 0.9 or more."""
        return fmean(all(abs(heads - 0.5) >= 0.4 for heads in place) for place in self.second_half)

    @property
    def turns(self) -> int:
        """How often a seat comes to the other side, in the whole run."""
        return sum(
            (before - 0.5) * (after - 0.5) < 0
            for one, other in pairwise(self.places)
            for before, after in zip(one, other, strict=True)
        )


def mean_place(places: Sequence[Place]) -> Place:
    """The time average."""
    return fmean(even for even, _ in places), fmean(odd for _, odd in places)


def main() -> int:
    """Train, draw and print the rows; 0 once that is done, as nothing is a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--ways", nargs="+", default=["self-play", "league"], choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    found = {
        model: {how: [orbit(model, how, seed, steps=given.steps) for seed in given.seeds] for how in given.ways}
        for model in given.models
    }
    given.picture.write_text(picture(found))
    rows = [row for model, one in found.items() for row in told(model, given.seeds, one)]
    return 0 if report("matching pennies", rows) else 1


def orbit(model: str, how: str, seed: int, *, steps: int = STEPS) -> Orbit:
    """One run, in a folder that does not stay."""
    answers = Answers()
    with tempfile.TemporaryDirectory() as folder:
        train(pennies_run(model, how, seed, Path(folder), steps), watchers=[answers])
    places = [(one.values[0], one.values[1]) for one in answers.found]
    return Orbit(steps=[one.step for one in answers.found], places=places, seconds=answers.found[-1].seconds)


def pennies_run(model: str, how: str, seed: int, folder: Path, steps: int) -> Run:
    """As `how` says, by a policy named alice."""
    return Run(
        name="pennies",
        train=Episodes(matching_pennies, range(1000), WAYS[how].lineups),
        held_out=Episodes(heads, range(2), Lineup({"even": "alice", "odd": "alice"}), seen=True),
        policies={
            "alice": Policy(
                model,
                replace(rae(), kl=WAYS[how].kl),
                learning_rate=RATES[model],
                adam=Adam(beta1=0.0, grad_clip_norm=0.0),
                sampling=Sampling(max_tokens=1),
            )
        },
        backend=SmallModels(replies=SIDES),
        group_size=1,
        groups_per_step=GAMES,
        steps=steps,
        evaluate_every=2,
        seed=seed,
        folder=folder,
    )


def told(model: str, seeds: Sequence[int], found: Mapping[str, Sequence[Orbit]]) -> list[Row]:
    """The rows of a model: each run's, and the means over the seeds of each way."""
    rows = list[Row]()
    for how, orbits in found.items():
        for seed, one in zip(seeds, orbits, strict=True):
            where = f"{one.amplitude:.3f}, {one.off:.3f}, {one.cornered:.2f}, {one.turns}, {one.seconds:.0f}"
            name = f"{model}, {how}, seed {seed}: amplitude, distance of the average, cornered, turns, seconds"
            rows.append(Row(name=name, figure=where))
        amplitude, off = fmean(one.amplitude for one in orbits), fmean(one.off for one in orbits)
        name = f"{model}, {how}, means: amplitude, distance of the average, as a share of it"
        rows.append(Row(name=name, figure=f"{amplitude:.3f}, {off:.3f}, {off / amplitude:.2f}"))
    return rows


def picture(found: Mapping[str, Mapping[str, Sequence[Orbit]]]) -> str:
    """A row for each model, a panel for each way: the first seed, both seats over the steps."""
    return pictures.picture(
        [
            [_panel(f"{model}, {how}: how likely heads is", orbits[0]) for how, orbits in one.items()]
            for model, one in found.items()
        ]
    )


def _panel(title: str, one: Orbit) -> str:
    def series(label: str, seat: int) -> Series:
        return Series(
            label=label, points=[(step, place[seat]) for step, place in zip(one.steps, one.places, strict=True)]
        )

    return pictures.panel(title, [series("even", 0), series("odd", 1)], (0.0, 1.0))


if __name__ == "__main__":
    sys.exit(main())
