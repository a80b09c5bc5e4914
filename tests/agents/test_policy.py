"""A policy as a player: what its model is shown is, token for token, what was rendered and sampled before."""

import math
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring import Sampling, ScriptedModels
from sparring.agents import PolicyAgent, rendered
from sparring.backend.bytes_renderer import END, ROLES, ByteRenderer
from sparring.environments import Conversation, Place, Seat
from sparring.errors import ContextFull, SettingError
from tests.agents.table import RecordingClient, Table, context_of, policy, words

USER, SYSTEM, ASSISTANT = ROLES["user"], ROLES["system"], ROLES["assistant"]


def told(role: int, text: str) -> list[int]:
    return [role, *text.encode(), END]


# --------------------------------------------------------------------------------------------------------------- choosing


async def test_options_are_whole_replies_after_all_that_was_said() -> None:
    """Up to the token that ends a turn: an option that begins another is not likelier for it."""
    seat, client, _ = policy(words("four"))
    await seat.ask("2 + 2?")
    likely = await seat.choose("Sure?", ("yes", "yes and no"))
    first = [*told(USER, "2 + 2?"), ASSISTANT]
    assert client.prompts == [first, [*first, *b"four", END, *told(USER, "Sure?"), ASSISTANT]]
    assert client.options_asked == [[[*b"yes", END], [*b"yes and no", END]]]
    assert likely == pytest.approx({"yes": 1 / (1 + math.exp(-7)), "yes and no": 1 / (1 + math.exp(7))})


# --------------------------------------------------------------------------------------------------------------- one turn


async def test_the_first_turn() -> None:
    seat, client, table = policy(words("four"))
    seat.system("Be brief.")
    reply = await seat.ask("2 + 2?")
    assert (reply.text, reply.stop) == ("four", "stop")
    prompt = [*told(SYSTEM, "Be brief."), *told(USER, "2 + 2?"), ASSISTANT]
    assert client.prompts == [prompt]
    (sample,) = table.samples()
    assert sample.whole
    assert sample.prompt.tolist() == prompt
    assert sample.tokens.tolist() == [*b"four", END], "the token that ends the turn was sampled too"
    assert sample.logprobs.tolist() == [-1, -2, -3, -4, -5]
    assert sample.versions == ((5, 5),)
    assert sample.temperature == 1.0


async def test_how_a_reply_is_drawn() -> None:
    seat, client, table = policy(words("four"), temperature=0.5, max_tokens=9)
    await seat.ask("?", stop=("\n", "###"))
    (params,) = client.params
    assert (params.temperature, params.max_tokens, params.stop, params.stop_ids) == (0.5, 9, ("\n", "###"), (END,))
    assert (params.top_p, params.top_k) == (1.0, -1), "the trainer must be able to recompute the distribution"
    assert params.seed == table.seed
    assert table.samples()[0].temperature == 0.5


@pytest.mark.parametrize(("own", "asked", "limit"), [(9, None, 9), (9, 4, 4), (9, 40, 9)])
async def test_the_lower_limit_holds(own: int, asked: int | None, limit: int) -> None:
    seat, client, _ = policy(words("twelve bytes"), max_tokens=own)
    reply = await seat.ask("?", max_tokens=asked)
    assert client.params[0].max_tokens == limit
    assert (len(reply.text), reply.stop) == (limit, "length")


# ------------------------------------------------------------------------------------------------------------- over turns


async def test_a_context_only_grows() -> None:
    seat, client, table = policy(words("a", "bc", "d"))
    for question in ("one", "two", "three"):
        await seat.ask(question)
    first, second, third = table.samples()
    assert client.prompts[1] == [*client.prompts[0], *b"a", END, *told(USER, "two"), ASSISTANT]
    assert client.prompts[2] == [*client.prompts[1], *b"bc", END, *told(USER, "three"), ASSISTANT]
    assert [sample.whole for sample in (first, second, third)] == [True, False, False]
    assert second.prompt.tolist() == [*told(USER, "two"), ASSISTANT], "only what is new"
    assert context_of(seat.conversation) == [*client.prompts[2], *third.tokens.tolist()]


