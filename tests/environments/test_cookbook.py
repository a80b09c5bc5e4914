"""Environments of tinker-cookbook: the real package's, played from here as by its own rollouts."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from sparring import Episodes, Lineup, Policy, Run, ScriptedModels, check_environment, grpo
from sparring.agents import Action, Scripted
from sparring.environments import Conversation, Reply, Request, Turn
from sparring.errors import EffectError, SettingError, UnsupportedError
from sparring.learner import GroupMean, advantages, train_async
from sparring.learner.advantages import Comparable
from sparring.rollout import Finished, MemorySegments, play
from sparring.rollout.events import Ended
from tests.learner.worlds import events_of

pytestmark = pytest.mark.adapters
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # their environments of messages use it themselves

try:
    import tinker
    from tinker_cookbook.completers import TokenCompleter, TokensWithLogprobs
    from tinker_cookbook.rl.message_env import EnvFromMessageEnv, MessageEnv, MessageStepResult
    from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
    from tinker_cookbook.rl.rollout_limits import RolloutLimits
    from tinker_cookbook.rl.rollouts import do_group_rollout
    from tinker_cookbook.rl.types import Env, EnvGroupBuilder, InitialObservationOverflow, RLDataset, StepResult

    from sparring.environments.cookbook import CookbookEnvironment, Messages, cookbook_environment
except ModuleNotFoundError:  # its tests are skipped
    Env = EnvGroupBuilder = MessageEnv = ProblemEnv = RLDataset = TokenCompleter = object

Line = tuple[str, Literal["stop", "length"]]
"""A reply, and why it ended."""


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


class Counting(MessageEnv):
    """Two replies, worth their lengths, in messages. Says `onwards` after one that was cut, where it goes on after it."""

    def __init__(self, onwards: str) -> None:
        self.messages, self.onwards = [{"role": "user", "content": "Count."}], onwards

    async def initial_observation(self) -> Any:
        return self.messages

    async def step(self, message: Any) -> Any:
        done = len(self.messages) > 2
        self.messages = [*self.messages, message, {"role": "user", "content": "More."}]
        return MessageStepResult(
            reward=float(len(message["content"])),
            episode_done=done,
            next_messages=self.messages,
            metrics={"stop/completed": 1.0} if done else {},
            logs={"said": message["content"]},
        )

    async def observe_truncated_response(self, message: Any) -> Any:
        said = [{"role": "user", "content": self.onwards}] if self.onwards else []
        self.messages = [*self.messages, message, *said]
        return self.messages


def counting(onwards: str = "Go on.", **given: Any) -> Any:
    return EnvFromMessageEnv(Messages(), Counting(onwards), **given)


class Group(EnvGroupBuilder):
    """What `made` makes. Keeps what it was shown of the trajectories, and how often it cleaned up."""

    def __init__(self, *made: Any) -> None:
        self.made, self.saw, self.cleaned = made, list[Any](), 0

    async def make_envs(self) -> Sequence[Any]:
        return [make() for make in self.made]

    async def compute_group_rewards(self, trajectory_group: Any, env_group: Any) -> Any:
        for one in trajectory_group:
            steps = [(at.ob.to_ints(), at.ac.tokens, at.ac.stop_reason, at.reward) for at in one.transitions]
            ends = [(at.episode_done, dict(at.metrics), dict(at.logs)) for at in one.transitions]
            self.saw.append((one.stop_reason, one.final_ob.to_ints(), steps, ends))
        return [(0.5, {}) for _ in trajectory_group]

    async def cleanup(self) -> None:
        await anyio.lowlevel.checkpoint()  # where what is cancelled ends, unless it is shielded
        self.cleaned += 1


class Longest(Group):
    """A group whose longest reply wins, and the others lose: a reward that only the whole group has."""

    async def compute_group_rewards(self, trajectory_group: Any, env_group: Any) -> Any:
        lengths = [sum(len(one.ac.tokens) for one in trajectory.transitions) for trajectory in trajectory_group]
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


class Lines(Numbered):
    """Says one line after the other, the last one for ever."""

    def __init__(self, *lines: Line) -> None:
        super().__init__()
        self.lines = lines

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        text, stop = self.lines[min(request.turn, len(self.lines) - 1)]
        return Action(reply=Reply(text=text, stop=stop))


class Theirs(TokenCompleter):
    """What says the same lines in their own rollouts, those of a group's environments in turn."""

    def __init__(self, *lines: Line, size: int = 1) -> None:
        self.lines, self.size, self.asked = lines, size, 0

    async def __call__(self, model_input: Any, stop: Any, **_: Any) -> Any:
        text, why = self.lines[min(self.asked // self.size, len(self.lines) - 1)]
        self.asked += 1
        return TokensWithLogprobs([*text.encode(), *(stop if why == "stop" else ())], None, stop_reason=why)


async def by_their_own_rollout(builder: Any, *lines: Line, size: int = 1) -> Any:
    theirs = partial(anyio.run, do_group_rollout, builder, Theirs(*lines, size=size), backend="asyncio")
    return await anyio.to_thread.run_sync(theirs)


async def played(builder: Any, says: Any) -> Finished:
    player = says if hasattr(says, "act") else Scripted(says)
    return await play(cookbook_environment([builder]), 0, Lineup({"player": player}))


# ----------------------------------------------------------------------------------------------------- the same rewards


@pytest.mark.parametrize("reply", ["2", "3", "two", ""])
async def test_the_rewards_are_those_of_their_own_rollouts(reply: str) -> None:
    done = await played(sums(3)[0], lambda _: reply)
    group = await by_their_own_rollout(sums(3)[0], (reply, "stop"), size=3)
    assert list(done.rewards.values()) == pytest.approx(group.get_total_rewards())
    assert set(done.rewards) == {"player/1", "player/2", "player/3"}
    assert done.metrics == {"correct": float(reply == "2"), "format": float(reply in ("2", "3"))}


async def test_a_single_environment_is_the_seat_s_own() -> None:
    done = await played(sums(1)[1], lambda _: "3")
    assert done.rewards == {"player": 1.0}


@pytest.mark.parametrize("made", [partial(Sum, 0, 2), partial(Echo, False), partial(Echo, True)])
@pytest.mark.parametrize("lines", [[("2", "stop")], [("2", "length")], [("2", "stop"), ("", "length"), ("2", "stop")]])
async def test_a_group_sees_what_it_sees_in_their_own_rollouts(made: Any, lines: list[Line]) -> None:
    """All of its trajectories; also how many replies were cut before the episode went on."""
    ours, theirs = Group(made), Group(made)
    done, group = await played(ours, Lines(*lines)), await by_their_own_rollout(theirs, *lines)
    assert ours.saw == theirs.saw
    assert [done.rewards["player"]] == pytest.approx(group.get_total_rewards())


@on_asyncio
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"terminate_on_length": False},
        {"max_trajectory_tokens": 60},
        {"max_trajectory_tokens": 5, "context_overflow_reward": -2.0},
    ],
)
@pytest.mark.parametrize(
    "lines",
    [
        [("one", "stop"), ("three", "stop")],
        [("on", "length"), ("two", "stop")],
        [("one", "stop"), ("tw", "length"), ("end", "stop")],
    ],
)
async def test_environments_of_messages_are_played_as_by_themselves(given: Any, lines: list[Line]) -> None:
    """Whole or cut, within the limits that it keeps itself or over them, from the first prompt on or later."""
    ours, theirs = (Group(partial(counting, **given)) for _ in range(2))
    done, group = await played(ours, Lines(*lines)), await by_their_own_rollout(theirs, *lines)
    assert ours.saw == theirs.saw
    assert [done.rewards["player"]] == pytest.approx(group.get_total_rewards())


