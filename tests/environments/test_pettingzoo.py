"""PettingZoo's environments as ours: the same games with the same rewards, in turn and at once; what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import numpy as np
import pytest

from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, check_environment, rae
from sparring.agents import Scripted
from sparring.environments import Conversation, Message, Turn
from sparring.environments.pettingzoo import PettingZooEnvironment, pettingzoo_environment
from sparring.environments.pettingzoo_extra import pettingzoo
from sparring.errors import SettingError, UnsupportedError
from sparring.learner import train_async
from sparring.rollout import Finished, MemorySegments, play
from sparring.rollout.events import Ended
from tests.learner.worlds import events_of

SHARE, LATE = "tests.environments.zoo:Share", "tests.environments.zoo:Late"
TICTACTOE = pettingzoo_environment("classic/tictactoe-v3")


def turn(conversation: Conversation) -> int:
    return sum(isinstance(entry, Turn) for entry in conversation.entries)


def asked(conversation: Conversation) -> str:
    entry = conversation.entries[-1]
    assert isinstance(entry, Message)
    return entry.text


def options(conversation: Conversation) -> list[str]:
    return asked(conversation).rpartition("Reply with exactly one of: ")[2].removesuffix(".").split(", ")


async def played(
    environment: PettingZooEnvironment, task: int, says: Mapping[str, Callable[[Conversation], str]]
) -> Finished:
    return await play(environment, task, Lineup({seat: Scripted(one) for seat, one in says.items()}))


def told(done: Finished, seat: str) -> list[str]:
    return [text for who, text in done.transcripts[seat] if who == "user"]


# ---------------------------------------------------------------------------------------------------------- the same game


async def test_a_game_in_turn() -> None:
    """Player 1 takes the first column; nobody is offered a cell that is taken, and masks are not told as observations."""
    seen: list[list[str]] = []

    def first(conversation: Conversation) -> str:
        seen.append(options(conversation))
        return str(turn(conversation))

    def last(conversation: Conversation) -> str:
        seen.append(options(conversation))
        return options(conversation)[-1]

    done = await played(TICTACTOE, 0, {"player_1": first, "player_2": last})
    assert done.rewards == {"player_1": 1.0, "player_2": -1.0}
    assert done.metrics == {"length": 5.0, "truncated": 0.0, "illegal": 0.0}
    assert [len(one) for one in seen] == [9, 8, 7, 6, 5]
    board = told(done, "player_2")[0].partition("\n")[0]
    assert board == "[[[0, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]]"


@pytest.mark.parametrize("seed", range(3))
async def test_it_is_pettingzoo_s_game(seed: int) -> None:
    """The same columns in the environment itself: the same rewards and length."""
    env = pettingzoo.make("aec", "classic/connect_four-v3")
    env.reset(seed=seed)
    want: dict[str, float] = dict.fromkeys(env.possible_agents, 0.0)
    moves = dict.fromkeys(env.possible_agents, 0)
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, _ = env.last()
        want[agent] += reward
        legal = np.flatnonzero(observation["action_mask"])
        env.step(None if terminated or truncated else int(legal[(moves[agent] * (seed + 2)) % len(legal)]))
        moves[agent] += not (terminated or truncated)

    def column(conversation: Conversation) -> str:
        legal = options(conversation)
        return legal[(turn(conversation) * (seed + 2)) % len(legal)]

    done = await played(pettingzoo_environment("classic/connect_four-v3"), seed, dict.fromkeys(moves, column))
    assert done.rewards == want and done.metrics["length"] == sum(moves.values())


@pytest.mark.parametrize("kind", ["aec", "parallel"])
async def test_the_same_game_in_turn_and_at_once(kind: Any) -> None:
    """Rock, paper, scissors for four rounds: player 0 always rock, player 1 goes through all three, from rock on."""
    ours = pettingzoo_environment(
        "classic/rps-v2", kind, actions=("rock", "paper", "scissors"), settings={"max_cycles": 4}
    )
    says = {
        "player_0": lambda conversation: "rock",
        "player_1": lambda conversation: ("rock", "paper", "scissors")[turn(conversation) % 3],
    }
    done = await played(ours, 0, says)
    assert done.rewards == {"player_0": 0.0, "player_1": 0.0}, "a draw, a loss, a win, a draw"
    assert done.metrics == {"length": 8.0 if kind == "aec" else 4.0, "truncated": 1.0, "illegal": 0.0}
    seen = [text.partition("\n")[0] for text in told(done, "player_1")]
    assert seen == ["3", "0", "0", "0"], "what the other did last; 3: nothing yet"


async def test_masks_in_infos_who_leaves_and_what_is_drawn() -> None:
    """Player 2 leaves after the first round; the others go on to the third."""
    says = {f"player_{n}": lambda conversation: options(conversation)[-1] for n in range(3)}
    runs = [await played(pettingzoo_environment(SHARE, "parallel"), seed, says) for seed in (4, 4, 5)]
    assert runs[0] == runs[1]
    assert told(runs[0], "player_0") != told(runs[2], "player_0"), "the task is the seed"
    assert {seat: len(told(runs[0], seat)) for seat in says} == {"player_0": 3, "player_1": 3, "player_2": 1}
    assert runs[0].metrics == {"length": 3.0, "truncated": 1.0, "illegal": 0.0}
    assert told(runs[0], "player_1")[0].endswith("exactly one of: 2, 3.")
    drawn = [text.partition("\n")[0] for text in told(runs[0], "player_0")]
    assert runs[0].rewards["player_0"] == sum(1.0 if one == "3" else -1.0 for one in drawn)


async def test_rewards_before_the_first_turn_count_and_numbers_are_actions() -> None:
    says = {"0": lambda conversation: "[0.5, 0]", "1": lambda conversation: "[2, 0]"}
    done = await played(pettingzoo_environment(LATE), 0, says)
    assert done.rewards == {"0": 0.5 + 0.5 + 2.0, "1": 10.0 + 10.0 + 2.0}
    assert told(done, "0")[1].startswith("[0.5, 0.0]\nReply with a JSON list of numbers (2)")


async def test_names_rules_and_a_renderer_of_one_s_own() -> None:
    ours = pettingzoo_environment(
        SHARE, "parallel", observe=whom, actions=("one", "two", "three"), rules="Say what you see."
    )
    done = await played(ours, 0, {f"player_{n}": lambda conversation: "three" for n in range(3)})
    assert done.transcripts["player_1"][0] == ("system", "Say what you see.")
    assert told(done, "player_1")[0].startswith("player_1 sees ")
    assert told(done, "player_1")[0].endswith("exactly one of: two, three.")


def whom(observation: Any, agent: str) -> str:
    return f"{agent} sees {observation}"


@pytest.mark.parametrize(("kind", "length"), [("aec", 1.0), ("parallel", 0.0)])
async def test_what_stays_illegal_ends_the_episode(kind: Any, length: float) -> None:
    ours = pettingzoo_environment("classic/rps-v2", kind, retries=2, illegal=-5.0)
    done = await played(ours, 0, {"player_0": lambda conversation: "1", "player_1": lambda conversation: "well"})
    assert done.rewards == {"player_0": 0.0, "player_1": -5.0}
    assert done.metrics == {"length": length, "truncated": 0.0, "illegal": 3.0}


async def test_policies_train_in_it(tmp_path: Any) -> None:
    """A short run in both seats, whose replies are no moves."""
    who = Lineup({"player_0": "one", "player_1": "two"})
    run = Run(
        name="zoo",
        train=Episodes(pettingzoo_environment("classic/rps-v2", "parallel"), range(9), who),
        policies={"one": Policy("m", rae()), "two": Policy("m", rae())},
        steps=2,
        groups_per_step=2,
        group_size=2,
        backend=ScriptedModels(),
        folder=tmp_path,
    )
    store = MemorySegments()
    assert await train_async(run, store=store)
    ends = [event for event in events_of(store) if isinstance(event, Ended)]
    assert len(ends) == 8 and all(event.metrics["illegal"] > 0 for event in ends)


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "settings", "error", "said"),
    [
        ("classic/nothing-v0", {}, SettingError, r"pettingzoo.make\('aec', 'classic/nothing-v0'.*not found"),
        ("classic/tictactoe-v3", {"settings": {"speed": 3}}, SettingError, "'speed'"),
        ("tests.environments.zoo:nowhere", {}, SettingError, "nowhere"),
        ("tests.environments.zoo:nothing", {}, SettingError, "nothing is made here"),
        ("tests.environments.nozoo:env", {}, SettingError, "Failed to import"),
        ("classic/tictactoe-v3", {"kind": "both"}, SettingError, "kind='both': must be 'aec' or 'parallel'"),
        ("classic/tictactoe-v3", {"retries": -1}, SettingError, "retries=-1"),
        ("classic/tictactoe-v3", {"actions": ("a", "b")}, SettingError, "must be 9 different names"),
        (LATE, {"actions": ("a", "b")}, SettingError, "only a discrete space has names"),
        ("tests.environments.zoo:Crowd", {"kind": "parallel"}, UnsupportedError, "not known beforehand"),
    ],
)
def test_what_cannot_be_is_refused_at_once(name: str, settings: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        pettingzoo_environment(name, **settings)


def test_everything_that_decides_is_described() -> None:
    ours = pettingzoo_environment(SHARE, "parallel", observe=whom, settings={"rounds": 2})
    found = ours.described()
    assert (found["id"], found["kind"], found["settings"]) == (SHARE, "parallel", {"rounds": 2})
    assert found["observe"] == f"{whom.__module__}:whom" and f"{whom.__module__}:whom" in ours.fingerprint()
    assert ours.fingerprint()["pettingzoo"] == pettingzoo.__version__
    again = pickle.loads(pickle.dumps(ours))
    assert again == ours and hash(again) == hash(ours)
    assert ours != pettingzoo_environment(SHARE, "parallel", observe=whom)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("classic/tictactoe-v3", "aec"), ("classic/rps-v2", "parallel"), (SHARE, "parallel"), (LATE, "aec")],
)
def test_it_keeps_the_contract(name: str, kind: Any) -> None:
    """In another process, beside other episodes, with hostile replies."""

    async def check() -> Any:
        return await check_environment(pettingzoo_environment(name, kind), range(3), count=3)

    found = anyio.run(check)
    assert found.passed, str(found)


def test_without_the_package_it_is_named() -> None:
    lines = "import sys; sys.modules['pettingzoo'] = None; import sparring.environments.pettingzoo"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert "pip install 'sparring[pettingzoo]'" in done.stderr
