"""How good a player is, as far as games tell: the Bradley-Terry model of Weng and Lin (JMLR 12, 2011), by openskill.

A skill is believed to be normal. A player of mean m and variance v expects to beat one of M and V with the probability
p = 1 / (1 + exp((M - m) / c)), c^2 = v + V + 2 (25 / 6)^2. After a game that it won (s = 1), drew (1/2) or lost (0),

    m + (v / c) (s - p)    and    v (1 - (v / c^2)^(3/2) p (1 - p))

are its mean and variance. Before each game (25 / 300)^2 is added to both variances, since skills change.
"""

from __future__ import annotations

from typing import NamedTuple

from openskill.models import BradleyTerryPart

_MODEL = BradleyTerryPart(mu=25.0, sigma=25 / 3, beta=25 / 6, tau=25 / 300)
"""For two players the full and the partial pairing are the same model; the partial one has no special rule for draws."""


class Rating(NamedTuple):
    """The mean and the standard deviation of what is believed of a skill."""

    mu: float
    sigma: float

    @property
    def ordinal(self) -> float:
        """mu - 3 sigma, which the skill is hardly below: by it players are ranked, so that luck in a few games ranks nobody
        first."""
        return self.mu - 3 * self.sigma

    @property
    def inherited(self) -> Rating:
        """What a version begins with whose policy has this: the mean, and twice the deviation, as in UnstableBaselines, since
        the games were those of many versions; no more than `START` has."""
        return Rating(self.mu, min(2 * self.sigma, START.sigma))


START = Rating(_MODEL.mu, _MODEL.sigma)
"""What is believed of a player of whom nothing is known: 25 +- 8.3."""


def played(one: Rating, other: Rating, score: float) -> tuple[Rating, Rating]:
    """The ratings of two after a game; `score` is what `one` got: 1 won, 0.5 drawn, 0 lost."""
    teams = [[_MODEL.rating(mu=of.mu, sigma=of.sigma)] for of in (one, other)]
    (mine,), (theirs,) = _MODEL.rate(teams, scores=[score, 1 - score])
    return Rating(mine.mu, mine.sigma), Rating(theirs.mu, theirs.sigma)
