"""Held-out episodes as a task of inspect-ai, played by inspect's own mock model: what is asked of it, how its episodes are
scored, and what becomes of those that fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from sparring import (
    Episodes,
    Frozen,
    Lineup,
    Outcome,
    Sampling,
    Score,
    Scripted,
    ScriptedAgent,
    Seat,
    environment,
    generated,
    tool,
)
from sparring.errors import SettingError
from sparring.learner.evaluate import evaluate
from sparring.rollout import Slots
from sparring.rollout.events import Evaluated

pytestmark = [  # of inspect's own: how it asks again, and streams that it leaves open
    pytest.mark.inspect,
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*MemoryObject.*Stream:pytest.PytestUnraisableExceptionWarning"),
]

Says = Callable[[list[Any]], Any]
"""Messages -> a text, or an assistant's message of inspect's."""


class Model:
    """inspect's mock model, which says what `says` does, and keeps what it was asked: messages, tools and settings."""

    def __init__(self, says: Says, stop: str = "stop") -> None:
        self.asked: list[tuple[list[Any], list[Any], Any]] = []
        self._says, self._stop = says, stop

    def opened(self) -> Any:
        from inspect_ai.model import get_model

        return get_model("mockllm/model", memoize=False, custom_outputs=self._answer)

    def _answer(self, messages: list[Any], tools: list[Any], choice: object, config: Any) -> Any:
        from inspect_ai.model import ChatMessageAssistant, ModelOutput, ModelUsage

        self.asked.append((messages, tools, config))
        said = self._says(messages)
        message = ChatMessageAssistant(content=said) if isinstance(said, str) else said
        stop = "tool_calls" if message.tool_calls else self._stop
        output = ModelOutput.from_message(message, stop)
        output.usage = ModelUsage(
            input_tokens=1, output_tokens=1, total_tokens=2
        )  # else it is counted by a file of the web
        return output


def evaluated(task: Any, model: Model, folder: Path, **settings: Any) -> Any:
    import inspect_ai

    given = {"display": "none", "log_dir": str(folder), "fail_on_error": False} | settings
    (log,) = inspect_ai.eval(task, model=model.opened(), **given)
    return log


def task_of(episodes: Episodes, **settings: Any) -> Any:
    from sparring.learner.inspect_task import inspect_task

    return inspect_task(episodes, **settings)


def metrics_of(log: Any) -> dict[str, dict[str, float]]:
    return {one.name: {name: metric.value for name, metric in one.metrics.items()} for one in log.results.scores}


def values_of(sample: Any) -> dict[str, float]:
    (score,) = sample.scores.values()
    values: dict[str, float] = score.value
    return values


@environment
async def echo(task: int, solver: Seat, *, rng: Random) -> float:
    solver.system("Count.")
    reply = await solver.ask(f"{task}?")
    return float(reply.text) + (rng.random() if task else 0.0)


def test_any_model_of_inspect_plays_every_task(tmp_path: Path) -> None:
    model = Model(lambda messages: messages[-1].text.rstrip("?"))
    log = evaluated(task_of(Episodes(echo, range(4))), model, tmp_path)
    assert log.status == "success" and log.eval.task == "echo"
    values = {sample.id: values_of(sample)["solver"] for sample in log.samples}
    assert values[0] == 0 and all(task < values[task] < task + 1 for task in (1, 2, 3))
    assert metrics_of(log)["solver"]["mean"] == pytest.approx(sum(values.values()) / 4)
    assert metrics_of(log)["solver"]["stderr"] > 0
    assert {tuple((one.role, one.text) for one in messages) for messages, _, _ in model.asked} == {
        (("system", "Count."), ("user", f"{task}?")) for task in range(4)
    }
    third = next(sample for sample in log.samples if sample.id == 3)
    assert (third.input, third.output.completion) == ("3", "3")
    assert [one.role for one in third.messages] == ["system", "user", "assistant"]
    kept = third.store["sparring"]
    assert kept["rewards"] == {"solver": values[3]}
    assert kept["transcripts"] == {"solver": [["system", "Count."], ["user", "3?"], ["solver", "3"]]}


