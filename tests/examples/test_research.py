"""examples/research.py: tools and fresh contexts; the tokens that are recorded, and a run that goes on as if never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from sparring import Lineup, Reply, Sampling, Scripted, ToolCall, play
from sparring.backend.bytes_renderer import ByteRenderer
from sparring.rollout.events import Acted, Affected, Ended
from sparring.rollout.trajectory import trajectories
from tests.examples.short import example, shortened, steps_of, trained
from tests.learner.worlds import crash_at_every_commit

research = example("research")
TASK = research.Problem("What is 6 * 7?", "42")


def call(code: str) -> Reply:
    made = ToolCall(name="python", arguments=json.dumps({"code": code}))
    return Reply(text="", tool_calls=(made,), stop="tool_calls")


async def played(*replies: str | Reply, turns: int = 10) -> tuple[float, list[tuple[str, str]]]:
    rest = iter(replies)
    lineup = Lineup({"agent": Scripted(lambda conversation: next(rest))})
    finished = await play(research.research(turns=turns), TASK, lineup)
    return finished.rewards["agent"], list(finished.transcripts["agent"])


async def test_an_answer_of_the_tool_reaches_the_model() -> None:
    reward, told = await played(call("print(6 * 7)"), "\\boxed{42}")
    assert reward == 1.0
    assert told[2] == ("tool", "42")


async def test_who_calls_to_the_end_says_nothing_and_is_wrong() -> None:
    reward, told = await played(*[call("print(1)")] * 4, turns=3)
    assert (reward, [who for who, _ in told].count("tool")) == (0.0, 3)


def says(prompt: str, rng: Random) -> str:
    """Calls the tool until it saw a result, at times wrongly or at length; then it may be right."""
    if (
        "<tool_call>" not in prompt.rpartition("</tool_call>")[2]
        and "Results so far" not in prompt
        and rng.random() < 0.6
    ):
        code = rng.choice(["print(sum(map(int, str(2**9))))", "print('x' * 1500)", "1 / 0"])
        wrong = rng.random() < 0.2
        return f'Hm.<tool_call>{{"name": "python", "arguments": {{"{"kode" if wrong else "code"}": "{code}"}}}}</tool_call>'
    return f"\\boxed{{{rng.choice([8, 9, 10])}}}"


def short(folder: Path, **changes: Any) -> Any:
    task = research.Problem("What is the sum of the digits of 2 ** 9?", "8")
    train = replace(research.run.train, tasks=[task] * 8)
    settings: dict[str, Any] = {
        "train": train,
        "held_out": None,
        "policies": replace(research.run.policies, sampling=Sampling(max_tokens=200)),
        "groups_per_step": 2,
        "group_size": 3,
        "deterministic": True,
    }
    return shortened(research.run, says, folder, **settings | changes)


async def test_a_short_run_records_what_was_seen_and_sampled(tmp_path: Path) -> None:
    events = await trained(short(tmp_path))
    assert len(steps_of(events)) == 2
    called = [
        event for event in events if isinstance(event, Acted) and event.reply is not None and event.reply.tool_calls
    ]
    assert called and any(isinstance(event, Affected) for event in events)
    texts = [text for text in tokens_as_text(events) if "Hm." in text]
    assert texts
    for text in texts:
        assert "You may call functions." in text and '"name": "python"' in text
    assert any("that do not fit: Object contains unknown field `kode`" in text for text in texts)
    assert any("ZeroDivisionError" in text for text in texts)


def tokens_as_text(events: list[Any]) -> list[str]:
    """All contexts that were recorded, as text."""
    found: list[str] = []
    for ended in (event for event in events if isinstance(event, Ended)):
        mine = [e for e in events if isinstance(e, Acted) and (e.group, e.member) == (ended.group, ended.member)]
        for made in trajectories(mine, ended, {"agent": "policy"}):
            for context in made.contexts:
                acted = [e.sample.unpacked().tokens for e in mine if e.sample is not None and e.context == 0]
                assert context.action_tokens <= sum(map(len, acted)) or len(made.contexts) > 1
                found.append(ByteRenderer().text(context.tokens))
    return found


async def test_a_run_that_crashes_at_any_commit_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Byte for byte, with the same weights."""
    commits = await crash_at_every_commit(lambda folder: short(folder, steps=1), tmp_path, after=True)
    assert commits > 5
