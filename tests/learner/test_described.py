"""A run as data: what `run.json` shows, and what a resumed run is held against."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring import (
    Comparable,
    Episodes,
    F,
    Frozen,
    Lineup,
    Local,
    Policy,
    Run,
    Scripted,
    ScriptedModels,
    Seat,
    advantages,
    environment,
    generated,
    grpo,
    rae,
)
from sparring.backend import ModelInfo
from sparring.errors import RunChanged, SettingError
from sparring.learner import train_async
from sparring.learner.checked import schedule_of
from sparring.learner.described import (
    check_code,
    check_settings,
    code_fingerprints,
    describe,
    described_episodes,
    differences,
    digests,
    drawn_by,
    plain,
    tasks_fingerprint,
)
from sparring.rollout import MemorySegments
from sparring.rollout.events import Noted
from tests.learner.worlds import duel_run, events_of

HERE = __name__


@environment
async def echo(task: int, solver: Seat, *, times: int = 1) -> float:
    return float(len((await solver.ask(f"{task} " * times)).text))


def times(group: Comparable, factor: float) -> F:
    return group.rewards * np.float32(factor)


def made(factor: Any) -> Any:
    @advantages
    def scaled(group: Comparable) -> F:
        return group.rewards * np.float32(factor)

    return scaled


@dataclass(frozen=True)
class Own:
    """An estimator of the user's that is a dataclass."""

    strength: float
    table: tuple[int, ...] = (1, 2)
    name: str = "own"
    minimum: int = 1

    def __call__(self, group: Comparable, state: Any) -> tuple[F, Any]:
        return group.rewards, state


class Bare:
    """One that is not, so that nobody can say what is in it."""

    name = "bare"
    minimum = 1

    def __call__(self, group: Comparable, state: Any) -> tuple[F, Any]:
        return group.rewards, state

    def method(self) -> None: ...


# ------------------------------------------------------------------------------------------------------ settings as data


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, None),
        (True, True),
        (Path("a/b"), "a/b"),
        ((1, [2.5, "x"]), [1, [2.5, "x"]]),
        ({1: {"a": ()}}, {"1": {"a": []}}),
        (frozenset("hgfedcba"), list("abcdefgh")),
        (float("inf"), "inf"),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.array([[1, 2]]), [[1, 2]]),
        (rae(decay=0.5).advantages, {"is": "RoleBaseline", "decay": 0.5, "given": []}),
        (
            Lineup({"a": "b", "c": Frozen("b@0")}),
            {"is": "Lineup", "players": {"a": "b", "c": {"is": "Frozen", "name": "b@0", "sampling": None}}},
        ),
        (times, f"{HERE}:times"),
        (
            partial(times, factor=2),
            {"is": "functools:partial", "function": f"{HERE}:times", "arguments": [], "keywords": {"factor": 2}},
        ),
        (
            made(0.5),
            {"is": "Stateless", "function": {"is": f"{HERE}:made.<locals>.scaled", "factor": 0.5}, "minimum": 2},
        ),
        (Own(0.1), {"is": f"{HERE}:Own", "strength": 0.1, "table": [1, 2], "name": "own", "minimum": 1}),
        (Bare(), f"{HERE}:Bare"),
        (Bare().method, {"is": f"{HERE}:Bare.method", "of": f"{HERE}:Bare"}),
        (Bare, f"{HERE}:Bare"),
        (echo(times=3), {"name": f"{HERE}:echo", "seats": ["solver"], "settings": {"times": 3}}),
    ],
)
def test_anything_as_data(value: object, data: object) -> None:
    assert plain(value) == data
    json.dumps(plain(value), allow_nan=False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plain(value))) == plain(value), "as the journal keeps it"


def test_two_lambdas_of_one_place_are_told_apart_by_what_they_close_over() -> None:
    def lifted(factor: float) -> Any:
        return advantages(lambda group: group.rewards * np.float32(factor))

    assert plain(lifted(1)) != plain(lifted(2))
    assert plain(lifted(1)) == plain(lifted(1))


def test_a_function_that_closes_over_itself_ends() -> None:
    def countdown(n: int) -> int:
        return countdown(n - 1) if n else 0

    assert plain(countdown)["countdown"] == "(itself)"


def test_what_is_long_is_given_by_its_digest() -> None:
    def lifted(table: list[int]) -> Callable[[], list[int]]:
        return lambda: table

    one, other = plain(lifted(list(range(5000)))), plain(lifted([*range(4999), 0]))
    assert len(json.dumps(one)) < 300
    assert one != other


DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(DATA)
def test_data_is_itself(data: Any) -> None:
    assert plain(data) == data
    assert list(differences(data, data)) == []


@given(DATA, DATA)
def test_what_differs_is_named(one: Any, other: Any) -> None:
    assert bool(list(differences(one, other))) == (one != other)


def test_how_differences_read() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": "x", "gone": 0}
    now = {"a": {"b": 2, "c": [1, 3]}, "d": ["x"], "new": {}}
    assert list(differences(before, now)) == [
        "a.b = 1, now 2",
        "a.c.1 = 2, now 3",
        "d = 'x', now ['x']",
        "gone = 0, now none",
        "no new, now {}",
    ]


