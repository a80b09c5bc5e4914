"""Who plays which seat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from sparring.agents.agent import Agent
from sparring.agents.endpoint import EndpointAgent, Secret
from sparring.agents.policy import Sampling
from sparring.agents.scripted import Script
from sparring.errors import SettingError


@dataclass(frozen=True, slots=True)
class Frozen:
    """A player that does not learn: a policy of the run at a version, `Frozen("alice@0")`, which is kept as long as the run
    names it, or another model, by its folder or hub name. `sampling`: how it replies; None: as its policy does, a model as
    `Sampling()` says."""

    name: str
    sampling: Sampling | None = field(default=None, kw_only=True)

    @property
    def model(self) -> str:
        """The other model; "" for a policy of the run."""
        return "" if "@" in self.name else self.name

    @property
    def policy(self) -> str:
        """The policy of the run; "" for another model."""
        return self.name.rpartition("@")[0]

    @property
    def version(self) -> int:
        """The policy's version; 0 for another model, which has no other."""
        return 0 if self.model else int(self.name.rpartition("@")[2])

    def __post_init__(self) -> None:
        policy, at, version = self.name.rpartition("@")
        if not self.name or (at and not (policy and version.isdecimal())):
            raise SettingError(
                f"Frozen({self.name!r}): write 'policy@version', as in Frozen('alice@0'), or the folder or hub name of a "
                f"model, which has no '@'"
            )
        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise SettingError(f"Frozen({self.name!r}, sampling={self.sampling!r}): must be None or Sampling(...)")


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
    """Past versions of a policy of the run as opponents, in training. Its members are version 0 and each `every`th, at most the
    newest `size` of them; each is kept while it is a member or a group plays against it. One is drawn for each group and seat:

    uniform      each alike
    latest       the newest
    prioritised  in proportion to (1 - p)^2, p how often those who learn beat it in the last `window` games (a draw is half a
                 win; one win and one defeat more are counted): whom they lose against they meet more often (Vinyals et al.,
                 Nature 575, 2019, weigh the members of a league so)
    """

    policy: str
    sampler: Literal["uniform", "latest", "prioritised"] = field(default="uniform", kw_only=True)
    every: int = field(default=10, kw_only=True)
    size: int = field(default=16, kw_only=True)
    window: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        samplers = ("uniform", "latest", "prioritised")
        if self.sampler not in samplers:
            raise SettingError(
                f"League({self.policy!r}, sampler={self.sampler!r}): must be one of {', '.join(samplers)}"
            )
        for name in ("every", "size", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"League({self.policy!r}, {name}={value!r}): must be a whole number, at least 1")

    def members(self, newest: int) -> range:
        """The versions that are members once `newest` is there, oldest first."""
        last = newest // self.every
        return range(max(0, last - self.size + 1) * self.every, newest + 1, self.every)


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


def name_of(player: Player) -> str:
    """What tables call a player: a policy, a model, a function or an agent's class."""
    if isinstance(player, str):
        return player
    if isinstance(player, Frozen):
        return player.name
    if isinstance(player, External):
        return player.model
    if isinstance(player, League):
        return f"League({player.policy})"
    script: Any = player.script if isinstance(player, Scripted) else type(player)
    return str(getattr(script, "__name__", type(script).__name__))


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
                    f"League('policy'), Scripted(function), Human() or an object with act and context_left"
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
            policy = player if isinstance(player, str) else player.policy if isinstance(player, Frozen | League) else ""
            if policy not in ("", *policies) or player == "":
                raise SettingError(f"seat {seat!r} is played by policy {policy!r}; {known}")
        return {seat: players[seat] for seat in seats}
