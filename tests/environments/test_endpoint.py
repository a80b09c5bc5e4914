"""A seat's endpoint, asked by OpenAI's own client: which conversation a request belongs to, what it says, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI, omit

from sparring.environments import Conversation, Reply, Request, Score, Seat, ToolCall, environment
from sparring.errors import BackendError, ContextFull, RewardError
from tests.environments.conftest import Scripted, saying, texts

TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALLS = (ToolCall(name="add", arguments='{"a": 1}'), ToolCall(name="add", arguments='{"a": 2}'))


@asynccontextmanager
async def asking(running: Scripted) -> AsyncIterator[tuple[Seat, Callable[..., Any]]]:
    """A seat, and a function that asks for a completion as programs do."""
    seat = Seat("agent", running)
    async with seat.endpoint() as url, AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as client:

        async def ask(*messages: Any, **settings: Any) -> Any:
            with anyio.fail_after(10):
                return await client.chat.completions.create(model="any", messages=list(messages), **settings)

        yield seat, ask


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def assistant(text: str) -> Any:
    return {"role": "assistant", "content": text}


async def test_a_completion_is_a_reply() -> None:
    running = saying(Reply(text="hi", reasoning="hm"), Reply(text="cut", stop="length"))
    async with asking(running) as (seat, ask):
        first = await ask({"role": "developer", "content": "rules"}, user("hello"), max_tokens=5, stop=["\n"])
        second = await ask(user("more"), max_completion_tokens=7, max_tokens=9, stop="END", temperature=1.0, n=1)
    assert (first.choices[0].message.content, first.choices[0].finish_reason, first.model) == ("hi", "stop", "any")
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("cut", "length")
    asked = [(request.max_tokens, request.stop, request.timeout) for _, request in running.requests]
    assert asked == [(5, ("\n",), None), (7, ("END",), None)]
    found = sorted(list(texts(conversation)) for conversation in seat.programs)
    assert found == [["system: rules", "user: hello", "assistant: hi"], ["user: more", "assistant: cut"]]
    assert seat.spoke and texts(seat.conversation) == []
    assert list(seat.contexts) == [seat.conversation, *seat.programs]


async def test_a_request_that_extends_a_conversation_continues_it() -> None:
    running = saying("a", "b", "c", "d")
    async with asking(running) as (seat, ask):
        await ask(user("one"))
        await ask(user("one"), assistant("a"), user("two"))
        await ask(user("one"), assistant("a"), user("two"), assistant("b"), user("three"), user("four"))
    (conversation,) = seat.programs
    assert texts(conversation) == [
        *("user: one", "assistant: a", "user: two", "assistant: b"),
        *("user: three", "user: four", "assistant: c"),
    ]
    (number,) = {place.context for place, _ in running.requests}
    assert [request.turn for _, request in running.requests] == [number, number + 1, number + 2]


@pytest.mark.parametrize(
    "messages",
    [
        [user("one")],
        [user("other"), assistant("a"), user("two")],
        [user("one"), assistant("not what it said"), user("two")],
        [user("one"), user("two")],
        [{"role": "system", "content": "new"}, user("one"), assistant("a"), user("two")],
    ],
)
async def test_any_other_starts_a_context_in_which_what_it_says_is_only_seen(messages: list[Any]) -> None:
    async with asking(saying("a", "b")) as (seat, ask):
        await ask(user("one"))
        await ask(*messages)
    shown = [f"{message['role']}: {message['content']}" for message in messages]
    assert sorted(map(list, map(texts, seat.programs))) == sorted(
        [["user: one", "assistant: a"], [*shown, "assistant: b"]]
    )
    (second,) = [one for one in seat.programs if texts(one) == [*shown, "assistant: b"]]
    assert len([entry for entry in second.entries if not hasattr(entry, "role")]) == 1, "one turn of its own"


async def test_requests_at_once_are_contexts_apart_whose_numbers_no_order_changes() -> None:
    async def numbers(*order: str) -> dict[str, int]:
        entered, go_on = anyio.Event(), anyio.Event()

        class Gate(Scripted):
            async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
                self.requests.append((conversation.place, request))
                if len(self.requests) == len(order):
                    go_on.set()
                entered.set()
                await go_on.wait()
                return Reply(text="a"), None

        async with asking(Gate(script=lambda conversation, request: "")) as (seat, ask):
            async with anyio.create_task_group() as group:
                for text in order:
                    group.start_soon(ask, user(text))
                    await entered.wait()
                    entered = anyio.Event()
            return {f"{texts(one)[0]}/{at}": one.place.context for at, one in enumerate(seat.programs)}

    forth, back = await numbers("one", "two", "two"), await numbers("two", "two", "one")
    assert forth == back
    assert len(set(forth.values())) == 3


async def test_a_conversation_that_is_being_replied_to_is_not_continued() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    class Gate(Scripted):
        async def act(self, conversation: Conversation, request: Request) -> tuple[Reply, object]:
            if texts(conversation)[-1] == "user: slow":
                entered.set()
                await go_on.wait()
            return Reply(text="a"), None

    async with asking(Gate(script=lambda conversation, request: "")) as (seat, ask):
        await ask(user("one"))
        async with anyio.create_task_group() as group:
            group.start_soon(ask, user("one"), assistant("a"), user("slow"))
            await entered.wait()
            await ask(user("one"), assistant("a"), user("fast"))
            go_on.set()
    assert sorted(len(texts(one)) for one in seat.programs) == [4, 4]


async def test_tools_of_a_program() -> None:
    running = saying(Reply(text="", tool_calls=CALLS, stop="tool_calls"), "three")
    async with asking(running) as (seat, ask):
        first = await ask(user("add"), tools=[TOOL])
        message = first.choices[0].message
        answers = [
            {"role": "tool", "tool_call_id": call.id, "content": text}
            for call, text in zip(message.tool_calls, ("2", "3"), strict=True)
        ]
        with pytest.raises(BadRequestError, match="answer the calls of the message before, in their order"):
            await ask(user("add"), message, *reversed(answers), tools=[TOOL])
        second = await ask(user("add"), message, *answers, tools=[TOOL])
    assert first.choices[0].finish_reason == "tool_calls" and message.content is None
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
        (call.name, call.arguments) for call in CALLS
    ]
    assert second.choices[0].message.content == "three"
    (conversation,) = seat.programs
    assert texts(conversation) == ["user: add", "assistant: ", "tool: 2", "tool: 3", "assistant: three"]
    assert [tool.name for tool in conversation.tools] == ["add"]


async def test_other_tools_are_another_context() -> None:
    async with asking(saying("a", "b")) as (seat, ask):
        await ask(user("one"))
        await ask(user("one"), assistant("a"), user("two"), tools=[TOOL])
    assert len(seat.programs) == 2


async def test_a_stream_is_the_same_reply() -> None:
    """Read in a thread, as the client's own asynchronous streams are left open on trio."""
    seat = Seat("agent", saying("hello", Reply(text="so", tool_calls=CALLS, stop="tool_calls")))

    def chunks(url: str, text: str, tools: list[Any]) -> list[Any]:
        with OpenAI(base_url=url, api_key="-") as client:
            return list(
                client.chat.completions.create(model="any", messages=[user(text)], stream=True, tools=tools or omit)
            )

    async with seat.endpoint() as url:
        found = await anyio.to_thread.run_sync(chunks, url, "one", [])
        calls = await anyio.to_thread.run_sync(chunks, url, "two", [TOOL])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found) == "hello"
    assert found[-1].choices[0].finish_reason == "stop"
    assert [call.index for chunk in calls for call in chunk.choices[0].delta.tool_calls or []] == [0, 1]


