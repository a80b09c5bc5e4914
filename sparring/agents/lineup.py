"""Who plays which seat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparring.agents.agent import Agent
from sparring.agents.scripted import Script
from sparring.errors import SettingError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Frozen:
    """A policy of the run at a fixed version, `Frozen("alice@0")`: it plays and does not learn."""

    name: str

    @property
    def policy(self) -> str:
        return self.name.rpartition("@")[0]

    @property
    def version(self) -> int:
        return int(self.name.rpartition("@")[2])

    def __post_init__(self) -> None:
        policy, at, version = self.name.rpartition("@")
        if not at:
            raise UnsupportedError(f"Frozen({self.name!r}): other models as players are not there yet; use 'policy@version'")
        if not policy or not version.isdecimal():
            raise SettingError(f"Frozen({self.name!r}): write 'policy@version', as in Frozen('alice@0')")


@dataclass(frozen=True, slots=True)
class Scripted:
    """A function of the conversation as a player."""

    script: Script


@dataclass(frozen=True, slots=True)
class Human:
    """A person at the terminal; for `sparring play`."""


@dataclass(frozen=True, slots=True)
class League:
    """Past versions of a policy as opponents. Refused so far."""

    policy: str

    def __post_init__(self) -> None:
        raise UnsupportedError(f"League({self.policy!r}): leagues are not there yet; use Frozen('{self.policy}@0')")


@dataclass(frozen=True, slots=True)
class External:
    """An OpenAI-compatible endpoint as a player. Refused so far."""

    url: str
    model: str

    def __post_init__(self) -> None:
        raise UnsupportedError(f"External({self.url!r}): endpoints as players are not there yet; use Scripted(fn)")


Player = str | Frozen | Scripted | Human | League | External | Agent
"""A trained policy's name, one of the records above, or any `Agent` as it is."""


@dataclass(frozen=True, slots=True)
class Lineup:
    """{seat: player}; a plain text is the name of a trained policy. `Lineup()`: the only policy plays every seat.

    `lineup | {...}` is the same with some seats taken by others.
    """

    players: Mapping[str, Player] = field(default_factory=dict)

    def __or__(self, others: Mapping[str, Player]) -> Lineup:
        return Lineup({**self.players, **others})

    def resolved(self, seats: Sequence[str], policies: Sequence[str]) -> dict[str, Player]:
        """The player of every seat. Raises `SettingError` for unknown seats or policies, and for seats without a player."""
        for seat in self.players:
            if seat not in seats:
                raise SettingError(f"the line-up names seat {seat!r}; the environment's seats are {', '.join(seats)}")
        players = dict(self.players)
        for seat in seats:
            if seat not in players and len(policies) != 1:
                raise SettingError(f"the line-up names nobody for seat {seat!r}; the policies are {', '.join(policies) or 'none'}")
            players.setdefault(seat, policies[0] if policies else "")
        for seat, player in players.items():
            policy = player if isinstance(player, str) else player.policy if isinstance(player, Frozen) else None
            if policy is not None and policy not in policies:
                raise SettingError(f"seat {seat!r} is played by {policy!r}; the policies are {', '.join(policies) or 'none'}")
        return {seat: players[seat] for seat in seats}
