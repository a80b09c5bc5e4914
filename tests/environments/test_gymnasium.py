"""Gymnasium's environments as ours: the same games with the same rewards, every kind of action, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from sparring.agents import Lineup, Scripted
from sparring.environments import Conversation, Message, Turn
from sparring.environments.gymnasium import gymnasium_environment
from sparring.environments.gymnasium_text import read, written
from sparring.errors import SettingError, UnsupportedError
from sparring.rollout import Finished, play

spaces = gymnasium.spaces


def turn(conversation: Conversation) -> int:
    return sum(isinstance(entry, Turn) for entry in conversation.entries)


def asked(conversation: Conversation) -> str:
    entry = conversation.entries[-1]
    assert isinstance(entry, Message)
    return entry.text


async def played(environment: Any, seed: int, says: Callable[[Conversation], str]) -> Finished:
    return await play(environment, seed, Lineup({"player": Scripted(says)}))


# ---------------------------------------------------------------------------------------------------------- the same game


@pytest.mark.parametrize("id_", ["Blackjack-v1", "FrozenLake-v1", "CliffWalking-v1", "CartPole-v1"])
@pytest.mark.parametrize("seed", range(3))
async def test_it_is_gymnasium_s_game(id_: str, seed: int) -> None:
    """The same actions in the environment itself: the same observations, rewards and end."""
    env: Any = gymnasium.make(id_, max_episode_steps=12)
    observation, _ = env.reset(seed=seed)
    want_told, want_rewards = [written(env.observation_space, observation)], list[float]()
    over = truncated = False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(len(want_rewards) % int(env.action_space.n))
        want_told.append(written(env.observation_space, observation))
        want_rewards.append(float(reward))
        over = terminated or truncated
    ours = gymnasium_environment(id_, settings={"max_episode_steps": 12})
    done = await played(ours, seed, lambda conversation: str(turn(conversation) % int(env.action_space.n)))
    told = [
        text.partition("\nReply with exactly one of: ")[0] for who, text in done.transcripts["player"] if who == "user"
    ]
    assert told == want_told[:-1]
    assert done.rewards == {"player": pytest.approx(sum(want_rewards))}
    assert done.metrics["length"] == len(want_rewards) and done.metrics["truncated"] == float(truncated)


async def test_names_rules_and_a_renderer_of_one_s_own() -> None:
    ours = gymnasium_environment(
        "Blackjack-v1", observe=hand, actions=("stick", "hit"), rules="Blackjack. Do not go over 21."
    )
    done = await played(ours, 3, lambda conversation: "stick")
    (_, rules), (_, question), (_, said) = done.transcripts["player"]
    assert rules == "Blackjack. Do not go over 21."
    assert question.startswith("You hold ") and question.endswith("Reply with exactly one of: stick, hit.")
    assert said == "stick" and done.rewards["player"] in (-1.0, 0.0, 1.0, 1.5)


def hand(observation: Any) -> str:
    return f"You hold {observation[0]}, the dealer shows {observation[1]}."


async def test_what_stays_illegal_ends_the_episode() -> None:
    ours = gymnasium_environment("Blackjack-v1", actions=("stick", "hit"), retries=2, illegal=-5.0)
    done = await played(ours, 3, lambda conversation: "double")
    assert done.rewards == {"player": -5.0}
    assert done.metrics == {"length": 0, "truncated": 0, "illegal": 3}


async def test_a_mask_says_what_is_legal() -> None:
    """Taxi says in its info which actions change anything."""
    env = gymnasium.make("Taxi-v4")
    _, info = env.reset(seed=1)
    want = ", ".join(str(action) for action in np.flatnonzero(info["action_mask"]))
    done = await played(gymnasium_environment("Taxi-v4", retries=0), 1, lambda conversation: "none")
    assert done.transcripts["player"][0][1].endswith(f"Reply with exactly one of: {want}.")
    assert len(want.split(", ")) < 6


# ------------------------------------------------------------------------------------------------------ spaces as text

BOX = spaces.Box(-1.0, 2.0, (2,), np.float32)
MULTI = spaces.MultiDiscrete([3, 4])
BITS = spaces.MultiBinary(3)
TEXT = spaces.Text(5, min_length=2)


@pytest.mark.parametrize(
    ("space", "text", "value"),
    [
        (BOX, "[0.5, 2]", [0.5, 2.0]),
        (MULTI, " [2, 3]\n", [2, 3]),
        (BITS, "[1, 0, 1]", [1, 0, 1]),
        (TEXT, " abc ", "abc"),
    ],
)
def test_actions_are_read(space: Any, text: str, value: Any) -> None:
    action = read(space, text)
    assert space.contains(action)
    assert (action if isinstance(action, str) else action.tolist()) == value


@pytest.mark.parametrize(
    ("space", "text", "why"),
    [
        (BOX, "[0.5, 2.5]", "not among the actions"),
        (BOX, "[0.5]", "not among the actions"),
        (BOX, "[NaN, 0]", "not among the actions"),
        (BOX, "0.5", "no JSON list"),
        (BOX, "left", "no JSON list"),
        (BOX, '["a", 1]', "something else than numbers"),
        (BOX, "[[1], [1, 2]]", "something else than numbers"),
        (MULTI, "[0.5, 1]", "something else than whole numbers"),
        (MULTI, "[3, 0]", "not among the actions"),
        (MULTI, "[-1, 0]", "not among the actions"),
        (BITS, "[2, 0, 0]", "not among the actions"),
        (TEXT, "a", "not among the actions"),
    ],
)
def test_what_is_no_action_says_why(space: Any, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(space, text)


def test_observations_are_written() -> None:
    parts = spaces.Dict({"hand": spaces.Tuple([spaces.Discrete(4), BOX]), "said": TEXT})
    value = {"hand": (np.int64(3), np.array([0.123456, -1], np.float32)), "said": "abc"}
    assert written(parts, value) == "hand: 0: 3\n1: [0.1235, -1.0]\nsaid: abc"
    with pytest.raises(UnsupportedError, match=r"give observe=a function"):
        written(spaces.Sequence(BOX), ())


class Aim(gymnasium.Env[Any, Any]):
    """The reward is how near the action comes to what was seen."""

    observation_space = BOX
    action_space = BOX

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.aim = self.np_random.uniform(-1, 2, 2).astype(np.float32)
        return self.aim.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.aim.copy(), -float(np.abs(action - self.aim).max()), True, False, {}


@pytest.fixture
def aim() -> str:
    if "sparring-test/Aim-v0" not in gymnasium.registry:
        gymnasium.register("sparring-test/Aim-v0", entry_point=lambda **given: Aim())
    return "sparring-test/Aim-v0"


async def test_numbers_are_actions_too_and_a_wrong_one_may_be_mended(aim: str) -> None:
    def says(conversation: Conversation) -> str:
        return "up" if turn(conversation) == 0 else first.partition("\n")[0]

    env = gymnasium_environment(aim)
    first = (await played(env, 7, lambda conversation: "[0, 0]")).transcripts["player"][0][1]
    assert first.endswith("Reply with a JSON list of numbers (2), from [-1.0, -1.0] to [2.0, 2.0].")
    done = await played(env, 7, says)
    assert done.transcripts["player"][2][1].startswith("That is not an action: it is no JSON list. Reply with")
    assert -1e-3 < done.rewards["player"] <= 0
    assert json.loads(first.partition("\n")[0]) != [0, 0]
    lost = await played(env, 7, lambda conversation: "up")
    assert lost.rewards == {"player": -1.0} and lost.metrics["length"] == 0


# ------------------------------------------------------------------------------------------------------------- refused


def test_what_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(SettingError, match=r"gymnasium.make\('Nothing-v0'"):
        gymnasium_environment("Nothing-v0")
    with pytest.raises(SettingError, match=r"'speed'"):
        gymnasium_environment("Blackjack-v1", settings={"speed": 3})
    for names in (("stick",), ("hit", "hit")):
        with pytest.raises(SettingError, match="must be 2 different names"):
            gymnasium_environment("Blackjack-v1", actions=names)
    with pytest.raises(SettingError, match="only a discrete space has names"):
        gymnasium_environment("Pendulum-v1", actions=("left", "right"))
    with pytest.raises(SettingError, match="retries=-1"):
        gymnasium_environment("Blackjack-v1", retries=-1)


def test_the_renderer_and_gymnasium_itself_are_part_of_the_fingerprint() -> None:
    ours = gymnasium_environment("Blackjack-v1", observe=hand)
    assert ours.described()["observe"] == f"{hand.__module__}:hand"
    assert f"{hand.__module__}:hand" in ours.fingerprint()
    assert ours.fingerprint()["gymnasium"] == gymnasium.__version__


def test_equal_settings_are_equal_environments() -> None:
    one, other = (gymnasium_environment("Blackjack-v1", actions=("stick", "hit")) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != gymnasium_environment("Blackjack-v1", actions=("stay", "hit"))
    assert one.described() != gymnasium_environment("Blackjack-v1", settings={"sab": True}).described()