async def test_what_was_sampled_is_never_tokenized_again() -> None:
    """Bytes that are no text, and a special token in mid-reply: as text they would come back as other tokens."""
    odd = [200, 201, USER, 255, END]
    seat, client, _ = policy(lambda call: odd)
    reply = await seat.ask("one")
    assert "\ufffd" in reply.text
    await seat.ask("two")
    assert client.prompts[1] == [*client.prompts[0], *odd, *told(USER, "two"), ASSISTANT]


async def test_a_reply_that_was_cut_is_closed_before_the_next_turn() -> None:
    """The closing token was not sampled, so it belongs to what is rendered."""
    seat, client, table = policy(words("longer"), max_tokens=3)
    await seat.ask("one")
    await seat.ask("two")
    first, second = table.samples()
    assert first.tokens.tolist() == [*b"lon"]
    assert second.prompt.tolist() == [END, *told(USER, "two"), ASSISTANT]
    assert client.prompts[1] == [*client.prompts[0], *b"lon", *second.prompt.tolist()]


async def test_neighbouring_messages_of_one_role_are_one() -> None:
    seat, client, _ = policy(words("a"))
    seat.system("x")
    seat.system("y")
    seat.tell("1")
    seat.tell("2")
    await seat.ask("3")
    seat.tell("4")
    await seat.ask("5")
    assert client.prompts[0] == [*told(SYSTEM, "x\ny"), *told(USER, "1\n2\n3"), ASSISTANT]
    assert client.prompts[1][len(client.prompts[0]) + 2 :] == [*told(USER, "4\n5"), ASSISTANT]


async def test_what_it_was_told_stays_told_when_no_reply_came() -> None:
    seat, client, _ = policy(words("a"), context=40, max_tokens=30)
    with pytest.raises(ContextFull):
        await seat.ask("a question")
    assert client.prompts == [], "nothing was sampled"
    await seat.ask(max_tokens=5)
    assert client.prompts == [[*told(USER, "a question"), ASSISTANT]]


# ------------------------------------------------------------------------------------------------------ forks and contexts


async def test_a_fork_goes_on_from_a_copy() -> None:
    seat, client, table = policy(words("a", "b", "c", "d"))
    await seat.ask("one")
    fork = seat.fork("side")
    await fork.ask("two")
    await fork.ask("three")
    await seat.ask("else")
    past = [*client.prompts[0], *b"a", END]
    assert client.prompts[1] == [*past, *told(USER, "two"), ASSISTANT]
    assert client.prompts[3] == [*past, *told(USER, "else"), ASSISTANT], "what the fork said is nothing to the seat"
    _, first, second, _ = table.samples()
    assert first.whole, "a fork is a trajectory of its own: its first sample holds its whole context"
    assert first.prompt.tolist() == client.prompts[1]
    assert not second.whole
    assert context_of(fork.conversation) == [*client.prompts[2], *b"c", END]
    assert context_of(seat.conversation) == [*client.prompts[3], *b"d", END]


async def test_a_fork_takes_what_was_told_and_not_yet_answered() -> None:
    seat, client, _ = policy(words("a"))
    seat.tell("common")
    forks = [seat.fork(), seat.fork()]
    for number, fork in enumerate(forks):
        await fork.ask(f"{number}")
    assert client.prompts == [[*told(USER, f"common\n{number}"), ASSISTANT] for number in (0, 1)]


async def test_a_fork_of_a_fork() -> None:
    seat, client, table = policy(words("a", "b", "c"))
    await seat.ask("one")
    fork = seat.fork()
    await fork.ask("two")
    inner = fork.fork()
    await inner.ask("three")
    assert client.prompts[2] == [*client.prompts[1], *b"b", END, *told(USER, "three"), ASSISTANT]
    assert [sample.whole for sample in table.samples()] == [True, True, True]
    assert context_of(inner.conversation) == [*client.prompts[2], *b"c", END]


