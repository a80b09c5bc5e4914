"""Python as a tool: what a model sees, what is kept, and what becomes of it when an episode goes on after a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparring import Limits, Sandbox, python_session, python_tool
from sparring.environments import Reply, Seat, ToolCall, environment
from sparring.errors import SettingError
from sparring.rollout.events import Acted, Affected
from tests.rollout.stage import conduct, plan_of


def code(text: str) -> str:
    return json.dumps({"code": text})


async def test_a_program_of_its_own_each_time() -> None:
    python = python_tool()
    assert await python.answer(code("x = 6 * 7\nprint(x)")) == "42"
    assert "NameError: name 'x' is not defined" in await python.answer(code("print(x)"))
    assert await python.answer(code("x = 1")) == "It printed nothing."


@pytest.mark.parametrize("arguments", ['{"kode": "1"}', '{"code": 1}', "1", "{", '{"code": "\\ud800"}'])
async def test_wrong_arguments_come_back_as_text(arguments: str) -> None:
    assert "arguments that do not fit" in await python_tool().answer(arguments)


async def test_what_is_long_is_cut_in_the_middle() -> None:
    said = await python_tool(shown=20).answer(code("print('a' * 15 + 'b' * 15)"))
    assert said == "a" * 10 + "\n... (10 characters are left out) ...\n" + "b" * 10
    with pytest.raises(SettingError, match="shown=0"):
        python_tool(shown=0)


async def test_a_limit_is_told() -> None:
    python = python_tool(Sandbox(limits=Limits(seconds=0.3)))
    assert await python.answer(code("while True: pass")) == "time: it took longer than 0.3 s"


async def test_a_session_keeps_names_and_shows_what_is_new() -> None:
    async with python_session() as python:
        assert await python.answer(code("x = 5\nprint('first')")) == "first"
        assert await python.answer(code("print(x)")) == "5"
        assert "ZeroDivisionError" in await python.answer(code("x += 1\n1 / 0"))
        assert await python.answer(code("import sys\nsys.exit(3)")) == "it left with code 3"
        assert await python.answer(code("print(x)")) == "6"


async def test_a_session_that_is_lost_begins_anew_and_says_so() -> None:
    async with python_session(Sandbox(limits=Limits(seconds=0.3))) as python:
        await python.answer(code("x = 5"))
        lost = await python.answer(code("while True: pass"))
        assert lost == "time: it took longer than 0.3 s\nAll names are lost: the next call begins anew."
        assert "NameError" in await python.answer(code("print(x)"))


async def test_each_call_of_a_session_has_all_of_its_time() -> None:
    async with python_session(Sandbox(limits=Limits(seconds=1.0))) as python:
        for _ in range(4):
            assert await python.answer(code("import time\ntime.sleep(0.4)\nprint('in time')")) == "in time"


@environment
async def counting(task: int, solver: Seat) -> float:
    """The model's own code counts; the reward is what it counted to."""
    async with python_session() as python:
        solver.tools(python)
        reply = await solver.ask("Count.")
        said = ""
        while reply.tool_calls:
            said = await reply.tool_calls[0].run()
            solver.answer(reply.tool_calls[0], said)
            reply = await solver.ask()
        return float(said)


class Counter:
    """A player that sets a name, counts it up, and ends."""

    CODES = ("n = 1\nprint(n)", "n += 1\nprint(n)", "n += 1\nprint(n)")

    async def act(self, conversation: Any, request: Any, seed: int) -> Any:
        from sparring.agents import Action

        if request.turn == len(self.CODES):
            return Action(reply=Reply(text="done"))
        call = ToolCall(name="python", arguments=code(self.CODES[request.turn]))
        return Action(reply=Reply(text="", tool_calls=(call,), stop="tool_calls"))

    def context_left(self, conversation: Any) -> int:
        return 1


async def test_a_session_goes_on_after_a_crash_at_any_place() -> None:
    """What was journaled is not asked for again, and is there when the next code runs."""
    whole = await conduct(plan_of(counting, Counter()))
    assert whole.value == 3.0
    kinds = [type(event) for event in whole.events]
    assert kinds == [Acted, Affected] * 3 + [Acted]
    for held in range(len(whole.events)):
        again = await conduct(plan_of(counting, Counter(), past=whole.events[:held]))
        assert (again.ended, again.events) == (whole.ended, whole.events[held:])
