"""A model behind an endpoint as a player: what the server is asked, what its answers become, when it is asked again."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from sparring import Sampling, Seat, environment, play
from sparring.agents import EndpointAgent
from sparring.errors import BackendError, SettingError
from tests.agents.server import completion, serving


@environment
async def talk(task: str, solver: Seat) -> float:
    solver.system("Be brief.")
    first = await solver.ask(task, stop=("!",))
    second = await solver.ask(f"Again, not {first.text}.", max_tokens=3)
    return float(second.stop == "length")


async def played(url: str, **settings: Any) -> Any:
    agent = EndpointAgent(url, "some-model", Sampling(temperature=0.5, max_tokens=9), **settings)
    with anyio.fail_after(30):
        return await play(talk, "hello", {"solver": agent}, seed=3)


async def test_the_whole_conversation_is_told_each_time() -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body)
        return completion("hi", "stop") if len(asked) == 1 else completion("ho", "length")

    with serving(answer) as url:
        finished = await played(f"{url}/", key="secret")
    assert finished.rewards == {"solver": 1.0}
    one, two = asked
    begin = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert one["messages"] == begin
    assert two["messages"] == [
        *begin,
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "Again, not hi."},
    ]
    assert (one["model"], one["temperature"], one["max_tokens"], one["stop"]) == ("some-model", 0.5, 9, ["!"])
    assert two["max_tokens"] == 3 and "stop" not in two
    assert one["seed"] != two["seed"] and 0 <= one["seed"] < 2**31
    assert {body["path"] for body in asked} == {"/v1/chat/completions"}
    assert {body["authorization"] for body in asked} == {"Bearer secret"}


async def test_a_busy_server_is_asked_again() -> None:
    calls: list[str] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        calls.append(body["authorization"])
        return (429, "later") if len(calls) == 1 else completion("hi")

    with serving(answer) as url:
        await played(url)
    assert calls == ["", "", ""]


@pytest.mark.parametrize(
    "status, body, message",
    [
        (400, "too long", "answered 400: too long"),
        (200, "<html>", "answered what is no JSON: '<html>'"),
        (200, {"choices": []}, "answered no completion"),
        (200, ["x"], "answered no completion"),
    ],
)
async def test_what_is_no_answer(status: int, body: Any, message: str) -> None:
    with serving(lambda asked: (status, body)) as url, pytest.raises(BackendError, match=message):
        await played(url)


def test_an_agent_that_cannot_be() -> None:
    with pytest.raises(SettingError, match=r"url='file:///etc/passwd': must begin with http"):
        EndpointAgent("file:///etc/passwd", "m", Sampling())
    with pytest.raises(SettingError, match="model='' at http://x: name the model"):
        EndpointAgent("http://x", "", Sampling())