async def test_a_new_context_keeps_the_rules_alone() -> None:
    seat, client, table = policy(words("a", "b", "c"))
    seat.system("Rules.")
    await seat.ask("one")
    seat.new_context()
    await seat.ask("two")
    await seat.ask("three")
    start = [*told(SYSTEM, "Rules."), *told(USER, "two"), ASSISTANT]
    assert client.prompts[1] == start
    assert client.prompts[2] == [*start, *b"b", END, *told(USER, "three"), ASSISTANT]
    assert [sample.whole for sample in table.samples()] == [True, True, False]
    assert [place.context for place, _ in table.acts] == [0, 1, 1]


Step = tuple[str, int, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "tell", "fork", "context"]), st.integers(0, 9), st.text("ab\u00e9 ", max_size=3)
    ),
    max_size=14,
)


async def walk(steps: Sequence[Step], drawn: Sequence[Sequence[int]], limit: int) -> None:
    """Do these things to a seat and its forks, and hold every prompt against all that came before it in its
    conversation."""
    seat, client, table = policy(lambda call: [*drawn[call % len(drawn)], END], max_tokens=limit)
    seats = [seat]
    before: dict[int, list[int]] = {}
    for what, which, text in steps:
        one = seats[which % len(seats)]
        if what == "tell":
            one.tell(text)
        elif what == "fork":
            seats.append(one.fork())
            if id(one.conversation) in before:
                before[id(seats[-1].conversation)] = before[id(one.conversation)]
        elif what == "context":
            one.new_context()
        else:
            await one.ask(text)
            prompt, tokens = client.prompts[-1], table.samples()[-1].tokens.tolist()
            past = before.get(id(one.conversation), [])
            assert prompt[: len(past)] == past, "a context only grows"
            assert prompt[len(past) :].count(ASSISTANT) == 1
            before[id(one.conversation)] = [*prompt, *tokens]
            assert context_of(one.conversation) == [*prompt, *tokens], "what a learner puts together is what was seen"


@settings(max_examples=60)
@given(STEPS, st.lists(st.lists(st.integers(0, 255), max_size=4), min_size=1, max_size=5), st.integers(1, 5))
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_every_prompt_is_what_was_seen_and_sampled_before_it(
    loop: str, steps: list[Step], drawn: list[list[int]], limit: int
) -> None:
    anyio.run(walk, steps, drawn, limit, backend=loop)


# ------------------------------------------------------------------------------------------------------------- no more room


async def test_a_context_is_full_when_the_longest_reply_does_not_fit() -> None:
    prompt = len(told(USER, "12345")) + 1
    seat, client, _ = policy(words("a"), context=prompt + 10, max_tokens=10)
    await seat.ask("12345")
    again, _, _ = policy(words("a"), context=prompt + 9, max_tokens=10)
    said = f"seat 'solver': {prompt} tokens and a reply of up to 10 exceed the context of {prompt + 9}"
    with pytest.raises(ContextFull, match=said):
        await again.ask("12345")
    with pytest.raises(ContextFull, match=r"lower max_tokens.*or call new_context"):
        await seat.ask("and more")
    assert len(client.prompts) == 1


async def test_how_much_is_left() -> None:
    seat, _, _ = policy(words("four"), context=100)
    assert seat.context_left == 100, "nothing was said yet"
    seat.system("ab")
    assert seat.context_left == 100 - 4 - 1
    seat.tell("cde")
    assert seat.context_left == 100 - 4 - 5 - 1
    await seat.ask(max_tokens=seat.context_left)
    assert seat.context_left == 100 - 10 - 5, "after its reply, nothing new was said"
    fork = seat.fork()
    assert fork.context_left == seat.context_left
    seat.new_context()
    assert seat.context_left == 100 - 4 - 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