@on_asyncio
async def test_a_reply_that_was_cut_ends_an_environment_of_messages() -> None:
    """The reward is that for running over, not what an unended reply is worth."""
    done = await played(Group(counting), Lines(("five!", "length")))
    assert done.rewards == {"player": pytest.approx(0.5 - 0.1)}
    assert done.metrics == {"max_tokens_reached": 1.0, "stop/max_tokens": 1.0}


@on_asyncio
async def test_a_reply_after_which_nothing_is_said_cannot_be_continued() -> None:
    silent = Group(partial(counting, "", terminate_on_length=False))
    with pytest.raises(
        UnsupportedError, match=r"EnvFromMessageEnv asks for a reply without .*terminate_on_length=True"
    ):
        await played(silent, Lines(("cut", "length")))


async def test_a_reply_that_was_cut_is_not_well_formed() -> None:
    assert (await played(sums(1)[0], Lines(("2", "length")))).rewards == {"player": pytest.approx(0.9)}


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


class Full(Echo):
    async def initial_observation(self) -> Any:
        return InitialObservationOverflow(reward=-2.0, metrics={"stop/max_tokens": 1.0}, logs={"full": "yes"})


async def test_a_prompt_that_is_too_long_ends_it_with_its_reward() -> None:
    """The group sees it beside the others, as in their own rollouts."""
    done = await played(Longest(partial(Full, False)), lambda _: "x")
    assert done.rewards == {"player": -1.0}, "-2 and the group's 1"
    assert done.metrics == {"stop/max_tokens": 1.0, "length": 0.0}
    ours, theirs = (Group(partial(Full, False), partial(Echo, False)) for _ in range(2))
    done, group = await played(ours, Lines(("x", "stop"))), await by_their_own_rollout(theirs, ("x", "stop"))
    assert ours.saw == theirs.saw and ours.saw[0][0] == "max_tokens"
    assert list(done.rewards.values()) == pytest.approx(group.get_total_rewards())


# ---------------------------------------------------------------------------------------------------------- cleaning up


class Broken(Echo):
    async def step(self, action: list[int], *, extra: Any = None) -> Any:
        raise ArithmeticError("the environment is broken")