# ------------------------------------------------------------------------------------------------------------ descriptions


def run(**changes: Any) -> Run:
    settings: dict[str, Any] = {
        "name": "a",
        "train": Episodes(echo, range(4)),
        "policies": {"alice": Policy("m")},
        "steps": 2,
        "backend": ScriptedModels(),
    }
    return Run(**settings | changes)


def described(of: Run, *, dtype: str = "float32", renderer: str = "r", model: str = "f") -> dict[str, Any]:
    info = ModelInfo(model="m", parameters=1, trained_parameters=1, context_length=9, dtype=dtype, fingerprint=model)
    names = of.named_policies
    data: dict[str, Any] = json.loads(
        json.dumps(
            describe(of, schedule_of(of), dict.fromkeys(names, info), dict.fromkeys(names, renderer)), allow_nan=False
        )
    )
    return data


def test_a_description_is_complete() -> None:
    data = described(run(held_out={"x": Episodes(echo(times=2), [7], greedy=True)}))
    assert data["settings"]["steps"] == 2
    assert data["settings"]["policies"]["alice"]["learning_rate"] == 1e-4
    assert data["settings"]["backend"] == {"is": "ScriptedModels", "reply": "sparring.backend.scripted:babble"}
    assert not data["settings"].keys() & {"train", "held_out", "folder"}, "they stand elsewhere"
    assert data["episodes"]["train/0"] == {
        "environment": {"name": f"{HERE}:echo", "seats": ["solver"], "settings": {"times": 1}},
        "tasks": 4,
        "lineups": [{}],
        "greedy": False,
        "seen": False,
        "curriculum": None,
        "faults": {"is": "Faults", "retries": 0, "score": None},
    }
    assert data["episodes"]["held_out/x"]["greedy"]
    assert data["models"]["alice"]["dtype"] == "float32"
    assert {"sparring", "numpy"} <= data["packages"].keys()
    assert set(data["fingerprints"]) == {
        "environment of train/0", "environment of held_out/x", "tasks of train/0", "tasks of held_out/x",
        "model of alice", "number format of alice", "renderer of alice",
    }  # fmt: skip


def test_endless_tasks_are_described_by_their_first() -> None:
    drawn: list[int] = []

    def draw(rng: Random) -> float:
        drawn.append(1)
        return rng.random()

    one = Episodes(echo, generated(draw, seed=1))
    assert described_episodes(one)["tasks"] is None
    assert f"{HERE}:test_endless_tasks_are_described_by_their_first" in drawn_by(one), "and by what draws the rest"
    assert drawn_by(Episodes(echo, range(9))) == {}, "a list is there as a whole"
    assert "code that draws the tasks of train/0" in described(run(train=one))["fingerprints"]
    assert tasks_fingerprint(one) == tasks_fingerprint(Episodes(echo, generated(draw, seed=1)))
    assert tasks_fingerprint(one) != tasks_fingerprint(Episodes(echo, generated(draw, seed=2)))
    assert len(drawn) < 1000


def test_as_many_digests_of_endless_tasks_as_are_asked_for() -> None:
    endless, listed = Episodes(echo, generated(lambda rng: rng.random())), Episodes(echo, range(9))
    assert digests(endless, "x", most=5) == digests(endless, "x")[:5]
    assert len(digests(listed, "x", most=5)) == 9, "a list is taken whole"


def test_the_order_of_tasks_is_part_of_them() -> None:
    one, other = Episodes(echo, [1, 2]), Episodes(echo, [2, 1])
    assert tasks_fingerprint(one) != tasks_fingerprint(other)
    assert sorted(digests(one, "x")) == sorted(digests(other, "x"))


def test_a_task_that_raises_is_named() -> None:
    class Rows:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            return [5][index]

    with pytest.raises(SettingError, match="task 1 of the rows raised IndexError: list index out of range"):
        digests(Episodes(echo, Rows()), "the rows")


# ----------------------------------------------------------------------------------------------------- the user's own code


def reply(prompt: str, rng: Random) -> str:
    return "x"


def opponent(conversation: object) -> str:
    return "x"


@dataclass(frozen=True)
class Opponent:
    """A player of the user's own."""

    depth: int = field(default=1)

    async def act(self, conversation: Any, request: Any, seed: int) -> Any:
        raise AssertionError("never played here")

    def context_left(self, conversation: Any) -> int:
        return 1


@environment
async def table(task: int, one: Seat, two: Seat, three: Seat) -> dict[Seat, float]:
    return {}


def test_code_that_is_not_sparring_s_own_is_known_by_its_source() -> None:
    lineup = Lineup({"one": "alice", "two": Scripted(opponent), "three": Opponent()})
    found = code_fingerprints(
        run(
            train=Episodes(table, [1], lineup),
            policies={"alice": Policy("m", grpo(advantages=made(2.0)))},
            backend=ScriptedModels(reply=partial(reply)),
        )
    )
    assert set(found) == {
        f"code of {HERE}:{name}" for name in ("made.<locals>.scaled", "opponent", "Opponent", "reply")
    }
    assert f"{HERE}:times" not in found[f"code of {HERE}:reply"]
    assert f"{HERE}:made" in found[f"code of {HERE}:made.<locals>.scaled"]
    assert code_fingerprints(run()) == {}, "sparring's own is known by its version"