@settings(max_examples=40)
def test_what_is_left_is_what_may_be_asked_for(context: int, length: int, limit: int) -> None:
    async def main() -> None:
        seat, client, _ = policy(words("x"), context=context)
        seat.tell("a" * length)
        left = seat.context_left
        if limit <= left:
            await seat.ask(max_tokens=limit)
            assert len(client.prompts[0]) + limit <= context
        else:
            with pytest.raises(ContextFull):
                await seat.ask(max_tokens=limit)

    anyio.run(main)


# --------------------------------------------------------------------------------------------------------------- the rest


async def test_an_agent_keeps_nothing_between_calls() -> None:
    """A conversation's own turns are all that another agent needs to go on."""
    client = RecordingClient(drawn=words("a", "b"))
    agents = [PolicyAgent(client, ByteRenderer(), Sampling(), 1000) for _ in range(2)]
    table = Table(agent=agents[0])
    seat = Seat("solver", table)
    await seat.ask("one")
    table.agent = agents[1]
    await seat.ask("two")
    assert client.prompts[1][: len(client.prompts[0]) + 2] == [*client.prompts[0], *b"a", END]


async def test_equal_seeds_give_equal_replies() -> None:
    """With the scripted model in place of the recording client."""
    async with ScriptedModels().open(deterministic=True) as backend:
        model = await backend.create_model("any")
        agent = PolicyAgent(await model.sampler(), model.renderer, Sampling(), model.info.context_length)
        replies = []
        for seed in (1, 1, 2):
            replies.append((await Seat("solver", Table(agent=agent, seed=seed)).ask("?")).text)
    assert replies[0] == replies[1] != replies[2]


async def test_a_stop_string_ends_the_reply_and_is_part_of_it() -> None:
    async with ScriptedModels(reply=lambda prompt, rng: "one\ntwo").open(deterministic=True) as backend:
        model = await backend.create_model("any")
        agent = PolicyAgent(await model.sampler(), model.renderer, Sampling(), model.info.context_length)
        table = Table(agent=agent)
        seat = Seat("solver", table)
        reply = await seat.ask("?", stop=("\n",))
        assert (reply.text, reply.stop) == ("one\n", "stop")
        assert table.samples()[0].tokens.tolist() == [*b"one\n"]
        await seat.ask("!")
        assert table.samples()[1].prompt.tolist() == [END, *told(USER, "!"), ASSISTANT], "its turn is closed then"


def test_nothing_said_is_nothing_rendered() -> None:
    past, prompt = rendered(Conversation(Place(seat="solver")), ByteRenderer())
    assert (len(past), len(prompt)) == (0, 0)
    assert past.dtype == prompt.dtype == np.dtype(np.int32)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -0.1}, "sampling.temperature=-0.1: must be a finite number, 0"),
        ({"temperature": math.nan}, "sampling.temperature=nan"),
        ({"temperature": math.inf}, "sampling.temperature=inf"),
        ({"temperature": "1"}, "sampling.temperature='1'"),
        ({"max_tokens": 0}, "sampling.max_tokens=0: must be a whole number, at least 1"),
        ({"max_tokens": 2.5}, "sampling.max_tokens=2.5"),
    ],
)
def test_bad_sampling(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Sampling(**fields)


async def test_another_kind_of_player_s_turn_is_an_error_in_sparring() -> None:
    seat, _, table = policy(words("a"))
    await seat.ask("one")
    table.acts.clear()
    turn = seat.conversation.entries[-1]
    broken = Conversation(Place(seat="solver"), [type(turn)(reply=turn.reply, record=None, number=0)])  # type: ignore[union-attr, call-arg]
    with pytest.raises(AssertionError, match="another kind of player"):
        rendered(broken, ByteRenderer())