class Silent(Numbered):
    """Never answers, and says when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = anyio.Event()

    async def act(self, conversation: Conversation, request: Request, seed: int) -> Action:
        self.asked.set()
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_group_cleans_up_whatever_happened() -> None:
    whole, broken, left = Group(partial(Echo, False)), Group(partial(Broken, False)), Group(partial(Echo, False))
    await played(whole, lambda _: "x")
    with pytest.raises(EffectError, match="the environment is broken"):
        await played(broken, lambda _: "x")
    player = Silent()
    async with anyio.create_task_group() as group:
        group.start_soon(played, left, player)
        await player.asked.wait()
        assert not left.cleaned
        group.cancel_scope.cancel()
    assert (whole.cleaned, broken.cleaned, left.cleaned) == (1, 1, 1)


class Unmade(Group):
    async def make_envs(self) -> Sequence[Any]:
        raise ArithmeticError("half made")


async def test_a_group_that_is_half_made_cleans_up_too() -> None:
    builder = Unmade()
    with pytest.raises(ArithmeticError, match="half made"):
        await played(builder, lambda _: "x")
    assert builder.cleaned == 1


class Plain:
    """A builder that is none of theirs, and has nothing to clean up."""

    async def make_envs(self) -> Sequence[Any]:
        return [Sum(1, 1)]

    async def compute_group_rewards(self, trajectory_group: Any, env_group: Any) -> Any:
        return [(0.0, {})]


async def test_a_builder_need_not_clean_up() -> None:
    assert (await played(Plain(), lambda _: "2")).rewards == {"player": 1.0}


# ----------------------------------------------------------------------------------------------------------- as of ours


class Batches(RLDataset):
    def get_batch(self, index: int) -> Any:
        return sums(2)[2 * index : 2 * index + 2]

    def __len__(self) -> int:
        return 2


def test_a_dataset_is_all_of_its_batches() -> None:
    ours = cookbook_environment(Batches())
    assert len(ours.builders) == 3
    assert ours.described()["builders"] == 3 and ours.described()["tags"] == ["sums"]


SOURCE = """
class Grader:
    right = {right}

def make(a):
    return a, Grader
"""


@pytest.mark.parametrize(
    "built",
    [
        lambda module: ProblemGroupBuilder(partial(module.Grader, 1), 2),
        lambda module: ProblemGroupBuilder(partial(sums, module.Grader), 2),
        lambda module: ProblemGroupBuilder(module.make, 2),
        lambda module: Group(module.Grader),
        lambda module: Longest(partial(partial, module.make)),
    ],
)
def test_what_a_builder_makes_is_part_of_the_fingerprint(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the package's version; a class that is changed changes it."""
    file = tmp_path / "grader_of_a_cookbook.py"
    file.write_text(SOURCE.format(right=1))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    ours = cookbook_environment([built(importlib.import_module(file.stem))])
    before = ours.fingerprint()
    assert before == ours.fingerprint() and before["tinker-cookbook"].startswith("0.")
    file.write_text(SOURCE.format(right=2))
    after = ours.fingerprint()
    del sys.modules[file.stem]
    assert {what for what in before if before[what] != after[what]} == {f"{file.stem}:Grader"}


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


async def test_limits_that_nobody_keeps_are_refused() -> None:
    limited = Group(lambda: counting(rollout_limits=RolloutLimits(max_turn_tokens=5)))
    with pytest.raises(UnsupportedError, match=r"max_turn_tokens=5.*Sampling\(max_tokens=...\).*episode_deadline"):
        await played(limited, lambda _: "x")
    assert limited.cleaned == 1


@on_asyncio
async def test_limits_that_limit_nothing_are_none() -> None:
    assert (await played(Group(lambda: counting(rollout_limits=RolloutLimits())), lambda _: "x")).rewards


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
    with pytest.raises(UnsupportedError, match=r"tools \(search\) are not told"):
        Messages().create_conversation_prefix_with_tools([{"name": "search"}], "Find it.")


def guess(text: str, rng: Random) -> str:
    return str(rng.randrange(4))


async def test_it_is_trained_within_its_groups(tmp_path: Path) -> None:
    """As the cookbook compares: what is compared are the rewards of one episode, which is a group of theirs."""
    compared: list[Comparable] = []

    @advantages
    def watched(group: Comparable) -> Any:
        compared.append(group)
        return GroupMean()(group, {})[0]

    run = Run(
        name="cookbook",
        train=Episodes(cookbook_environment(sums(4)), range(3)),
        policies={"player": Policy("m", grpo(advantages=watched, compare={"player": "episode"}))},
        steps=2,
        groups_per_step=2,
        group_size=2,
        backend=ScriptedModels(reply=guess),
        folder=tmp_path,
    )
    store = MemorySegments()
    assert await train_async(run, store=store)
    ends = [event for event in events_of(store) if isinstance(event, Ended)]
    rewards = [sorted(one.value for one in event.results if one.value is not None) for event in ends]
    assert len(ends) == 8 and all(len(one) == 4 for one in rewards)
    assert all(len(one) == 4 and len({*one.episodes}) == 1 for one in compared)
    assert any(one.rewards.std() for one in compared), "else all advantages are 0"
    assert sorted(sorted(one.rewards.tolist()) for one in compared) == [pytest.approx(one) for one in sorted(rewards)]


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
