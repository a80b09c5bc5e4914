"""Who plays which seat: what a line-up resolves to, and what is refused when it is made or resolved."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sparring import External, Frozen, Human, League, Lineup, Sampling, Scripted, ScriptedAgent, Secret
from sparring.agents import Agent, EndpointAgent, Player, name_of
from sparring.environments import Conversation
from sparring.errors import SettingError

SEATS = ("first", "second")


def echo(conversation: Conversation) -> str:
    return "x"


# --------------------------------------------------------------------------------------------------------------- resolved


@pytest.mark.parametrize(
    ("players", "policies", "resolved"),
    [
        ({}, ["p"], {"first": "p", "second": "p"}),
        ({"first": "a", "second": "b"}, ["a", "b"], {"first": "a", "second": "b"}),
        ({"second": "b", "first": "a"}, ["a", "b"], {"first": "a", "second": "b"}),
        ({"second": Human()}, ["p"], {"first": "p", "second": Human()}),
        ({"first": Frozen("p@0")}, ["p"], {"first": Frozen("p@0"), "second": "p"}),
        ({"first": Scripted(echo), "second": Human()}, [], {"first": Scripted(echo), "second": Human()}),
    ],
)
def test_what_a_line_up_resolves_to(
    players: Mapping[str, Any], policies: Sequence[str], resolved: dict[str, Any]
) -> None:
    found = Lineup(players).resolved(SEATS, policies)
    assert found == resolved
    assert list(found) == list(SEATS), "in the order of the environment"


@pytest.mark.parametrize(
    ("players", "policies", "said"),
    [
        ({"frist": "p"}, ["p"], "names seat 'frist'; did you mean 'first'?"),
        ({"judge": "p"}, ["p"], "names seat 'judge'; the environment's seats are first, second"),
        ({"first": "a"}, ["a", "b"], "names nobody for seat 'second'; the policies are a, b"),
        ({"first": "a"}, ["p"], "seat 'first' is played by policy 'a'; the policies are p"),
        ({"first": Frozen("a@0")}, ["p"], "seat 'first' is played by policy 'a'; the policies are p"),
        ({"first": "a"}, [], "seat 'first' is played by policy 'a'; there are no policies; use Scripted(function), Human()"),
        ({"first": Human()}, [], "names nobody for seat 'second'; there are no policies; use Scripted(function)"),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved(players: Mapping[str, Any], policies: Sequence[str], said: str) -> None:
    with pytest.raises(SettingError) as refused:
        Lineup(players).resolved(SEATS, policies)
    assert said in str(refused.value)


def test_some_seats_are_taken_by_others() -> None:
    lineup = Lineup({"first": "a", "second": "b"})
    assert lineup | {"second": Frozen("b@0")} == Lineup({"first": "a", "second": Frozen("b@0")})
    assert lineup == Lineup({"first": "a", "second": "b"}), "and stays as it is"
    with pytest.raises(SettingError, match="seat 'second' is played by 3"):
        lineup | {"second": 3}  # type: ignore[dict-item]


# ---------------------------------------------------------------------------------------------------------------- players


class Sized:
    """Not an agent: it cannot say how much room is left."""

    async def act(self, conversation: Any, request: Any, seed: int) -> Any: ...


@pytest.mark.parametrize("player", [echo, lambda conversation: "x", Human, ScriptedAgent, 3, None, Sized()])
def test_what_is_no_player(player: Any) -> None:
    """A bare function is the likely mistake."""
    with pytest.raises(SettingError, match=r"seat 'first' is played by .*Scripted\(function\)"):
        Lineup({"first": player})


@pytest.mark.parametrize("players", [[("first", "a")], "first", None])
def test_what_is_no_line_up(players: Any) -> None:
    with pytest.raises(SettingError, match="must be a mapping of seats to players"):
        Lineup(players)


def test_any_agent_is_a_player() -> None:
    agent = ScriptedAgent(echo)
    assert isinstance(agent, Agent)
    assert Lineup({"first": agent, "second": agent}).resolved(SEATS, ()) == {"first": agent, "second": agent}


def test_a_frozen_policy() -> None:
    frozen = Frozen("alice@12")
    assert (frozen.policy, frozen.version) == ("alice", 12)


@pytest.mark.parametrize("name", ["@3", "alice@", "alice@x", "alice@-1", "alice@1.5"])
def test_a_frozen_policy_that_is_none(name: str) -> None:
    with pytest.raises(SettingError, match=r"write 'policy@version', as in Frozen\('alice@0'\)"):
        Frozen(name)


def test_a_frozen_model() -> None:
    frozen = Frozen("org/judge", sampling=Sampling(max_tokens=4))
    assert (frozen.model, frozen.policy, frozen.version) == ("org/judge", "", 0)
    assert Frozen("alice@3").model == ""
    with pytest.raises(SettingError, match=r"sampling='greedy'\): must be None or Sampling"):
        Frozen("org/judge", sampling="greedy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("newest", "members"), [(0, [0]), (4, [0]), (5, [0, 5]), (14, [0, 5, 10]), (15, [5, 10, 15]), (99, [85, 90, 95])]
)
def test_the_members_of_a_league(newest: int, members: list[int]) -> None:
    assert list(League("alice", every=5, size=3).members(newest)) == members


@pytest.mark.parametrize("wrong", [{"sampler": "best"}, {"every": 0}, {"size": 1.5}, {"window": True}], ids=str)
def test_a_league_that_is_none(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(SettingError, match=rf"League\('alice', {name}={value!r}\): must be"):
        League("alice", **wrong)


def test_whom_tables_name() -> None:
    script = Scripted(lambda conversation: "")
    players: list[Player] = ["alice", Frozen("a@1"), League("bob"), External("http://h/v1", "judge"), script]
    assert [name_of(one) for one in players] == ["alice", "a@1", "League(bob)", "judge", "<lambda>"]


def test_a_server_s_model() -> None:
    one = External("http://localhost:8000/v1", "judge", key=Secret("abc"))
    assert one == External("http://localhost:8000/v1", "judge", key=Secret("abc"))
    assert one != External("http://localhost:8000/v1", "judge", key=Secret("abd")) and "abc" not in repr(one)
    assert isinstance(one.agent(), EndpointAgent)
    with pytest.raises(SettingError, match="must begin with http"):
        External("localhost", "m")
    with pytest.raises(SettingError, match="name the model"):
        External("http://localhost", "")
    with pytest.raises(SettingError, match=r"write key=Secret\(text\)") as raised:
        External("http://localhost", "m", key="abc")  # type: ignore[arg-type]
    assert "abc" not in str(raised.value)


def test_a_script_that_is_no_function() -> None:
    with pytest.raises(SettingError, match=r"Scripted\('check'\): must be a function"):
        Scripted("check")  # type: ignore[arg-type]
