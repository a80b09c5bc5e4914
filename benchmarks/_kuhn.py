"""Kuhn poker as a study: its two wordings, a policy's strategy at all 12 information sets, and how exploitable that is.

A strategy is {information set: how likely the second action (bet, call) is}, the sets by OpenSpiel's names: "0pb" holds the
lowest card after a pass and a bet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparring.environments import Environment, Outcome, Seat
from sparring.environments.openspiel import OpenSpielEnvironment, openspiel_environment
from sparring.environments.openspiel_exploitability import exploitability, information_sets
from sparring.environments.seat import to_pick
from sparring.rollout.events import AnyEvent, Evaluated, Stepped

SEATS = ("first", "second")
WORDS = {"": "none", "p": "check", "b": "bet", "pb": "check-bet"}

Strategy = Mapping[str, float]


def _told(state: Any, mover: int) -> str:
    """What a player knows, in the words of `examples/kuhn.py`."""
    card, *moves = str(state.information_state_string(mover))
    return f"Your card is {'JQK'[int(card)]}. Moves so far: {WORDS[''.join(moves)]}."


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


class Curve:
    """A `Watcher` of a run that evaluates `Asked`: a `Point` for each evaluation, as it comes. `tell` is given each one."""

    def __init__(self, games: int, tell: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.points = list[Point]()
        self._games, self._tell, self._illegal, self._began = games, tell, 0.0, time.perf_counter()

    def opened(self, run: Mapping[str, Any]) -> None:
        self._began = time.perf_counter()

    def event(self, event: AnyEvent) -> None:
        if isinstance(event, Stepped):
            self._illegal = float(event.metrics.get("environment/illegal", 0.0))
        if isinstance(event, Evaluated):
            self.points.append(self._point(event))
            if self._tell is not None:
                self._tell(asdict(self.points[-1]))

    def closed(self) -> None:
        """Nothing is held."""

    def _point(self, event: Evaluated) -> Point:
        keys = [one.key for one in information_sets(PLAIN)]
        values = [float("nan") if value is None else value for value in event.values]
        strategy = dict(zip(keys, values, strict=True))
        second = [one.strategy for one in self.points if 2 * one.step >= event.version]
        return Point(
            step=event.version,
            hands=event.version * self._games,
            seconds=time.perf_counter() - self._began,
            last=exploitable(strategy),
            average=exploitable(averaged([*second, strategy])),
            illegal=self._illegal,
            strategy=strategy,
        )
