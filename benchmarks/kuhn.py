"""Kuhn poker by self-play of policies that have no language: how near a table and a small network come to an equilibrium.

    python -m benchmarks.kuhn [--models table network] [--seeds 0 1 2] [--picture docs/kuhn.svg]

OpenSpiel's Kuhn poker, one policy on both seats, `rae()` with a pull to the uniform policy, which it begins as (`KL`; magnetic
mirror descent, arXiv 2206.05825), as ordinary asynchronous runs. The loss corrects for replies that are a version old and does
not clip: what PPO leaves out of a move that becomes likelier is missed in an equilibrium. Every tenth version says how likely
each move is at the 12 information sets, which gives its exploitability exactly: that of the last policy, and of the average of
all that were asked in the second half of the run, which is what has a target. It is 11/24 where every move is as likely as the
other. Needs the extras `torch` and `openspiel`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks._answers import Answers
from benchmarks._kuhn import PLAIN, Asked, Point, dealt, picture, point
from benchmarks._rows import Row, at_most, report
from sparring import KL, Adam, Episodes, ImportanceSampling, Policy, Run, Sampling, generated, rae
from sparring.backend import SmallModels
from sparring.learner import train

PICTURE = Path(__file__).parent.parent / "docs" / "kuhn.svg"
TARGET = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one of the small models is trained: `kl` holds it near the uniform policy, `games` are those of a step."""

    learning_rate: float
    kl: float
    beta1: float
    steps: int
    games: int = 128


RECIPES = {
    "table": Recipe(learning_rate=0.05, kl=0.05, beta1=0.0, steps=240),
    "network": Recipe(learning_rate=0.002, kl=0.1, beta1=0.9, steps=480),
}


def main() -> int:
    """Train, draw and print the rows; 0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--picture", type=Path, default=PICTURE)
    given = parser.parse_args()
    found = {model: [trained(model, RECIPES[model], seed) for seed in given.seeds] for model in given.models}
    given.picture.write_text(picture(found))
    rows = [
        row
        for model, curves in found.items()
        for seed, curve in zip(given.seeds, curves, strict=True)
        for row in told(f"{model}, seed {seed}", curve)
    ]
    return 0 if report("Kuhn poker by self-play", rows) else 1


def trained(model: str, recipe: Recipe, seed: int) -> list[Point]:
    """One run, in a folder that does not stay."""
    answers = Answers()
    with tempfile.TemporaryDirectory() as folder:
        train(kuhn_run(model, recipe, seed, Path(folder)), watchers=[answers])
    return [point(answers.found[: count + 1], recipe.games) for count in range(len(answers.found))]


def kuhn_run(model: str, recipe: Recipe, seed: int, folder: Path) -> Run:
    """Self-play on both seats; each game is dealt anew."""
    return Run(
        name="kuhn",
        train=Episodes(PLAIN, generated(dealt)),
        held_out=Episodes(Asked(game=PLAIN), range(12), seen=True),
        policies=Policy(
            model,
            replace(rae(loss=ImportanceSampling()), kl=KL(coefficient=recipe.kl)),
            learning_rate=recipe.learning_rate,
            adam=Adam(beta1=recipe.beta1, grad_clip_norm=0.0),
            sampling=Sampling(max_tokens=1),
        ),
        backend=SmallModels(replies=("Pass", "Bet")),
        group_size=1,
        groups_per_step=recipe.games,
        steps=recipe.steps,
        evaluate_every=10,
        seed=seed,
        folder=folder,
    )


def told(name: str, curve: Sequence[Point]) -> list[Row]:
    """The rows of a run."""
    last = curve[-1]
    return [
        Row(name=f"{name}, hands, seconds", figure=f"{last.hands}, {last.seconds:.0f}"),
        Row(name=f"{name}, exploitability at the start", figure=f"{curve[0].last:.3f}"),
        Row(name=f"{name}, of the last policy", figure=f"{last.last:.3f}"),
        at_most(f"{name}, of the average policy", last.average, TARGET),
    ]


if __name__ == "__main__":
    sys.exit(main())