async def test_the_text_that_ends_a_reply_is_not_told_and_the_conversation_goes_on_without_it() -> None:
    async with asking(saying("think\nObservation:", "b")) as (seat, ask):
        first = await ask(user("one"), stop=["\nObservation:", ":"])
        assert first.choices[0].message.content == "think"
        await ask(user("one"), assistant("think"), user("Observation: 3"))
    (conversation,) = seat.programs
    assert texts(conversation)[1] == "assistant: think\nObservation:", "the player's own words stay whole"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 0.2}, "temperature=0.2: this seat's replies are drawn at 1.0, .*; leave it out", "temperature"),
    ({"top_p": 0.9}, "top_p=0.9: this seat answers as top_p=1 does; leave it out", "top_p"),
    ({"n": 2}, "n=2: .*leave it out", "n"),
    ({"seed": 1}, "seed=1: draws follow the run's own seed; leave it out", "seed"),
    ({"logprobs": True}, "logprobs=True", "logprobs"),
    ({"presence_penalty": 0.5}, "presence_penalty=0.5", "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias=", "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format=.*json_object", "response_format"),
    ({"tool_choice": "required", "tools": [TOOL]}, "tool_choice='required'", "tool_choice"),
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options=", "stream_options"),
    ({"max_tokens": 0}, "max_tokens=0: must be at least 1", "max_tokens"),
    ({"stop": [""]}, r"stop=\[''\]", "stop"),
    ({"extra_body": {"top_k": 5}}, "unknown field `top_k`.*leave it out", ""),
    ({"extra_body": {"messages": []}}, "messages must end with what the assistant is to reply to", "messages"),
    ({"extra_body": {"messages": [assistant("a")]}}, "messages must end with", "messages"),
    ({"extra_body": {"messages": [user("a") | {"name": "Bob"}]}}, "unknown field `name`", ""),
    (
        {"extra_body": {"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]}},
        "tool_call_id='x'",
        "messages",
    ),
    ({"extra_body": {"messages": [user([{"type": "image_url"}])]}}, "leave it out", ""),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("settings", "message", "field"), REFUSED)
async def test_what_a_seat_cannot_do_is_refused_with_the_value_and_the_remedy(
    settings: dict[str, Any], message: str, field: str
) -> None:
    running = saying()
    async with asking(running) as (seat, ask):
        with pytest.raises(BadRequestError, match=message) as caught:
            await ask(user("one"), **settings)
    assert (caught.value.param or "") == field
    assert running.requests == [] and not seat.spoke and list(seat.programs) == []


async def test_what_asks_for_what_is_done_anyway_is_no_contradiction() -> None:
    anyway: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 1.0,
        "n": 1,
        "presence_penalty": 0.0,
        "logprobs": False,
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "user": "me",
        "stream": False,
    }
    running = saying("a")
    running.drawn_at = 0.5
    async with asking(running) as (_, ask):
        assert (await ask(user("one"), **anyway)).choices[0].message.content == "a"


