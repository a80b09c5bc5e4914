"""Environments of tinker-cookbook: the real package's, played from here as by its own rollouts."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, check_environment, grpo
from sparring.agents import Action, Scripted
from sparring.environments import Conversation, Reply, Request, Turn
from sparring.environments.cookbook import CookbookEnvironment, Messages, cookbook_environment
from sparring.errors import SettingError, UnsupportedError
from sparring.learner import train_async
from sparring.rollout import Finished, MemorySegments, play
from sparring.rollout.events import Ended
from tests.learner.worlds import events_of

pytestmark = pytest.mark.adapters

try:
    import tinker
    from tinker_cookbook.completers import TokenCompleter, TokensWithLogprobs
    from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
    from tinker_cookbook.rl.rollouts import do_group_rollout
    from tinker_cookbook.rl.types import Env, EnvGroupBuilder, InitialObservationOverflow, RLDataset, StepResult
except ModuleNotFoundError:  # its tests are skipped
    Env = EnvGroupBuilder = ProblemEnv = RLDataset = TokenCompleter = object


class Sum(ProblemEnv):
    """Their way to ask one question."""

    def __init__(self, a: int, b: int, prefix: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(Messages(), list(prefix))
        self.a, self.b = a, b

    def get_question(self) -> str:
        return f"{self.a} + {self.b}?"

    def check_answer(self, sample_str: str) -> bool:
        return sample_str == str(self.a + self.b)

    def check_format(self, sample_str: str) -> bool:
        return sample_str.isdecimal()

    def get_reference_answer(self) -> str:
        return str(self.a + self.b)


FEW = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
)


def sums(size: int, prefix: Sequence[Mapping[str, str]] = ()) -> Any:
    return [ProblemGroupBuilder(partial(Sum, a, 2, prefix), size, "sums") for a in range(3)]


class Echo(Env):
    """Three turns, each of which tells all that was said, with the replies in capitals if it is `forgetful`."""

    def __init__(self, forgetful: bool, stop: Sequence[str] = ()) -> None:
        self.renderer, self.forgetful = Messages(), forgetful
        self.stop = list(stop) or self.renderer.get_stop_sequences()
        self.said: list[dict[str, str]] = [
            {"role": "system", "content": "Echo."},
            {"role": "user", "content": "turn 0"},
        ]

    async def initial_observation(self) -> Any:
        return self.renderer.build_generation_prompt(self.said), self.stop

    async def step(self, action: list[int], *, extra: Any = None) -> Any:
        message, _ = self.renderer.parse_response(action)
        if self.forgetful:
            message = {**message, "content": message["content"].upper()}
        turn = len(self.said) // 2
        self.said += [message, {"role": "user", "content": f"turn {turn}"}]
        prompt = self.renderer.build_generation_prompt(self.said)
        return StepResult(
            reward=float(turn),
            episode_done=turn == 3,
            next_observation=prompt,
            next_stop_condition=self.stop,
            metrics={"turn": turn},
        )


class Longest(EnvGroupBuilder):
    """A group whose longest reply wins, and the others lose: a reward that only the whole group has."""

    def __init__(self, *envs: Any) -> None:
        self.envs = envs

    async def make_envs(self) -> Sequence[Any]:
        return [env() for env in self.envs]

    async def compute_group_rewards(self, trajectory_group: Any, env_group: Any) -> Any:
        lengths = [sum(len(one.ac.tokens) for one in trajectory.transitions) for trajectory in trajectory_group]
        assert all(one.ob.to_ints() for trajectory in trajectory_group for one in trajectory.transitions)
        return [(1.0 if one == max(lengths) else -1.0, {"length": one}) for one in lengths]


class Numbered:
    """The first fork says more than the second. Keeps what ends the replies it was asked for."""

    def __init__(self) -> None:
        self.stops: set[tuple[str, ...]] = set()

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        self.stops.add(request.stop)
        return Action(reply=Reply(text="x" * (request.turn + 3 - int(conversation.place.fork)), stop="stop"))

    def context_left(self, conversation: Conversation) -> int:
        return 100_000


class Theirs(TokenCompleter):
    """What replies so in their own rollouts."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def __call__(self, model_input: Any, stop: Any, **_: Any) -> Any:
        return TokensWithLogprobs(tokens=[*self.text.encode(), *stop], maybe_logprobs=None)


async def played(builder: Any, says: Any) -> Finished:
    player = says if hasattr(says, "act") else Scripted(says)
    return await play(cookbook_environment([builder]), 0, Lineup({"player": player}))


# ----------------------------------------------------------------------------------------------------- the same rewards


@pytest.mark.parametrize("reply", ["2", "3", "two", ""])
async def test_the_rewards_are_those_of_their_own_rollouts(reply: str) -> None:
    done = await played(sums(3)[0], lambda _: reply)
    theirs = partial(anyio.run, do_group_rollout, sums(3)[0], Theirs(reply), backend="asyncio")
    group = await anyio.to_thread.run_sync(theirs)
    assert list(done.rewards.values()) == pytest.approx(group.get_total_rewards())
    assert set(done.rewards) == {"player/1", "player/2", "player/3"}
    assert done.metrics == {"correct": float(reply == "2"), "format": float(reply in ("2", "3"))}


async def test_a_single_environment_is_the_seat_s_own() -> None:
    done = await played(sums(1)[1], lambda _: "3")
    assert done.rewards == {"player": 1.0}


