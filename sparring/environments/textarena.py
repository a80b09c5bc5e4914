"""TextArena's games as environments: each seat is told what is new, its reply is its action, with chance of the game's own.

Needs the extra `textarena`; `from sparring.environments.textarena import textarena_environment`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparring.environments.environment import Environment
from sparring.environments.outcome import Outcome
from sparring.environments.score import Score
from sparring.environments.seat import Seat
from sparring.environments.textarena_extra import textarena
from sparring.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class TextArenaEnvironment(Environment[int]):
    """What `textarena_environment` makes. A task is a seed."""

    id: str
    seats: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        return self.id

    def __hash__(self) -> int:
        return hash((self.id, self.seats))

    def described(self) -> dict[str, Any]:
        return {**super().described(), "id": self.id, "settings": dict(self.settings)}

    def fingerprint(self) -> dict[str, str]:
        """Of TextArena its version; of what is written around it here, the source."""
        return {**super().fingerprint(), "textarena": str(textarena.__version__)}

    async def play(self, task: int, *players: Seat) -> Outcome:
        """One episode. Its metrics: `length` in replies, and `forfeited`: whether somebody lost by what is no move."""
        chance = self.chance(task)
        with chance.put_in():
            game: Any = textarena.make(self.id, **self.settings)
            game.reset(num_players=len(players), seed=task)
        heard, length, over = _inner(game), 0, False
        while not over:
            with chance.put_in():
                mover, messages = heard.get_observation()
            reply = await players[mover].ask(_told(messages, mover, game.state.role_mapping))
            with chance.put_in():
                over, _ = game.step(action=reply.text)
            length += 1
        rewards, infos = game.close()
        forfeited = any(info.get("invalid_move") for info in infos.values())
        return Outcome(_rewards(rewards, players), {"length": float(length), "forfeited": float(forfeited)})

    def chance(self, task: int) -> Chance:
        """What the game of a task draws from."""
        return Chance(task)


class Chance:
    """The global generators of Python and numpy as one game has them: TextArena's games draw from these alone."""

    def __init__(self, seed: int) -> None:
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed % 2**32).get_state()

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """They are where the game left them; after it they are where everybody else left them."""
        python, numpy = random.getstate(), np.random.get_state()
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()
            random.setstate(python)
            np.random.set_state(numpy)


def _inner(game: Any) -> Any:
    """The game without its wrappers: those of observations tell all of it again at every turn."""
    while isinstance(game, textarena.Wrapper):
        game = game.env
    return game


def _told(messages: Sequence[tuple[int, str, Any]], mover: int, names: Mapping[int, str]) -> str:
    """What is new to a player, as TextArena writes it, but for its own replies."""
    own = textarena.ObservationType.PLAYER_ACTION
    lines = [
        f"[{names.get(sender, f'Player {sender}')}] {text}"
        for sender, text, kind in messages
        if not (sender == mover and kind == own)
    ]
    return "\n".join(lines) or "It is your turn."


def _rewards(rewards: Mapping[int, float] | None, players: Sequence[Seat]) -> dict[Seat, float | Score]:
    if rewards is None:
        return dict.fromkeys(players, Score(error="the game ended without rewards"))
    return {player: float(rewards.get(number, 0)) for number, player in enumerate(players)}


def textarena_environment(
    name: str, *, seats: Sequence[str], settings: Mapping[str, Any] | None = None
) -> TextArenaEnvironment:
    """A game of TextArena (https://github.com/LeonGuertler/TextArena) by its id, as in "TicTacToe-v0"; tasks are seeds.

    seats     names for the players, in order: as many as are to play
    settings  go to `textarena.make`

    Each seat is told, at its turns, what the game and the others said since its last one, so that the variants of a game that
    only tell more or less of the past (`-train`, `-raw`) are alike but for how replies become actions. What becomes of a reply
    that is no move the game decides: most allow one more try. Games draw from generators of their own, whoever plays beside
    them. They are stepped on the event loop: they must not take long.

    Raises `SettingError` for a game that TextArena does not have or cannot begin with so many players.
    """
    names, given = tuple(seats), dict(settings or {})
    if not names or len(set(names)) != len(names):
        raise SettingError(f"seats={seats!r}: give a different name to each player, at least one")
    try:
        with Chance(0).put_in():
            textarena.make(name, **given).reset(num_players=len(names), seed=0)
    except Exception as error:  # whatever a game's own code raises: its failure is said with its name
        raise SettingError(
            f"textarena.make({name!r}, **{given!r}) with {len(names)} players: {error or type(error).__name__}"
        ) from error
    return TextArenaEnvironment(id=name, seats=names, settings=given)