def test_the_luck_is_that_of_the_runs_own_evaluations(tmp_path: Path) -> None:
    episodes = Episodes(echo, range(4))

    async def ours() -> Evaluated:
        agents = {"solver": ScriptedAgent(lambda conversation: "0")}
        return await evaluate("unseen", 3, episodes, agents, Slots(2), seed=7, deadline=None)

    log = evaluated(task_of(episodes, name="unseen", seed=7), Model(lambda messages: "0"), tmp_path)
    assert [values_of(sample)["solver"] for sample in sorted(log.samples, key=lambda one: one.id)] == anyio.run(
        ours
    ).rewards


def test_attempts_are_epochs(tmp_path: Path) -> None:
    log = evaluated(task_of(Episodes(echo, range(2))), Model(lambda messages: "1"), tmp_path, epochs=3)
    assert [(s.id, s.store["sparring"]["task"], s.store["sparring"]["attempt"]) for s in log.samples] == [
        (sample.id, sample.id, sample.epoch - 1) for sample in log.samples
    ]
    assert len(log.samples) == 6
    assert metrics_of(log)["solver"]["mean"] == pytest.approx(
        sum(values_of(sample)["solver"] for sample in log.samples) / 6
    )


@environment(headline="turns", zero_sum=("alice", "bob"))
async def duel(task: int, alice: Seat, bob: Seat) -> Outcome:
    mine = await alice.ask(f"round {task}")
    theirs = await bob.ask(mine.text)
    won = 1.0 if len(mine.text) > len(theirs.text) else -1.0
    return Outcome({alice: won, bob: -won}, metrics={"turns": float(task)} if task else {})


def test_others_play_as_the_line_up_says(tmp_path: Path) -> None:
    lineup = Lineup({"alice": Scripted(lambda conversation: "four"), "bob": "anybody"})
    model = Model(lambda messages: "sixsix" if messages[-1].text == "four" else "?")
    log = evaluated(task_of(Episodes(duel, range(3), lineup)), model, tmp_path)
    assert len(model.asked) == 3
    assert [values_of(sample)["bob"] for sample in log.samples] == [1, 1, 1]
    found = metrics_of(log)
    assert set(found) == {"bob", "turns"} and found["bob"]["mean"] == 1
    assert found["turns"]["mean"] == 1.5, "the first task gave none"
    unscored = {one.name: (one.scored_samples, one.unscored_samples) for one in log.results.scores}
    assert unscored == {"bob": (3, 0), "turns": (2, 1)}
    assert set(log.samples[0].store["sparring"]["transcripts"]) == {"alice", "bob"}


def test_one_model_may_play_every_seat(tmp_path: Path) -> None:
    log = evaluated(task_of(Episodes(duel, [1])), Model(lambda messages: "x" * len(messages[-1].text)), tmp_path)
    assert values_of(log.samples[0]) == {"alice": -1, "bob": 1, "turns": 1}


@environment
async def fragile(task: int, solver: Seat) -> Score:
    await solver.ask(f"{task}")
    if task == 1:
        raise KeyError("planted")
    return Score(error="no judge was there") if task == 2 else Score(1.0)


def test_what_has_no_verdict_is_no_zero(tmp_path: Path) -> None:
    log = evaluated(task_of(Episodes(fragile, range(3))), Model(lambda messages: "x"), tmp_path)
    good, broken, unjudged = sorted(log.samples, key=lambda sample: int(sample.id))
    assert values_of(good) == {"solver": 1.0}
    assert isnan(values_of(unjudged)["solver"])
    (score,) = unjudged.scores.values()
    assert score.explanation == "solver: no judge was there"
    assert broken.error.message == "KeyError('planted')"
    assert "in fragile" in broken.error.traceback
    assert metrics_of(log)["solver"]["mean"] == 1.0
    assert evaluated(task_of(Episodes(fragile, [1])), Model(str), tmp_path, fail_on_error=True).status == "error"


