"""Matching pennies by self-play and against a league of past selves: how far the policy swings, and where its average is.

    python -m benchmarks.pennies [--models table network] [--seeds 0 1 2] [--picture docs/pennies.svg]

One policy on both seats, `rae()` without any bonus. Self-play is a circle round the equilibrium (0.5, 0.5) that widens with
steps of finite size; against the uniform mixture of its past a policy answers an average, as in fictitious play, whose average
converges in zero-sum games (J. Robinson, 1951). A place is how likely heads is in each seat, asked after every other step; over
the second half of a run, the amplitude is the mean distance of these places from the equilibrium, and the average's distance
that of their mean. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import dist
from pathlib import Path
from statistics import fmean

from benchmarks._answers import Answers
from benchmarks._rows import Row, at_most, report
from sparring import Adam, Episodes, League, Lineup, Policy, Run, Sampling, Seat, environment, rae
from sparring.backend import SmallModels
from sparring.environments import Outcome
from sparring.environments.games import matching_pennies
from sparring.environments.seat import to_pick
from sparring.learner import train
from sparring.learner.chart import Series, line_chart

PICTURE = Path(__file__).parent.parent / "docs" / "pennies.svg"
SIDES = ("heads", "tails")
WANTS = ("you want the same side", "you want the other side")
MIDDLE = (0.5, 0.5)
PAST = League("alice", every=2, size=1000)
LINEUPS: Mapping[str, Sequence[Lineup]] = {
    "self-play": [Lineup({"even": "alice", "odd": "alice"})],
    "league": [Lineup({"even": "alice", "odd": PAST}), Lineup({"even": PAST, "odd": "alice"})],
}
RATES = {"table": 0.05, "network": 0.001}
STEPS, GAMES = 300, 64
WIDTH, HEIGHT = 420, 220

Place = tuple[float, float]
"""How likely heads is: (even, odd)."""


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


def mean_place(places: Sequence[Place]) -> Place:
    """The time average."""
    return fmean(even for even, _ in places), fmean(odd for _, odd in places)


def main() -> int:
    """Train, draw and print the rows; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    found = {
        model: {how: [orbit(model, how, seed) for seed in given.seeds] for how in LINEUPS} for model in given.models
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
        train=Episodes(matching_pennies, range(1000), LINEUPS[how]),
        held_out=Episodes(heads, range(2), Lineup({"even": "alice", "odd": "alice"}), seen=True),
        policies={
            "alice": Policy(
                model,
                rae(),
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
    """The rows of a model: each run's, and what one is beside the other."""
    rows = list[Row]()
    for how, orbits in found.items():
        for seed, one in zip(seeds, orbits, strict=True):
            name = f"{model}, {how}, seed {seed}"
            rows.append(Row(name=f"{name}, amplitude, seconds", figure=f"{one.amplitude:.3f}, {one.seconds:.0f}"))
            rows.append(at_most(f"{name}, distance of the average / amplitude", one.off / one.amplitude, 0.5))
    amplitudes = {how: fmean(one.amplitude for one in orbits) for how, orbits in found.items()}
    offs = {how: fmean(one.off for one in orbits) for how, orbits in found.items()}
    return [
        *rows,
        at_most(
            f"{model}, amplitude, league / self-play, means over seeds",
            amplitudes["league"] / amplitudes["self-play"],
            1.0,
        ),
        Row(
            name=f"{model}, distance of the average, self-play and league",
            figure=f"{offs['self-play']:.3f}, {offs['league']:.3f}",
        ),
    ]


def picture(found: Mapping[str, Mapping[str, Sequence[Orbit]]]) -> str:
    """A row for each model, a panel for each way: the first seed, both seats over the steps."""
    panels = [
        _panel(f"{model}, {how}: how likely heads is", orbits[0], column, row)
        for row, (model, one) in enumerate(found.items())
        for column, (how, orbits) in enumerate(one.items())
    ]
    size = f'viewBox="0 0 {WIDTH * 2} {HEIGHT * len(found)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(panels)}</svg>\n'


def _panel(title: str, one: Orbit, column: int, row: int) -> str:
    def series(label: str, seat: int) -> Series:
        return Series(
            label=label, points=[(step, place[seat]) for step, place in zip(one.steps, one.places, strict=True)]
        )

    chart = line_chart(
        title, [series("even", 0), series("odd", 1)], width=WIDTH, height=HEIGHT, y=(0.0, 1.0), alone=True
    )
    where = f'x="{column * WIDTH}" y="{row * HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return chart.replace("<svg ", f"<svg {where} ", 1)


if __name__ == "__main__":
    sys.exit(main())