async def test_a_reply_that_was_cut_is_not_well_formed() -> None:
    class Cut(Numbered):
        async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
            return Action(reply=Reply(text="2", stop="length"))

    assert (await played(sums(1)[0], Cut())).rewards == {"player": pytest.approx(0.9)}


async def test_what_was_said_before_is_told() -> None:
    """Examples too, which others answered in the player's name."""
    done = await played(sums(1, FEW)[0], lambda _: "2")
    assert done.transcripts["player"][:4] == [
        ("system", "Be brief."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "0 + 2?"),
    ]


async def test_a_whole_group_decides() -> None:
    """Three turns worth 1, 2 and 3, and the group's own reward, which the first fork gets, whose replies are longer."""
    player = Numbered()
    done = await played(Longest(partial(Echo, False), partial(Echo, False, ["\n"])), player)
    assert done.rewards == {"player/1": 7.0, "player/2": 5.0}
    assert player.stops == {(), ("\n",)}
    assert done.metrics["turn"] == 2.0
    assert [text for who, text in done.transcripts["player/1"] if who == "user"] == ["turn 0", "turn 1", "turn 2"]


async def test_a_past_that_is_told_otherwise_is_a_new_context() -> None:
    """A turn's reply is another there than what the player said: nothing is added to what it did say."""
    asked: list[tuple[int, int]] = []

    def says(conversation: Conversation) -> str:
        asked.append((conversation.place.context, sum(isinstance(entry, Turn) for entry in conversation.entries)))
        return "yes"

    done = await played(Longest(partial(Echo, True)), says)
    assert asked == [(0, 0), (1, 0), (2, 0)]
    assert done.transcripts["player"][:4] == [
        ("system", "Echo."),
        ("user", "turn 0"),
        ("assistant", "YES"),
        ("user", "turn 1"),
    ]
    assert done.rewards == {"player": 7.0}


async def test_a_prompt_that_is_too_long_ends_it_with_its_reward() -> None:
    class Full(Echo):
        async def initial_observation(self) -> Any:
            return InitialObservationOverflow(reward=-2.0, metrics={"stop/max_tokens": 1.0})

    done = await played(Longest(partial(Full, False)), lambda _: "x")
    assert done.rewards == {"player": -1.0}, "-2 and the group's 1"
    assert done.metrics == {"stop/max_tokens": 1.0, "length": 0.0}


# ----------------------------------------------------------------------------------------------- as any other of ours


class Batches(RLDataset):
    def get_batch(self, index: int) -> Any:
        return sums(2)[2 * index : 2 * index + 2]

    def __len__(self) -> int:
        return 2


def test_a_dataset_is_all_of_its_batches() -> None:
    ours = cookbook_environment(Batches())
    assert len(ours.builders) == 3
    assert ours.described()["builders"] == 3 and ours.described()["tags"] == ["sums"]
    assert any("Sum" in what or "ProblemGroupBuilder" in what for what in ours.fingerprint())


@pytest.mark.parametrize("dataset", [[], [1]])
def test_what_is_no_dataset_is_refused(dataset: Any) -> None:
    with pytest.raises(SettingError, match="give an RLDataset or a sequence of EnvGroupBuilder"):
        cookbook_environment(dataset)


async def test_the_renderer_of_a_model_is_refused() -> None:
    class Foreign(Messages):
        def build_generation_prompt(self, messages: Any, role: str = "assistant", prefill: str | None = None) -> Any:
            return tinker.ModelInput.from_ints([1, 50000, 2])

    def env() -> Any:
        made = Sum(1, 1)
        made.renderer = Foreign()
        return made

    with pytest.raises(SettingError, match=r"must be made with the renderer Messages\(\)"):
        await played(ProblemGroupBuilder(env, 1), lambda _: "2")


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "a message with image"),
        ({"role": "assistant", "content": "", "tool_calls": ["call"]}, "a message with tool calls"),
    ],
)
def test_what_cannot_be_told_is_refused(message: Any, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        Messages().build_generation_prompt([message])
    with pytest.raises(UnsupportedError, match="prefill='The'"):
        Messages().build_generation_prompt([], prefill="The")


async def test_it_is_trained_within_its_groups(tmp_path: Path) -> None:
    """As the cookbook compares: a group is an episode."""
    run = Run(
        name="cookbook",
        train=Episodes(cookbook_environment(sums(4)), range(3)),
        policies={"player": Policy("m", grpo(compare={"player": "episode"}))},
        steps=2,
        groups_per_step=2,
        group_size=1,
        backend=ScriptedModels(),
        folder=tmp_path,
    )
    store = MemorySegments()
    assert await train_async(run, store=store)
    ends = [event for event in events_of(store) if isinstance(event, Ended)]
    assert len(ends) == 4 and all(len(event.results) == 4 for event in ends)


def environment() -> CookbookEnvironment:
    return cookbook_environment(sums(2))


def test_it_keeps_the_contract() -> None:
    async def check() -> Any:
        return await check_environment(environment(), range(3), count=3)

    found = anyio.run(check)
    assert found.passed, str(found)
    assert pickle.loads(pickle.dumps(environment())).described() == environment().described()


def test_without_the_package_it_is_named() -> None:
    lines = "import sys; sys.modules['tinker'] = None; from sparring.environments.cookbook import *; cookbook_environment([1])"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert "pip install 'sparring[cookbook]'" in done.stderr
