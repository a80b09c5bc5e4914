"""Kuhn poker as a study: its two wordings, a policy's strategy at all 12 information sets, and how exploitable that is.

A strategy is {information set: how likely the second action (bet, call) is}, the sets by OpenSpiel's names: "0pb" holds the
lowest card after a pass and a bet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks import _pictures as pictures
from benchmarks._answers import Answer
from sparring.environments import Environment, Outcome, Seat
from sparring.environments.openspiel import OpenSpielEnvironment, openspiel_environment
from sparring.environments.openspiel_exploitability import exploitability, information_sets
from sparring.environments.seat import to_pick

SEATS = ("first", "second")
WORDS = {"": "none", "p": "check", "b": "bet", "pb": "check-bet"}

Strategy = Mapping[str, float]


def _told(state: Any, mover: int) -> str:
    """What a player knows, in the words of `examples/kuhn.py`."""
    known = str(state.information_state_string(mover))
    return f"Your card is {'JQK'[int(known[0])]}. Moves so far: {WORDS[known[1:]]}."


def _called(state: Any, mover: int, action: int) -> str:
    """What a move is called there."""
    faces_a_bet = str(state.information_state_string(mover)).endswith("b")
    return (("check", "bet"), ("fold", "call"))[faces_a_bet][action]


PLAIN = openspiel_environment("kuhn_poker", seats=SEATS)
"""In OpenSpiel's words: "0pb", Pass and Bet."""

WORDED = openspiel_environment(
    "kuhn_poker",
    seats=SEATS,
    observe=_told,
    action_name=_called,
    rules="Kuhn poker with cards J, Q, K.",
    retries=0,
)
"""In those of `examples/kuhn.py`. What is no move loses 2 at once."""


@dataclass(frozen=True, kw_only=True)
class Asked(Environment[int]):
    """Held-out episodes that ask whoever plays the seats how they play: task n is the nth of the game's information sets, and
    the metric `bets` how likely the second action is there, given that it is one of the two (`Seat.choose`)."""

    game: OpenSpielEnvironment
    seats: tuple[str, ...] = SEATS
    headline: str = "bets"

    def described(self) -> dict[str, Any]:
        return {**super().described(), "game": self.game.described()}

    async def play(self, task: int, *players: Seat) -> Outcome:
        """Nothing is sampled."""
        asked = information_sets(self.game)[task]
        player, options = players[asked.player], tuple(asked.actions)
        if self.game.rules:
            player.system(self.game.rules)
        likely = await player.choose(to_pick(asked.text, options), options)
        return Outcome(dict.fromkeys(players, 0.0), {"bets": likely[options[1]]})


def exploitable(strategy: Strategy) -> float:
    """The exploitability, in chips a game; 11/24 where every move is as likely as the other."""

    def likely(told: str, options: Sequence[str]) -> dict[str, float]:
        return {options[0]: 1 - strategy[told], options[1]: strategy[told]}

    return exploitability(PLAIN, likely)


def averaged(strategies: Sequence[Strategy]) -> dict[str, float]:
    """The strategy that plays as one of these does, drawn once for a whole game: at each information set their mean, weighed
    with how likely each one's own moves lead there (H. W. Kuhn, 1953). Only "pb" follows a move of one's own, a pass."""
    found = dict[str, float]()
    for key in strategies[0]:
        reaches = [1 - one[key[0]] if key.endswith("pb") else 1.0 for one in strategies]
        total = sum(reaches)
        weights = [reach / total for reach in reaches] if total > 0 else [1 / len(strategies)] * len(strategies)
        found[key] = sum(weight * one[key] for weight, one in zip(weights, strategies, strict=True))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one evaluation says.

    last     exploitability of the policy as it is
    average  that of the average of all policies that were asked in the second half of the run so far, this one included
    illegal  moves of the last step that were none, a game
    """

    step: int
    hands: int
    seconds: float
    last: float
    average: float
    illegal: float
    strategy: Strategy


def point(answers: Sequence[Answer], games: int) -> Point:
    """Of the last of them; `games` are those of a step."""
    asked = answers[-1]
    strategies = [(one.step, strategy_of(one.values)) for one in answers]
    second = [strategy for step, strategy in strategies if 2 * step >= asked.step]
    return Point(
        step=asked.step,
        hands=asked.step * games,
        seconds=asked.seconds,
        last=exploitable(strategies[-1][1]),
        average=exploitable(averaged(second)),
        illegal=asked.illegal,
        strategy=strategies[-1][1],
    )


def strategy_of(values: Sequence[float]) -> dict[str, float]:
    """What `Asked` was answered, task by task."""
    return dict(zip([one.key for one in information_sets(PLAIN)], values, strict=True))


def dealt(rng: Random) -> int:
    """A task of OpenSpiel's games: the seed of all chance."""
    return rng.getrandbits(32)


def picture(found: Mapping[str, Sequence[Sequence[Point]]]) -> str:
    """A panel for each name: the mean over the curves and their range."""
    return pictures.picture([[_panel(name, curves) for name, curves in found.items()]])


def _panel(name: str, curves: Sequence[Sequence[Point]]) -> str:
    """Points of all curves are at the same steps."""
    steps = [one.step for one in curves[0]]
    both = [
        pictures.over_seeds("the policy", steps, [[one.last for one in curve] for curve in curves]),
        pictures.over_seeds("average policy", steps, [[one.average for one in curve] for curve in curves]),
    ]
    return pictures.panel(f"{name}: exploitability", both, (0.0, 0.6))
