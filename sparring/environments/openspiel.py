"""OpenSpiel's games as environments: chance drawn from the task, legal actions as options, returns as rewards.

Needs the extra `openspiel`; `from sparring.environments.openspiel import openspiel_environment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from math import isfinite
from random import Random
from typing import Any

from sparring.environments.environment import Environment
from sparring.environments.openspiel_extra import pyspiel
from sparring.environments.outcome import Outcome
from sparring.environments.running import gather
from sparring.environments.seat import Seat
from sparring.environments.source import source_digests
from sparring.errors import SettingError, UnsupportedError

Observe = Callable[[Any, int], str]
"""(state, player) -> what the player is told."""

Name = Callable[[Any, int, int], str]
"""(state, player, action) -> what the action is called."""


@dataclass(frozen=True, kw_only=True)
class OpenSpielEnvironment(Environment[int]):
    """What `openspiel_environment` makes. A task is a seed. `game` is its name with its parameters, as OpenSpiel writes it."""

    game: str
    seats: tuple[str, ...]
    zero_sum: tuple[str, ...] = ()
    observe: Observe | None = None
    action_name: Name | None = None
    rules: str = ""
    retries: int = 1

    @property
    def name(self) -> str:
        return self.game

    def described(self) -> dict[str, Any]:
        written = {"observe": self.observe, "action_name": self.action_name}
        functions = {key: None if fn is None else f"{fn.__module__}:{fn.__qualname__}" for key, fn in written.items()}
        return {**super().described(), "game": self.game, "rules": self.rules, "retries": self.retries, **functions}

    def fingerprint(self) -> dict[str, str]:
        """Of OpenSpiel its version; of what is written around it here, the source."""
        found = {**super().fingerprint(), "open_spiel": version("open_spiel")}
        for function in (self.observe, self.action_name):
            found |= {} if function is None else source_digests(function)
        return found

    async def play(self, task: int, *players: Seat) -> Outcome:
        """One episode; its metric `length` counts the moves that players made, those that they had no choice in included."""
        for player in players:
            if self.rules:
                player.system(self.rules)
        state, chance, length = loaded(self.game).new_initial_state(), Random(f"openspiel/{task}"), 0
        while not state.is_terminal():
            if state.is_chance_node():
                actions, odds = zip(*state.chance_outcomes(), strict=True)
                state.apply_action(chance.choices(actions, odds)[0])
                continue
            movers = range(len(players)) if state.is_simultaneous_node() else (state.current_player(),)
            moves = await gather(*(self._move(state, mover, players[mover]) for mover in movers))
            if None in moves:
                lost = {mover for mover, move in zip(movers, moves, strict=True) if move is None}
                return Outcome(dict(zip(players, self.forfeited(lost), strict=True)), {"length": float(length)})
            if state.is_simultaneous_node():
                state.apply_actions(moves)
            else:
                state.apply_action(moves[0])
            length += len(moves)
        return Outcome(dict(zip(players, map(float, state.returns()), strict=True)), {"length": float(length)})

    async def _move(self, state: Any, mover: int, player: Seat) -> int | None:
        """The action that is picked, the only one where there is no choice, None after `retries` further tries."""
        options = self.options(state, mover)
        if len(options) < 2:
            return next(
                iter(options.values()), 0
            )  # 0 is what OpenSpiel wants of who has no part in a simultaneous move
        if player.spoke:
            player.new_context()
        picked = await player.pick(self.told(state, mover), tuple(options), retries=self.retries)
        return None if picked is None else options[picked]

    def told(self, state: Any, mover: int) -> str:
        """What a player knows, as text."""
        if self.observe is not None:
            return self.observe(state, mover)
        kind = loaded(self.game).get_type()
        if kind.provides_information_state_string:
            return str(state.information_state_string(mover))
        return str(state.observation_string(mover))

    def options(self, state: Any, mover: int) -> dict[str, int]:
        """{what it is called: action} of the legal ones. Where two would be called the same (but for case), their numbers
        stand behind the names."""
        legal = state.legal_actions(mover)
        name: Name = _named if self.action_name is None else self.action_name
        called = [name(state, mover, action).strip() for action in legal]
        if len({one.casefold() for one in called}) < len(called):
            called = [f"{one} ({action})" for one, action in zip(called, legal, strict=True)]
        return dict(zip(called, legal, strict=True))

    def forfeited(self, lost: set[int]) -> list[float]:
        """The returns where some players still say what is no move."""
        game, count = loaded(self.game), len(self.seats)
        total = game.utility_sum()
        if len(lost) == count:
            return [game.min_utility() if total is None else total / count] * count
        left = 0.0 if total is None else (total - len(lost) * game.min_utility()) / (count - len(lost))
        return [float(game.min_utility() if seat in lost else left) for seat in range(count)]


def _named(state: Any, mover: int, action: int) -> str:
    return str(state.action_to_string(mover, action))


@cache
def loaded(game: str) -> Any:
    """The game that OpenSpiel writes so; it does not change."""
    return pyspiel.load_game(game)


def openspiel_environment(
    game: str,
    *,
    seats: Sequence[str] | None = None,
    observe: Observe | None = None,
    action_name: Name | None = None,
    rules: str = "",
    retries: int = 1,
) -> OpenSpielEnvironment:
    """A game of OpenSpiel (https://github.com/google-deepmind/open_spiel) by its name, parameters in brackets as in
    "goofspiel(num_cards=4)". Tasks are seeds of all its chance.

    seats        names of the players in order; None: player0, player1, ...
    observe      the text of what a player knows; None: the information state, or, where the game has none, the observation
    action_name  what an action is called; None: as OpenSpiel writes it
    rules        what every player is told first
    retries      further tries after a reply that is no legal action

    Each decision is asked in a context of its own: the information state says all that the player knows. Where there is no
    choice nobody is asked. Who still makes no legal move gets the least return that the game knows; the others share what is
    left of the sum, where there is one (zero-sum, constant-sum), or get 0; where all fail, they share it (or get the least).

    Raises `SettingError` for games and parameters that OpenSpiel does not have, `UnsupportedError` for those that draw chance
    themselves, that have no text, or whose players are a crowd (mean field).
    """
    made = _load(game)
    _check_playable(game, made, observe)
    count = made.num_players()
    names = tuple((f"player{n}" for n in range(count)) if seats is None else seats)
    if len(names) != count or len(set(names)) != count:
        raise SettingError(
            f"seats={seats!r}: {made.get_type().short_name} has {count} players; give {count} different names"
        )
    if retries < 0:
        raise SettingError(f"retries={retries!r}: must be at least 0")
    return OpenSpielEnvironment(
        game=str(made),
        seats=names,
        zero_sum=names if made.get_type().utility == pyspiel.GameType.Utility.ZERO_SUM else (),
        observe=observe,
        action_name=action_name,
        rules=rules,
        retries=retries,
    )


def _load(game: str) -> Any:
    known = pyspiel.registered_names()
    if game.partition("(")[0] not in known:
        raise SettingError(f"openspiel_environment({game!r}): OpenSpiel has no such game; it has {', '.join(known)}")
    try:
        return pyspiel.load_game(game)
    except (pyspiel.SpielError, ValueError) as error:
        raise SettingError(f"openspiel_environment({game!r}): {error}") from error


def _check_playable(name: str, game: Any, observe: Observe | None) -> None:
    kind = game.get_type()
    if kind.dynamics == pyspiel.GameType.Dynamics.MEAN_FIELD:
        raise UnsupportedError(f"openspiel_environment({name!r}): a mean-field game has no players that could be seats")
    if kind.chance_mode == pyspiel.GameType.ChanceMode.SAMPLED_STOCHASTIC:
        raise UnsupportedError(
            f"openspiel_environment({name!r}): it draws its chance itself, so that no task decides it; take a game "
            f"whose chance is explicit"
        )
    if observe is None and not (kind.provides_information_state_string or kind.provides_observation_string):
        raise UnsupportedError(f"openspiel_environment({name!r}): it has no text of what a player knows; give observe=")
    if not isfinite(game.min_utility()):
        raise UnsupportedError(f"openspiel_environment({name!r}): its losses have no bound: no forfeit has a value")
