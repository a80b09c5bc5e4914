"""Where fits have their examples from: which tokens they are, which of them are learned, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import anyio
import numpy as np
import pytest

from sparring import Best, Episodes, Lines, Lineup, Pairs, Played, Run, Scripted, ScriptedModels, Seat, environment
from sparring.backend.bytes_renderer import END, ROLES, ByteRenderer
from sparring.environments import Conversation, Message
from sparring.errors import SettingError
from sparring.learner import train_async
from sparring.learner.examples import Example, Source
from tests.learner.moods import WELL, run_of

SIGNS = {ROLES["system"]: "S:", ROLES["user"]: "U:", ROLES["assistant"]: "A:", END: "|"}


def shown(example: Example) -> str:
    """The tokens as text, what is learned in brackets."""
    found, before = "", False
    for token, learned in zip(example.tokens.tolist(), example.mask.tolist(), strict=True):
        found += ("[" if learned else "]") if learned != before else ""
        found += SIGNS.get(token) or chr(token)
        before = learned
    return found + "]" * before


async def items(source: Source) -> list[list[str]]:
    with anyio.fail_after(20):
        return [[shown(one) for one in item] for item in await source.items(ByteRenderer())]


def written(folder: Path, *rows: Mapping[str, Any] | str) -> Path:
    path = folder / "examples.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]


async def test_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"messages": TALK},
        "",
        {"prompt": "q", "completion": "a"},
        {"prompt": TALK[:2], "completion": ""},
    )
    assert await items(Lines(path)) == [
        ["S:s|U:q|A:[a|]U:r|A:[b|]"],
        ["U:q|A:[a|]"],
        ["S:s|U:q|A:[|]"],
    ]
    assert (await items(Lines(path, last=True)))[0] == ["S:s|U:q|A:a|U:r|A:[b|]"]


async def test_pairs(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})
    assert await items(Pairs(path)) == [["U:q|A:[a|]", "U:q|A:[b|]"]]


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "line 1: "),
        ("[]", "line 1: Expected `object`"),
        (
            {"text": "a"},
            r"line 1: an object with the keys \['text'\]: must be messages alone, or prompt and completion",
        ),
        ({"prompt": "a", "completion": "b", "id": "1"}, r"keys \['completion', 'id', 'prompt'\]"),
        ({"prompt": "a", "completion": 3}, "completion is 3: must be text"),
        ({"prompt": 3, "completion": "a"}, "prompt must be a list of messages"),
        ({"messages": TALK[:2]}, "does not end with the assistant"),
        ({"messages": []}, "does not end with the assistant"),
        ({"messages": TALK[2:3]}, "begins with the assistant"),
        ({"messages": [{"role": "user"}]}, r"a message with the keys \['role'\]"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "Expected `str`"),
    ],
)
async def test_lines_that_are_none(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        await items(Lines(written(tmp_path, row)))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "q", "chosen": "a"}, "must be prompt, chosen and rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are both 'a'"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected is None"),
    ],
)
async def test_pairs_that_are_none(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        await items(Pairs(written(tmp_path, row)))


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no\.jsonl': No such file"):
        await items(Lines(tmp_path / "no.jsonl"))


@environment
async def chat(task: int, first: Seat, second: Seat, *, rng: Random) -> dict[Seat, float]:
    first.system("be brief")
    one = await first.ask(f"task {task}")
    await second.ask(one.text)
    first.tell("and")
    await first.ask("again")
    side = first.fork("side")
    await side.ask("aside")
    return {first: float(task), second: 1.0, side: 0.5}


def echo(conversation: Conversation) -> str:
    last = conversation.entries[-1]
    assert isinstance(last, Message)
    return last.text[-1]


SCRIPTED = Lineup({"first": Scripted(echo), "second": Scripted(echo)})


async def test_scripted_play_is_learned_as_a_policy_would_have_said_it() -> None:
    played = Played(Episodes(chat, [7], SCRIPTED))
    talk = "S:be brief|U:task 7|A:{}7|{}U:and\nagain|A:{}n|{}"
    assert await items(played) == [
        [talk.format("[", "]", "[", "]")],
        [talk.format("", "", "", "") + "U:aside|A:[e|]"],
        ["U:7|A:[7|]"],
    ]


async def test_seats_and_rewards_choose() -> None:
    three = Episodes(chat, [0, 1, 2], SCRIPTED)
    assert len(await items(Played(three))) == 9
    assert len(await items(Played(three, seats=["second"]))) == 3
    assert len(await items(Played(three, seats=["first"], at_least=1.0))) == 2
    assert len(await items(Played(three, seats=["first"], at_least=0.5))) == 2 + 3, "the fork has a reward of its own"
    assert len(await items(Played(Episodes(chat, [0], [SCRIPTED, SCRIPTED]), seats=["second"]))) == 2


async def test_play_that_fails_is_said() -> None:
    bad = Lineup({"first": Scripted(lambda conversation: "x"), "second": Scripted(lambda conversation: str(1 // 0))})
    with pytest.raises(SettingError, match="task 0 of chat failed as it was played: ZeroDivisionError"):
        await items(Played(Episodes(chat, [7], bad)))


def test_what_cannot_be_played() -> None:
    with pytest.raises(SettingError, match=r"seat 'second' is played by 'policy': there is no policy here"):
        Played(Episodes(chat, [1], Lineup({"first": Scripted(echo), "second": "policy"})))
    with pytest.raises(SettingError, match=r"seat 'second' is played by None"):
        Played(Episodes(chat, [1], Lineup({"first": Scripted(echo)})))
    with pytest.raises(SettingError, match=r"no seat 'third'; it has first, second"):
        Played(Episodes(chat, [1], SCRIPTED), seats=["third"])


def said(prompt: str, rng: Random) -> str:
    return "x" * rng.randint(1, 6)


async def finished(folder: Path) -> Run:
    """A run whose rewards are the length of what was said."""
    run = run_of(folder, WELL, backend=ScriptedModels(reply=said), group_size=4)
    with anyio.fail_after(20):
        assert await train_async(run)
    return run


async def test_the_best_of_each_group_are_the_tokens_that_were_sampled(tmp_path: Path) -> None:
    run = await finished(tmp_path)
    every = [item for (item,) in await items(Best(run.path, at_least=0.0, per_group=4))]
    assert len(every) == 6 * 4
    best = [item for (item,) in await items(Best(run.path, at_least=0.0))]
    assert best == [max(every[start : start + 4], key=len) for start in range(0, 24, 4)]
    assert all(one.startswith("U:task ") and one.count("[") == 1 and one.endswith("x|]") for one in every)
    good = [item for (item,) in await items(Best(run.path, at_least=5.0, per_group=4))]
    assert good == [one for one in every if one.count("x") >= 5]
    assert 0 < len(good) < len(every)


async def test_a_run_that_does_not_fit(tmp_path: Path) -> None:
    run = await finished(tmp_path)
    with pytest.raises(SettingError, match=r"Best\(policy='other'\).* has policy"):
        await items(Best(run.path, at_least=0.0, policy="other"))

    class Other(ByteRenderer):
        @property
        def fingerprint(self) -> str:
            return "another"

    with pytest.raises(SettingError, match="are those of another tokenizer or template"):
        await Best(run.path, at_least=0.0).items(Other())
    with pytest.raises(SettingError, match="per_group=0"):
        Best(run.path, at_least=0.0, per_group=0)
    with pytest.raises(SettingError, match=r"has no journal\.db"):
        await items(Best(tmp_path / "none", at_least=0.0))


def test_an_example_is_scored_where_it_is_learned() -> None:
    example = Example(tokens=np.array([1, 2, 3], np.int32), mask=np.array([False, True, False]), where="here")
    assert example.datum.weights.tolist() == [0, 1, 0]
    assert example.digest != Example(tokens=example.tokens, mask=~example.mask, where="here").digest
