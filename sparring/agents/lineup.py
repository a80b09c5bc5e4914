"""Who plays which seat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from sparring.agents.agent import Agent
from sparring.agents.endpoint import EndpointAgent, Secret
from sparring.agents.policy import Sampling
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
            raise UnsupportedError(
                f"Frozen({self.name!r}): other models as players are not there yet; use 'policy@version'"
            )
        if not policy or not version.isdecimal():
            raise SettingError(f"Frozen({self.name!r}): write 'policy@version', as in Frozen('alice@0')")


@dataclass(frozen=True, slots=True)
class Scripted:
    """A function of the conversation as a player. One that needs chance is an `Agent` of its own: `act` is given a
    seed."""

    script: Script

    def __post_init__(self) -> None:
        if not callable(self.script):
            raise SettingError(f"Scripted({self.script!r}): must be a function of a conversation that returns text")


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
    """A model behind an OpenAI-compatible endpoint as a player that does not learn: an opponent, a judge. `url` is where
    `/chat/completions` is below; `key` is sent as a bearer token, and told to nobody else."""

    url: str
    model: str
    sampling: Sampling = field(default=Sampling(), kw_only=True)
    key: Secret = field(default=Secret(""), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.key, Secret):
            raise SettingError(
                f"External({self.url!r}, key=...): write key=Secret(text), so that it is in no journal, log or message"
            )
        self.agent()

    def agent(self) -> EndpointAgent:
        """Who plays. Raises `SettingError` for an address or a name that cannot be one."""
        return EndpointAgent(self.url, self.model, self.sampling, key=self.key.value)


Player = str | Frozen | Scripted | Human | League | External | Agent
"""A trained policy's name, one of the records above, or any `Agent` as it is."""

_WITHOUT_A_RUN = "Scripted(function), Human() or an agent"


@dataclass(frozen=True, slots=True)
class Lineup:
    """{seat: player}; a plain text is the name of a trained policy. `Lineup()`: the only policy plays every seat.

    `lineup | {...}` is the same with some seats taken by others.
    """

    players: Mapping[str, Player] = field(default_factory=dict[str, Player])

    def __post_init__(self) -> None:
        if not isinstance(self.players, Mapping):
            raise SettingError(
                f"Lineup({self.players!r}): must be a mapping of seats to players, as in {{'solver': 'policy'}}"
            )
        for seat, player in self.players.items():
            if not isinstance(player, Player) or isinstance(player, type):
                raise SettingError(
                    f"Lineup: seat {seat!r} is played by {player!r}: must be a policy's name, Frozen('policy@0'), "
                    f"Scripted(function), Human() or an object with act and context_left"
                )

    def __or__(self, others: Mapping[str, Player]) -> Lineup:
        return Lineup({**self.players, **others})

    def resolved(self, seats: Sequence[str], policies: Sequence[str]) -> dict[str, Player]:
        """The player of every seat. Raises `SettingError` for unknown seats or policies, and for seats without a
        player."""
        for seat in self.players:
            if seat not in seats:
                near = get_close_matches(seat, seats, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"the environment's seats are {', '.join(seats)}"
                raise SettingError(f"the line-up names seat {seat!r}; {meant}")
        known = (
            f"the policies are {', '.join(policies)}" if policies else f"there are no policies; use {_WITHOUT_A_RUN}"
        )
        players = dict(self.players)
        for seat in seats:
            if seat not in players:
                if len(policies) != 1:
                    raise SettingError(f"the line-up names nobody for seat {seat!r}; {known}")
                players[seat] = policies[0]
            player = players[seat]
            policy = player if isinstance(player, str) else player.policy if isinstance(player, Frozen) else None
            if policy is not None and policy not in policies:
                raise SettingError(f"seat {seat!r} is played by policy {policy!r}; {known}")
        return {seat: players[seat] for seat in seats}
