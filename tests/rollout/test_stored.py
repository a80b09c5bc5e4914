"""Episodes as lines of a file: what is read is what was written, and what is damaged is named by file, line and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from sparring.environments.reply import ToolCall
from sparring.errors import SettingError
from sparring.rollout import Context, StoredEpisode, read_episodes
from sparring.rollout.stored import (
    StoredConversation,
    StoredMessage,
    StoredResult,
    StoredTokens,
    episodes_to_trajectories,
    line_of,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
HALF = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    count = draw(st.integers(1, 12))
    mask = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    logprobs = np.array(draw(st.lists(HALF, min_size=count, max_size=count)), np.float32)
    return Context(
        tokens=np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count)), np.int32),
        action_mask=mask,
        logprobs=np.where(mask, logprobs, np.float32(0)),
        versions=np.where(mask, np.int32(draw(st.integers(0, 99))), np.int32(-1)),
        turn=np.where(mask, np.int16(draw(st.integers(0, 2**15 - 1))), np.int16(-1)),
        temperature=draw(FLOATS),
    )


MESSAGES = st.builds(
    StoredMessage,
    role=st.sampled_from(["system", "user"]),
    content=TEXT,
) | st.builds(
    StoredMessage,
    role=st.just("assistant"),
    content=TEXT,
    reasoning=TEXT,
    tool_calls=st.lists(st.builds(ToolCall, name=TEXT, arguments=TEXT), max_size=2).map(tuple),
    stop=st.sampled_from(["stop", "length", "tool_calls"]),
    turn=st.integers(0, 100),
    versions=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=2).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EPISODES = st.builds(
    StoredEpisode,
    run=TEXT,
    group=st.integers(0, 2**40),
    member=st.integers(0, 99),
    environment=TEXT,
    source=st.integers(0, 3),
    index=st.integers(0, 2**40),
    task=TEXT,
    content=st.just(UNSET) | JSON,
    lineup=st.integers(0, 3),
    players=st.dictionaries(TEXT, JSON, max_size=2),
    trained=st.dictionaries(TEXT, TEXT, max_size=2),
    steps=st.dictionaries(TEXT, st.lists(st.integers(0, 99), max_size=2), max_size=2),
    whole=st.booleans(),
    results=st.lists(
        st.builds(
            StoredResult,
            seat=TEXT,
            fork=TEXT,
            label=TEXT,
            reward=st.none() | FLOATS,
            unjudged=TEXT,
            turn_rewards=st.dictionaries(st.integers(0, 99), FLOATS, max_size=3),
        ),
        max_size=2,
    ).map(tuple),
    metrics=st.dictionaries(TEXT, FLOATS, max_size=2),
    notes=st.dictionaries(TEXT, TEXT, max_size=2),
    fault=TEXT,
    detail=TEXT,
    conversations=st.lists(
        st.builds(
            StoredConversation,
            seat=TEXT,
            fork=TEXT,
            context=st.integers(0, 3),
            messages=st.lists(MESSAGES, max_size=3).map(tuple),
            tokens=st.none() | contexts().map(StoredTokens.of),
        ),
        max_size=2,
    ).map(tuple),
)


@settings(max_examples=40)
@given(episodes=st.lists(EPISODES, max_size=4))
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[StoredEpisode]
) -> None:
    path = tmp_path_factory.mktemp("stored") / "episodes.jsonl"
    path.write_bytes(b"\n".join(line_of(episode) for episode in episodes))
    assert list(read_episodes(path)) == episodes
    assert len([line for line in path.read_bytes().split(b"\n") if line]) == len(episodes), "one line for each"


@given(context=contexts())
def test_tokens_come_back_bit_for_bit(context: Context) -> None:
    line = msgspec.json.encode(StoredTokens.of(context))
    found = msgspec.json.decode(line, type=StoredTokens)
    found.check()
    back = found.context()
    for name in ("tokens", "action_mask", "logprobs", "versions", "turn"):
        before, after = getattr(context, name), getattr(back, name)
        assert before.dtype == after.dtype and before.tobytes() == after.tobytes(), name
    assert back.temperature == context.temperature


def test_a_log_prob_that_no_file_can_hold_is_refused() -> None:
    context = Context(
        tokens=np.zeros(1, np.int32),
        action_mask=np.ones(1, np.bool_),
        logprobs=np.array([-np.inf], np.float32),
        versions=np.zeros(1, np.int32),
        turn=np.zeros(1, np.int16),
        temperature=1.0,
    )
    with pytest.raises(SettingError, match="not finite"):
        StoredTokens.of(context)


def spoken(**changes: Any) -> dict[str, Any]:
    """A good line, as JSON data."""
    return {
        "schema": 2,
        "run": "run",
        "group": 3,
        "member": 1,
        "environment": "games:duel",
        "source": 0,
        "index": 7,
        "task": "0" * 64,
        "lineup": 0,
        "players": {"one": "alice"},
        "trained": {"one": "alice"},
        "whole": True,
        "results": [{"seat": "one", "reward": 1.5, "turn_rewards": {"0": 0.5}}],
        "conversations": [
            {
                "seat": "one",
                "messages": [
                    {"role": "user", "content": "hello"},
                    {"role": "assistant", "content": "hi", "stop": "length", "turn": 0, "versions": [[4, 2]]},
                ],
                "tokens": {
                    "tokens": [5, 6, 7],
                    "mask": [0, 1, 1],
                    "logprobs": [0, -0.5, -0.25],
                    "versions": [-1, 4, 4],
                    "turns": [-1, 0, 0],
                    "temperature": 1.0,
                },
            }
        ],
        **changes,
    }


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "episodes.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_good_line_gives_its_trajectory(tmp_path: Path) -> None:
    (episode,) = read_episodes(written(tmp_path, "", spoken(), "  "))
    assert episode.content is UNSET and episode.conversations[0].messages[0].turn is UNSET
    (made,) = episodes_to_trajectories([episode])
    assert (made.policy, made.seat, made.fork, made.group, made.episode) == ("alice", "one", "", 3, 1)
    assert (made.reward, made.turn_rewards.tolist(), made.truncated, made.action_tokens) == (1.5, [0.5], True, 2)
    (context,) = made.contexts
    assert context.tokens.tolist() == [5, 6, 7] and context.versions.tolist() == [-1, 4, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"fault": "deadline", "results": []},
        {"trained": {}},
        {"results": []},
        {"results": [{"seat": "one", "unjudged": "nobody knows"}]},
        {"conversations": []},
    ],
)
def test_what_no_learner_was_given_gives_no_trajectory(tmp_path: Path, changes: dict[str, Any]) -> None:
    (episode,) = read_episodes(written(tmp_path, spoken(**changes)))
    assert episode.trajectories() == []


def test_a_failed_episode_that_was_scored_gives_its_trajectory(tmp_path: Path) -> None:
    (episode,) = read_episodes(written(tmp_path, spoken(fault="deadline")))
    assert [one.seat for one in episode.trajectories()] == ["one"]


def test_an_episode_without_tokens_says_how_to_get_them(tmp_path: Path) -> None:
    line = spoken()
    del line["conversations"][0]["tokens"]
    (episode,) = read_episodes(written(tmp_path, line))
    with pytest.raises(SettingError, match="group 3, episode 1: seat 'one' has no tokens: export with --tokens"):
        episode.trajectories()


def test_a_reward_for_a_turn_that_never_was_is_named(tmp_path: Path) -> None:
    (episode,) = read_episodes(
        written(tmp_path, spoken(results=[{"seat": "one", "reward": 1, "turn_rewards": {"1": 1}}]))
    )
    with pytest.raises(SettingError, match="a reward for turn 1 of seat 'one', which has 1 turns"):
        episode.trajectories()


def in_tokens(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        line["conversations"][0]["tokens"][name] = value

    return change


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        del line[name]

    return change


def also(**more: Any) -> Callable[[dict[str, Any]], None]:
    def change(line: dict[str, Any]) -> None:
        line.update(more)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("group"), "Object missing required field `group`"),
        (also(groups=1), "Object contains unknown field `groups`"),
        (also(group="3"), r"Expected `int`, got `str` - at `\$.group`"),
        (also(schema=3), "schema 3, this sparring reads up to 2: use the newer one"),
        (also(results=[{"seat": "one", "value": 1.0}]), r"unknown field `value` - at `\$.results\[0\]`"),
        (in_tokens("mask", [0, 1, 2]), r"Invalid enum value 2 - at `\$.conversations\[0\].tokens.mask\[2\]`"),
        (in_tokens("logprobs", [0, None, 0]), r"got `null` - at `\$.conversations\[0\].tokens.logprobs\[1\]`"),
        (in_tokens("logprobs", [0.0]), r"1 logprobs for 3 tokens - at `\$.conversations\[0\].tokens`"),
        (in_tokens("logprobs", [0, 1e300, 0]), "logprobs beyond what a float holds"),
        (in_tokens("versions", [-1, -1, 4]), "must be at least 0 where mask is 1, elsewhere -1"),
        (in_tokens("turns", [0, 0, 0]), "must be at least 0 where mask is 1, elsewhere -1"),
        (in_tokens("versions", [-2, 4, 4]), "must be at least 0 where mask is 1, elsewhere -1"),
        (in_tokens("logprobs", [0.5, -0.5, -0.5]), "elsewhere -1, and logprobs 0"),
        (in_tokens("turns", [-1, 0, 2**15]), "turns outside 0 to 32767"),
        (in_tokens("tokens", [5, 6, 2**31]), "tokens outside 0 to 2147483647"),
        (in_tokens("tokens", [5, -6, 7]), "tokens outside 0 to 2147483647"),
        (
            also(conversations=[{"seat": "one", "inherited": 1}]),
            r"inherited=1 of 0 messages - at `\$.conversations\[0\]`",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    bad = spoken()
    change(bad)
    path = written(tmp_path, spoken(), "", bad)
    found = read_episodes(path)
    assert next(found).group == 3, "what comes before it is read"
    with pytest.raises(SettingError, match=rf"episodes.jsonl, line 3: .*{said}"):
        next(found)


@pytest.mark.parametrize("line", ["{", "[]", "nothing", '"text"', '{"schema": "one"}'])
def test_what_is_no_episode_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(SettingError, match=r"episodes.jsonl, line 1: "):
        list(read_episodes(written(tmp_path, line)))


def test_text_that_is_no_unicode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(json.dumps(spoken()).encode().replace(b"hello", b"\xff\xfe"))
    with pytest.raises(SettingError, match=r"episodes.jsonl, line 1: "):
        list(read_episodes(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"episodes file '.*gone.jsonl': No such file"):
        list(read_episodes(tmp_path / "gone.jsonl"))