# --------------------------------------------------------------------------------------------------------------- resuming


def changed(before: Run, after: Run, **facts: str) -> str:
    """What a run that was started as `before` says when it is resumed as `after`."""
    with pytest.raises(RunChanged) as refused:
        now = described(after, **facts)
        check_settings(described(before), now, Path("runs/a"))
        check_code(described(before)["fingerprints"], now["fingerprints"], Path("runs/a"), accept=False)
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 3}, "steps = 2, now 3"),
        ({"seed": 1}, "seed = 0, now 1"),
        ({"policies": {"alice": Policy("m", learning_rate=3e-4)}}, "policies.alice.learning_rate = 0.0001, now 0.0003"),
        (
            {"policies": {"alice": Policy("m", grpo(deviation=True))}},
            "policies.alice.algorithm.advantages.deviation = False, now True",
        ),
        ({"backend": Local()}, "backend.is = 'ScriptedModels', now 'Local'"),
        ({"train": Episodes(echo(times=2), range(4))}, "train/0.environment.settings.times = 1, now 2"),
        ({"train": Episodes(echo, range(5))}, "train/0.tasks = 4, now 5"),
        ({"train": Episodes(echo, range(4), Lineup({"solver": "alice"}))}, "no train/0.lineups.0.solver, now 'alice'"),
        ({"held_out": Episodes(echo, [9])}, "no held_out/held-out, now"),
    ],
)
def test_a_changed_setting_is_named(changes: dict[str, Any], said: str) -> None:
    message = changed(run(), run(**changes))
    assert said in message
    assert message.startswith("runs/a was started with ")
    assert "another name for a new run" in message


def test_all_changed_settings_are_named_at_once() -> None:
    message = changed(run(), run(steps=3, group_size=4))
    assert "steps = 2, now 3; group_size = 8, now 4" in message


def test_a_changed_closure_is_a_changed_setting() -> None:
    one, other = ({"alice": Policy("m", grpo(advantages=made(factor)))} for factor in (1.0, 2.0))
    assert "policies.alice.algorithm.advantages.function.factor = 1.0, now 2.0" in changed(
        run(policies=one), run(policies=other)
    )


@pytest.mark.parametrize(
    "changes", [{"max_concurrent": 3}, {"episode_deadline": 1.5}, {"stall_deadline": 2.0}, {"max_faults": 1.0}]
)
def test_what_decides_nothing_may_change(changes: dict[str, Any]) -> None:
    before, now = described(run()), described(run(**changes))
    check_settings(before, now, Path("a"))
    assert check_code(before["fingerprints"], now["fingerprints"], Path("a"), accept=False) == []


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"model": "g"}, "model of alice"),
        ({"renderer": "s"}, "renderer of alice"),
        ({"dtype": "bfloat16"}, "number format of alice"),
    ],
)
def test_changed_facts_are_named_and_may_be_accepted(facts: dict[str, str], named: str) -> None:
    message = changed(run(), run(), **facts)
    assert f"changed since the run was started, or since a change was last accepted: {named};" in message
    assert "--accept-changed-code" in message
    before, now = described(run())["fingerprints"], described(run(), **facts)["fingerprints"]
    assert check_code(before, now, Path("a"), accept=True) == [named]


def test_changed_tasks_are_named() -> None:
    assert "tasks of train/0" in changed(run(train=Episodes(echo, [1, 2])), run(train=Episodes(echo, [1, 3])))


def test_changed_code_is_named_with_what_of_it_changed() -> None:
    now = described(run(policies={"alice": Policy("m", grpo(advantages=made(1.0)))}))["fingerprints"]
    (code,) = (name for name in now if name.startswith("code of"))
    before = now | {code: now[code] | {f"{HERE}:made": "0" * 64, f"{HERE}:gone": "0"}}
    with pytest.raises(RunChanged, match=rf"last accepted: {code} \({HERE}:made, {HERE}:gone\); restore it, or"):
        check_code(before, now, Path("a"), accept=False)
    without = {name: digest for name, digest in now.items() if name != code}
    for one, other in ((now, without), (without, now), (now | {code: "0" * 64}, now)):
        assert check_code(one, other, Path("a"), accept=True) == [code], "wholly new, gone, or of an older journal"


async def test_a_run_is_held_against_what_it_was_started_with(tmp_path: Path) -> None:
    """The check is made where a run is resumed, before anything of it goes on."""
    store = MemorySegments()
    begun = duel_run(tmp_path)
    assert await train_async(begun, store=store)
    before = len(events_of(store))
    with pytest.raises(RunChanged, match="groups_per_step = 2, now 4"):
        await train_async(replace(begun, groups_per_step=4), store=store)
    assert len(events_of(store)) == before
    assert await train_async(replace(begun, max_concurrent=3), store=store)
    assert not [event for event in events_of(store) if isinstance(event, Noted) and event.kind == "changed"]