def test_what_the_model_raises_is_the_samples_error(tmp_path: Path) -> None:
    def says(messages: list[Any]) -> str:
        raise OSError("the provider is away")

    log = evaluated(task_of(Episodes(fragile, [0])), Model(says), tmp_path)
    assert log.samples[0].error.message == "OSError('the provider is away')"


@environment
async def endless(task: int, solver: Seat) -> float:
    for _ in range(100):
        await solver.ask("more")
    return 1.0


def test_the_limits_of_inspect_hold(tmp_path: Path) -> None:
    model = Model(lambda messages: "x")
    log = evaluated(task_of(Episodes(endless, [0])), model, tmp_path, token_limit=10)
    (sample,) = log.samples
    assert (sample.limit.type, sample.error) == ("token", None)
    assert len(model.asked) < 10
    assert isnan(values_of(sample)["solver"])


@environment
async def picky(task: int, solver: Seat) -> float:
    await solver.ask("short", max_tokens=5, stop=("!", "."))
    await solver.ask("long", max_tokens=500)
    await solver.ask("as you like")
    return 0.0


@pytest.mark.parametrize(
    ("greedy", "sampling", "settings", "temperature", "limits"),
    [
        (False, None, {}, None, [5, 500, None]),
        (True, None, {}, 0.0, [5, 500, None]),
        (False, Sampling(temperature=0.7, max_tokens=60), {}, 0.7, [5, 60, 60]),
        (True, Sampling(temperature=0.7, max_tokens=60), {}, 0.0, [5, 60, 60]),
        (False, Sampling(temperature=0.7, max_tokens=60), {"temperature": 0.2, "max_tokens": 40}, 0.2, [5, 60, 40]),
    ],
)
def test_how_replies_are_drawn(
    tmp_path: Path,
    greedy: bool,
    sampling: Sampling | None,
    settings: dict[str, Any],
    temperature: float | None,
    limits: Sequence[int | None],
) -> None:
    model = Model(lambda messages: "x")
    evaluated(task_of(Episodes(picky, [0], greedy=greedy), sampling=sampling), model, tmp_path, **settings)
    configs = [config for _, _, config in model.asked]
    assert [config.max_tokens for config in configs] == limits
    assert {config.temperature for config in configs} == {temperature}
    assert [config.stop_seqs for config in configs] == [["!", "."], None, None]


@dataclass(frozen=True)
class Place:
    row: int
    column: int


@tool
async def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@environment
async def with_tools(task: int, solver: Seat) -> Score:
    solver.tools(add)
    reply = await solver.ask("What is 2 + 3?")
    while reply.tool_calls:
        for call in reply.tool_calls:
            solver.answer(call, await call.run())
        reply = await solver.ask()
    return Score(float(reply.text == "5"), parts={"reasoned": float(bool(reply.reasoning))})


def calling(messages: list[Any]) -> Any:
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning
    from inspect_ai.tool import ToolCall

    if messages[-1].role == "tool" and messages[-1].text == "5":
        return messages[-1].text
    calls = [
        ToolCall(id="one", function="add", arguments={"a": 2, "b": 3}),
        ToolCall(id="two", function="add", arguments={}, parse_error="no JSON"),
    ]
    left = calls if messages[-1].role == "user" else calls[:1]
    return ChatMessageAssistant(
        content=[ContentReasoning(reasoning="I had better ask", signature="s")], tool_calls=left
    )