async def test_what_does_not_fit_is_refused_as_openai_does_and_may_be_tried_again() -> None:
    running = saying(ContextFull("5 tokens too many"), "a")
    async with asking(running) as (seat, ask):
        with pytest.raises(BadRequestError, match="5 tokens too many") as caught:
            await ask(user("one"))
        assert caught.value.code == "context_length_exceeded"
        assert not seat.spoke
        await ask(user("one"))
    assert [request.attempt for _, request in running.requests] == [0, 1]
    assert len(seat.programs) == 1


async def test_what_breaks_a_player_ends_the_block_with_that_error() -> None:
    async def asked() -> None:
        async with asking(saying(BackendError("no weights"))) as (_, ask):
            await ask(user("one"))

    with pytest.raises(BackendError, match="no weights"):
        await asked()


async def test_other_addresses() -> None:
    seat = Seat("agent", saying())
    async with seat.endpoint() as url, AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["agent"]
        with pytest.raises(NotFoundError, match="POST /v1/embeddings: this seat answers"):
            await client.embeddings.create(model="any", input="x")
        async with httpx2.AsyncClient() as plain:
            answer = await plain.post(f"{url}/chat/completions", content=b'{"model": "\xff"}')
            assert answer.status_code == 400 and "leave it out" in answer.json()["error"]["message"]


async def test_a_program_may_run_in_a_thread() -> None:
    seat = Seat("agent", saying("a"))

    def program(url: str) -> str | None:
        with OpenAI(base_url=url, api_key="-") as client:
            done = client.chat.completions.create(model="any", messages=[user("one")])
        return done.choices[0].message.content

    async with seat.endpoint() as url:
        assert await anyio.to_thread.run_sync(program, url) == "a"


async def test_a_seat_that_only_programs_spoke_with_is_rewarded_at_the_end() -> None:
    async with asking(saying("a")) as (seat, ask):
        await ask(user("one"))
    with pytest.raises(RewardError, match="it has spoken to programs alone; return its reward from play instead"):
        seat.reward(1.0)


async def test_conversations_outlive_the_address_and_a_fork_has_its_own() -> None:
    running = saying("a", "b", "c")
    async with asking(running) as (seat, ask):
        await ask(user("one"))
    async with seat.endpoint() as url, AsyncOpenAI(base_url=url, api_key="-") as client:
        messages = [user("one"), assistant("a"), user("two")]
        await client.chat.completions.create(model="any", messages=messages)
    fork = seat.fork()
    async with fork.endpoint() as url, AsyncOpenAI(base_url=url, api_key="-") as client:
        await client.chat.completions.create(model="any", messages=[user("one")])
    assert [len(texts(one)) for one in (*seat.programs, *fork.programs)] == [4, 2]
    assert [place.fork for place, _ in running.requests] == ["", "", "1"]


@environment
async def unused(task: int, agent: Seat) -> Score:
    async with agent.endpoint():
        return Score(1.0)


async def test_an_address_that_nobody_asks_is_no_reply() -> None:
    from tests.environments.conftest import played

    _, (seat,) = await played(unused, 0, lambda conversation, request: "")
    assert not seat.spoke
