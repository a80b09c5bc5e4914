"""Stand-ins: the same for equal seeds, mostly legal, and the gold reply where they are sure of it."""

from __future__ import annotations

from math import exp, isclose

from sparring.agents.stand_in import StandIn, last_told
from sparring.environments import Conversation, Message, Place, Reply, Request, Text, Turn

PICK = "Move.\nReply with exactly one of: left, right."


def told(text: str) -> Conversation:
    conversation = Conversation(Place(seat="solver"))
    conversation.append(Message(role="user", parts=(Text(text=text),)))
    return conversation


async def said(player: StandIn, text: str, seeds: int = 200) -> list[str]:
    return [(await player.act(told(text), Request(turn=0), seed)).reply.text for seed in range(seeds)]


async def test_equal_seeds_say_the_same_and_others_do_not() -> None:
    first = await said(StandIn("42"), "?")
    assert first == await said(StandIn("42"), "?") and len(set(first)) > 20
    assert 60 < first.count("42") < 120, "half of those that are not clumsy"


async def test_options_are_picked_but_for_one_time_in_eight() -> None:
    legal = [text in ("left", "right") for text in await said(StandIn("42"), PICK)]
    assert 10 < legal.count(False) < 45


async def test_who_is_sure_says_the_gold_reply_and_picks_where_there_are_options() -> None:
    sure = StandIn("42", sure=True)
    assert set(await said(sure, "?")) == {"42"}
    assert "42" not in await said(sure, PICK)


async def test_a_choice_depends_on_the_option_alone() -> None:
    player = StandIn()
    one, two = await player.choose(told("x"), ("a", "b"))
    assert [two, one] == list(await player.choose(told("y"), ("b", "a")))
    assert isclose(exp(one) + exp(two), 1.0)


def test_the_last_that_was_told() -> None:
    conversation = told("hello")
    conversation.append(Turn(reply=Reply(text="hi"), record=None, number=0))
    assert last_told(conversation) == "hello"
    assert last_told(Conversation(Place(seat="solver"))) == ""
