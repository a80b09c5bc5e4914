"""Players that are not models: a function, and a person at a prompt."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sparring import Frozen, Human, Lineup, Scripted, ScriptedAgent, environment, play
from sparring.agents import HumanAgent
from sparring.environments import Conversation, Message, Seat
from sparring.errors import SettingError
from tests.agents.table import Table


def last_told(conversation: Conversation) -> str:
    last = conversation.entries[-1]
    assert isinstance(last, Message)
    return last.text


async def test_a_function_of_the_conversation_plays() -> None:
    table = Table(agent=ScriptedAgent(lambda conversation: f"{len(conversation.entries)}: {last_told(conversation)}"))
    seat = Seat("solver", table)
    assert (await seat.ask("one")).text == "1: one"
    assert (await seat.ask("two")).text == "3: two"
    assert [sample for _, sample in table.acts] == [None, None], "it makes no tokens"
    assert seat.context_left > 1 << 40


@pytest.mark.parametrize("returned", [None, 3, b"x", ["x"]])
async def test_a_script_says_text(returned: Any) -> None:
    seat = Seat("solver", Table(agent=ScriptedAgent(lambda conversation: returned)))
    with pytest.raises(SettingError, match=r"the script of seat 'solver' returned .*: must be text"):
        await seat.ask("?")


async def test_a_script_that_forgot_to_be_plain() -> None:
    async def late(conversation: Conversation) -> str:
        return "x"

    forgotten: list[Any] = []

    def script(conversation: Conversation) -> Any:
        forgotten.append(late(conversation))
        return forgotten[0]

    with pytest.raises(SettingError, match="must be text"):
        await Seat("solver", Table(agent=ScriptedAgent(script))).ask("?")
    forgotten[0].close()


def typed(*lines: str) -> tuple[list[str], Callable[[str], Awaitable[str]]]:
    """A person who types these lines, and what was shown each time."""
    shown: list[str] = []
    rest = iter(lines)

    async def prompter(text: str) -> str:
        shown.append(text)
        return next(rest)

    return shown, prompter


async def test_a_person_is_shown_what_is_new() -> None:
    shown, prompter = typed("four", "five")
    table = Table(agent=HumanAgent(prompter))
    seat = Seat("solver", table)
    seat.system("Sums.")
    seat.tell("Think.")
    assert (await seat.ask("2 + 2?")).text == "four"
    assert (await seat.ask("2 + 3?")).text == "five"
    assert shown == ["[solver] Sums.\nThink.\n2 + 2?\n> ", "[solver] 2 + 3?\n> "]
    assert [sample for _, sample in table.acts] == [None, None]


async def test_a_person_picks_until_it_is_an_option() -> None:
    shown, prompter = typed("  maybe", "YES.")
    seat = Seat("solver", Table(agent=HumanAgent(prompter)))
    assert await seat.pick("Well?", ("yes", "no")) == "yes"
    assert "Reply with exactly one of: yes, no." in shown[1]
    assert seat.illegal == 1


@environment
async def talk(task: str, first: Seat, second: Seat) -> dict[Seat, float]:
    one = await first.ask(task)
    two = await second.ask(str(one))
    return {first: 1.0, second: float(two.text == "ab")}


async def test_scripts_play_an_episode() -> None:
    lineup = Lineup({"first": Scripted(lambda c: last_told(c) + "b"), "second": ScriptedAgent(last_told)})
    finished = await play(talk, "a", lineup)
    assert finished.rewards == {"first": 1.0, "second": 1.0}
    assert finished.transcripts["second"] == [("user", "ab"), ("second", "ab")]


@pytest.mark.parametrize(
    ("players", "said"),
    [
        ({"first": Human()}, "names nobody for seat 'second'; there are no policies"),
        ({"first": "alice", "second": Human()}, "seat 'first' is played by policy 'alice'; there are no policies; use"),
        ({"first": Human(), "second": Frozen("alice@0")}, "seat 'second' is played by policy 'alice'"),
    ],
)
async def test_policies_need_a_run(players: Any, said: str) -> None:
    with pytest.raises(SettingError) as refused:
        await play(talk, "a", players)
    assert said in str(refused.value)
