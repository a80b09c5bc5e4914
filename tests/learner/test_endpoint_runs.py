"""A run whose seats speak through an endpoint and call tools: exported, rescored and told again as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI

from sparring import Episodes, Lineup, Reply, Run, Scripted, ScriptedModels, Seat, ToolCall, environment, tool
from sparring.backend.bytes_renderer import ByteRenderer
from sparring.learner import export, train
from sparring.learner.examples import Played
from sparring.learner.history import read_events
from sparring.rollout import StoredEpisode, read_episodes
from tests.learner.test_export import bits, trained_units
from tests.learner.worlds import duel_run


@tool
async def double(n: int) -> int:
    """Double a number."""
    return 2 * n


@environment
async def mixed(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
    """One asks itself first and is then spoken to by a program; the other has a tool."""
    first = await one.ask(f"task {task}")
    one.reward(0.5)
    async with one.endpoint() as url, AsyncOpenAI(base_url=url, api_key="-") as client:
        messages: list[Any] = [
            {"role": "user", "content": "Say a."},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": first.text},
        ]
        for _ in range(2):
            answer = await client.chat.completions.create(model="any", messages=messages)
            said = answer.choices[0].message.content or ""
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}]
    two.tools(double)
    reply = await two.ask("Call it.")
    for call in reply.tool_calls:
        two.answer(call, await call.run())
    last = await two.ask() if reply.tool_calls else reply
    return {one: 1.0, two: float(len(last.text))}


def says(prompt: str, rng: Random) -> str:
    if prompt.endswith("Call it.") and rng.random() < 0.8:
        return f'<tool_call>{{"name": "double", "arguments": {{"n": {rng.randint(1, 9)}}}}}</tool_call>'
    return "".join(rng.choices("abcdefgh", k=rng.randint(1, 8)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    who = Lineup({"one": "alice", "two": "bob"})
    plain = duel_run(folder, name="mixed")
    made = replace(
        plain, train=Episodes(mixed, range(20), who), held_out=None, steps=2, backend=ScriptedModels(reply=says)
    )
    assert train(made)
    return made


def exported(run: Run, path: Path, *, whole: bool) -> list[StoredEpisode]:
    export(run.path, path, run=run if whole else None, tokens=True)
    return list(read_episodes(path))


@pytest.mark.parametrize("whole", [True, False])
def test_its_file_gives_the_trajectories_that_the_learners_had(run: Run, tmp_path: Path, whole: bool) -> None:
    episodes = exported(run, tmp_path / "out.jsonl", whole=whole)
    made = {bits(one) for episode in episodes for one in episode.trajectories()}
    units = trained_units(list(read_events(run.path)))
    assert units and {bits(one) for one in units} <= made
    ones = [one for one in units if one.seat == "one"]
    assert all([int(turn) for turn in np.unique(context.turn)] for one in ones for context in one.contexts)
    assert all(one.turn_rewards.tolist() == [0.5, 0.0, 0.0] for one in ones)


def test_whole_conversations_have_what_others_said_and_what_tools_answered(run: Run, tmp_path: Path) -> None:
    seen = 0
    for episode in exported(run, tmp_path / "out.jsonl", whole=True):
        one = [conversation for conversation in episode.conversations if conversation.seat == "one"]
        (two,) = (conversation for conversation in episode.conversations if conversation.seat == "two")
        assert [[(line.role, line.turn) for line in had.messages if line.role == "assistant"] for had in one] == [
            [("assistant", 0)],
            [("assistant", one[1].messages[1].turn), ("assistant", 1), ("assistant", 2)],
        ]
        assert one[1].messages[1].content == "a" and one[1].messages[1].versions == ()
        assert [spec.name for spec in two.tools] == ["double"]
        if two.messages[1].tool_calls:
            seen += 1
            given = two.messages[1].tool_calls[0].arguments.removeprefix('{"n": ').removesuffix("}")
            assert (two.messages[2].role, two.messages[2].content) == ("tool", str(2 * int(given)))
    assert seen


async def test_scripted_calls_are_imitated_as_a_policy_would_make_them() -> None:
    @environment
    async def calling(task: int, one: Seat) -> float:
        one.tools(double)
        reply = await one.ask("Call it.")
        one.answer(reply.tool_calls[0], await reply.tool_calls[0].run())
        return float((await one.ask()).text)

    call = ToolCall(name="double", arguments='{"n": 4}')
    replies: list[str | Reply] = [Reply(text="", tool_calls=(call,), stop="tool_calls"), "8"]
    script = iter(replies)
    played = Played(Episodes(calling, [0], Lineup({"one": Scripted(lambda conversation: next(script))})))
    ((shown,),) = await played.items(ByteRenderer())
    learned = ByteRenderer().text(shown.tokens[shown.mask])
    assert learned == '<tool_call>\n{"name": "double", "arguments": {"n": 4}}\n</tool_call>8'
    assert '"description": "Double a number."' in ByteRenderer().text(shown.tokens)
