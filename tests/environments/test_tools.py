"""Tools of a seat: what a model is told of them, what becomes of its calls, in which order they are answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest

from sparring.environments import Reply, Seat, Tool, ToolCall, tool
from sparring.errors import EffectError, SettingError
from tests.environments.conftest import episode, saying, seat, texts


@dataclass(frozen=True)
class Point:
    x: int


@tool
async def add(a: int, b: Annotated[int, msgspec.Meta(description="the second", ge=0)] = 1) -> int:
    """Add two numbers."""
    return a + b


@tool(timeout=3.0)
async def show(points: list[Point], how: str | None = None) -> str:
    """Show points."""
    return f"{points} {how}"


@tool
async def broken() -> str:
    """Fail."""
    raise RuntimeError("no network")


def calling(*calls: tuple[str, str], text: str = "") -> Reply:
    made = tuple(ToolCall(name=name, arguments=arguments) for name, arguments in calls)
    return Reply(text=text, tool_calls=made, stop="tool_calls")


async def answered(arguments: str, one: Tool = add) -> str:
    solver = seat(calling((one.name, arguments)))
    solver.tools(one)
    (call,) = (await solver.ask("?")).tool_calls
    return await call.run()


def test_a_tool_is_its_function_s_name_docstring_and_parameters() -> None:
    assert (add.name, add.description) == ("add", "Add two numbers.")
    assert add.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "integer", "description": "the second", "minimum": 0, "default": 1},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    assert json.loads(add.spec.parameters) == add.parameters
    assert show.parameters["properties"]["points"] == {"type": "array", "items": {"$ref": "#/$defs/Point"}}
    assert show.parameters["$defs"]["Point"]["required"] == ["x"]


async def test_a_call_is_run_with_arguments_of_its_types() -> None:
    assert await answered('{"a": 3, "b": 4}') == "7"
    assert await answered('{"a": 3}') == "4"
    assert await answered('{"points": [{"x": 1}]}', show) == "[Point(x=1)] None"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"a": "three"}', "Expected `int`, got `str` - at `$.a`"),
        ('{"a": 1, "c": 2}', "unknown field `c`"),
        ('{"a": 1, "b": -1}', "Expected `int` >= 0 - at `$.b`"),
        ("{}", "missing required field `a`"),
        ("", "missing required field `a`"),
        ("[1]", "Expected `object`, got `array`"),
        ('{"a"', "truncated"),
        ('{"a": "\\ud800"}', "add was called with arguments that do not fit"),
        ("[" * 100_000, "add was called with arguments that do not fit"),
    ],
)
async def test_wrong_arguments_come_back_as_text(arguments: str, said: str) -> None:
    assert said in await answered(arguments)


async def test_a_call_of_no_tool_and_what_is_no_call_come_back_as_text() -> None:
    solver = seat(calling(("multiply", "{}"), ("", "add(1, 2)")))
    solver.tools(add, show)
    unknown, none = (await solver.ask("?")).tool_calls
    assert await unknown.run() == "There is no tool 'multiply': there is add, show."
    assert (await none.run()).startswith("This is no call: 'add(1, 2)'. A call is a JSON object")


async def test_what_a_tool_does_is_an_effect() -> None:
    with episode(saying(calling(("add", '{"a": 1}')), calling(("show", '{"points": []}')))) as running:
        solver = Seat("solver", running)
        solver.tools(add, show)
        for text in ("one", "two"):
            (call,) = (await solver.ask(text)).tool_calls
            solver.answer(call, await call.run())
    here = __name__
    assert running.effects == [(f"{here}:add", b"[1,1]", 60.0), (f"{here}:show", b"[[],null]", 3.0)]


async def test_what_a_tool_does_wrong_is_no_text_for_the_model() -> None:
    with pytest.raises(RuntimeError, match="no network"):
        await answered("{}", broken)


async def test_a_result_that_is_no_json_is_an_effect_s_failure() -> None:
    @tool
    async def strange() -> object:
        """Return what is no data."""
        return object()

    with episode(saying(calling(("strange", "{}")))) as running:
        solver = Seat("solver", running)
        solver.tools(strange)
        (call,) = (await solver.ask("?")).tool_calls
        with pytest.raises((EffectError, TypeError)):
            await call.run()


async def test_calls_are_answered_in_their_order_before_anything_else() -> None:
    two = calling(("add", '{"a": 1}'), ("add", '{"a": 2}'))
    solver = seat(two, "done")
    solver.tools(add)
    first, second = (await solver.ask("?")).tool_calls
    with pytest.raises(SettingError, match=r"answer\('add'\): next is 'add'; answer the calls .* in their order"):
        solver.answer(second, "3")
    solver.answer(first, "2")
    solver.answer(second, "3")
    with pytest.raises(SettingError, match="none is left to answer"):
        solver.answer(second, "3")
    assert (await solver.ask()).text == "done"
    assert texts(solver.conversation) == ["user: ?", "assistant: ", "tool: 2", "tool: 3", "assistant: done"]
    with pytest.raises(SettingError, match="none is left to answer"):
        solver.answer(first, "2")


async def test_a_call_is_not_answered_once_something_else_was_said() -> None:
    solver = seat(calling(("add", '{"a": 1}')))
    solver.tools(add)
    (call,) = (await solver.ask("?")).tool_calls
    solver.tell("never mind")
    with pytest.raises(SettingError, match="none is left to answer"):
        solver.answer(call, "2")


async def test_tools_come_first_and_are_kept_in_contexts_and_forks() -> None:
    solver = seat("a", calling(("add", '{"a": 1}')), calling(("add", '{"a": 2}')))
    solver.system("rules")
    solver.tools(add)
    await solver.ask("one")
    with pytest.raises(SettingError, match=r"tools: must come before the first tell\(\) or ask\(\)"):
        solver.tools(show)
    fork = solver.fork()
    solver.new_context()
    for one in (solver, fork):
        assert [spec.name for spec in one.conversation.tools] == ["add"]
        (call,) = (await one.ask("two")).tool_calls
        one.answer(call, await call.run())
    solver.new_context()
    solver.tools(show)
    assert [spec.name for spec in solver.conversation.tools] == ["add", "show"]
    assert [spec.name for spec in fork.conversation.tools] == ["add"]


def test_tools_name_a_request() -> None:
    plain, one, other = seat(), seat(), seat()
    one.tools(add)
    other.tools(show)
    for solver in (plain, one, other):
        solver.tell("?")
    assert len({solver.conversation.digest for solver in (plain, one, other)}) == 3
    empty = seat()
    empty.tools()
    empty.tell("?")
    assert empty.conversation.digest == plain.conversation.digest


def test_what_is_no_tool_is_refused() -> None:
    solver = seat()
    with pytest.raises(SettingError, match=r"must be a Tool; decorate an async function with @tool"):
        solver.tools(print)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"tools\('add'\): it has a tool of that name already"):
        solver.tools(add, add)
    assert list(solver.conversation.tools) == []


async def silent(a: int) -> None: ...


async def untyped(a: int) -> None:
    """Do it."""


untyped.__annotations__.clear()


async def spread(*a: int) -> None:
    """Do it."""


async def odd(a: type) -> None:
    """Do it."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (print, "must be an async function"),
        (silent, "give it a docstring"),
        (untyped, "a must be an ordinary parameter with an annotation"),
        (spread, r"\*a: 'int' must be an ordinary parameter"),
        (odd, "a parameter's type is none that JSON holds"),
    ],
)
def test_a_function_that_makes_no_tool(function: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tool(function)


def test_settings_of_tools_are_checked() -> None:
    with pytest.raises(SettingError, match=r"tool\(timeout=0\): must be a finite number"):
        tool(timeout=0)
    with pytest.raises(SettingError, match=r"Tool\(name='a b'\)"):
        Tool(name="a b", description="", parameters={"type": "object"}, answer=add.answer)
    with pytest.raises(SettingError, match="must be a JSON schema of an object"):
        Tool(name="a", description="", parameters={}, answer=add.answer)


async def test_a_call_without_a_seat_cannot_be_run() -> None:
    with pytest.raises(SettingError, match=r"run\(\) works on the calls of a seat's reply"):
        await ToolCall(name="add", arguments="{}").run()