def test_tools_are_inspects_tools(tmp_path: Path) -> None:
    model = Model(calling)
    log = evaluated(task_of(Episodes(with_tools, [0])), model, tmp_path)
    assert log.samples[0].error is None
    assert values_of(log.samples[0]) == {"solver": 1.0}
    _, (shown,), _ = model.asked[0]
    assert (shown.name, shown.description, shown.parameters.required) == ("add", "The sum.", ["a", "b"])
    assert shown.parameters.properties["a"].type == "integer"
    messages, _, _ = model.asked[-1]
    assert [one.role for one in messages] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [one.tool_call_id for one in messages if one.role == "tool"] == ["one", "two", "one"]
    assert messages[2].text == "5" and "arguments that do not fit" in messages[3].text
    assert messages[1].content[0].signature == "s", "what a provider gave comes back to it as it was"
    assert log.samples[0].scores["sparring_verdict"].metadata["metrics"] == {"solver/reasoned": 0.0}


@environment
async def forked(task: int, solver: Seat) -> float:
    first = await solver.ask("a")
    other = solver.fork("other")
    second = await other.ask("b")
    solver.new_context()
    third = await solver.ask("c")
    return float(first.text + second.text + third.text == "xxx")


def test_forks_and_new_contexts_are_conversations_of_their_own(tmp_path: Path) -> None:
    model = Model(lambda messages: "x")
    log = evaluated(task_of(Episodes(forked, [0])), model, tmp_path)
    assert values_of(log.samples[0]) == {"solver": 1.0}
    assert [[one.text for one in messages] for messages, _, _ in model.asked] == [["a"], ["a", "x", "b"], ["c"]]


def test_a_conversation_that_does_not_fit_has_no_verdict(tmp_path: Path) -> None:
    log = evaluated(task_of(Episodes(fragile, [0])), Model(lambda messages: "", stop="model_length"), tmp_path)
    (score,) = log.samples[0].scores.values()
    assert isnan(score.value["solver"]) and "ContextFull" in score.explanation


FILE = """
from inspect_ai import task
from sparring import Episodes, Seat, environment
from sparring.learner.inspect_task import inspect_task


@environment
async def lengths(task: str, solver: Seat) -> float:
    return float(len((await solver.ask(task)).text))


@task
def unseen():
    return inspect_task(Episodes(lengths, ["a", "bb"]))
"""


def test_a_file_for_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text(FILE)
    log = evaluated(f"{tmp_path}/measured.py@unseen", Model(lambda messages: messages[-1].text), tmp_path)
    assert (log.status, metrics_of(log)["solver"]["mean"]) == ("success", 1.5)
    assert json.loads(json.dumps(log.eval.metadata))["environment"]["name"].endswith("lengths")


@environment(headline="solver")
async def confusing(task: int, solver: Seat) -> float:
    return 0.0


@tool
async def place(at: Place) -> str:
    """Where it goes."""
    return f"{at}"


@environment
async def with_a_type(task: int, solver: Seat) -> float:
    solver.tools(place)
    await solver.ask("Where?")
    return 0.0


def test_a_tool_that_inspect_cannot_show_is_refused(tmp_path: Path) -> None:
    log = evaluated(task_of(Episodes(with_a_type, [0])), Model(str), tmp_path)
    assert "tool 'place', whose parameters have types of their own" in log.samples[0].error.message


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        (Episodes(echo, generated(lambda rng: rng.randrange(9))), "held-out 'x' is endless: give a finite list"),
        (Episodes(duel, [1], Lineup({"alice": "me", "bob": Frozen("me@0")})), "which needs a run"),
        (Episodes(duel, [1], [Lineup(), Lineup()]), "held-out 'x' has 2 line-ups: give each a name of its own"),
        (Episodes(echo, [1], Lineup({"solver": Scripted(str)})), "held-out 'x': no seat is played by a policy"),
        (Episodes(confusing, [1]), "the headline 'solver' is the name of a seat too"),
    ],
)
def test_what_is_refused(episodes: Episodes, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        task_of(episodes, name="x")
