"""A run as a value: defaults, names, and every setting that cannot be used refused with its value and what to write
instead."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring import (
    Adam,
    Comparable,
    Episodes,
    F,
    Lineup,
    Local,
    Lora,
    Policy,
    Run,
    Sampling,
    ScriptedBackend,
    ScriptedModels,
    Seat,
    advantages,
    environment,
    generated,
    grpo,
    rae,
    train,
)
from sparring.errors import SettingError, SparringError, UnsupportedError
from sparring.learner import train_async
from sparring.rollout import MemorySegments
from sparring.rollout.events import Stepped
from tests.learner.worlds import events_of


@environment
async def duel(task: int, first: Seat, second: Seat) -> dict[Seat, float]:
    await first.ask(f"{task}")
    await second.ask(f"{task}")
    return {first: 1.0, second: -1.0}


@environment
async def echo(task: int, solver: Seat) -> float:
    return float(len((await solver.ask(f"{task}")).text))


def untyped(value: object) -> Any:
    """What a type checker would have caught."""
    return value


async def undecorated(task: int, solver: Seat) -> float:
    return 0.0


def run(**changes: Any) -> Run:
    settings: dict[str, Any] = {"name": "a", "train": Episodes(echo, range(4)), "policies": Policy("m"), "steps": 2}
    return Run(**settings | changes)


# --------------------------------------------------------------------------------------------------------- what there is


def test_the_defaults() -> None:
    made = run()
    assert (made.groups_per_step, made.group_size, made.max_staleness, made.evaluate_every) == (16, 8, 1, 10)
    assert made.backend == Local()
    assert made.path == Path("runs/a")
    policy = made.named_policies["policy"]
    assert (policy.learning_rate, policy.lora, policy.adam) == (
        1e-4,
        Lora(rank=32, alpha=32),
        Adam(beta1=0.9, beta2=0.95),
    )
    assert policy.sampling == Sampling(temperature=1.0, max_tokens=512)
    assert policy.algorithm == grpo()


def test_one_or_several_of_each() -> None:
    one, other = Episodes(echo, [1]), Episodes(echo, [2])
    assert run(train=one).sources == (one,)
    assert run(train=[one, other]).sources == (one, other)
    assert run().named_held_out == {}
    assert run(held_out=one).named_held_out == {"held-out": one}
    assert run(held_out={"x": one, "y": other}).named_held_out == {"x": one, "y": other}
    named = {"alice": Policy("m"), "bob": Policy("n")}
    assert run(policies=named).named_policies == named
    assert Episodes(echo, [1]).lineups == (Lineup(),)
    several = [Lineup({"first": "a"}), Lineup({"second": "a"})]
    assert Episodes(duel, [1], several).lineups == tuple(several)


def test_a_run_is_changed_by_replacing_fields() -> None:
    """What a test, a notebook and the command line do."""
    made = replace(run(), steps=7, backend=ScriptedModels())
    assert (made.steps, made.backend) == (7, ScriptedModels())
    with pytest.raises(SettingError, match="steps=0"):
        replace(made, steps=0)


def test_endless_tasks_may_be_trained_on() -> None:
    assert run(train=Episodes(echo, generated(lambda rng: rng.randrange(9)))).sources


# ------------------------------------------------------------------------------------------------------- what is refused

WHOLE = {
    "steps": 1,
    "groups_per_step": 1,
    "group_size": 1,
    "max_staleness": 0,
    "evaluate_every": 1,
    "max_concurrent": 1,
    "seed": 0,
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", ["below", 2.0, "3", None, True, np.int64(3), math.nan])
def test_whole_numbers(name: str, value: Any) -> None:
    bad = WHOLE[name] - 1 if value == "below" else value
    with pytest.raises(SettingError, match=f"^{name}=.*must be a whole number, at least {WHOLE[name]}$") as refused:
        run(**{name: bad})
    assert repr(bad) in str(refused.value)


@pytest.mark.parametrize("name", WHOLE)
def test_the_least_whole_numbers_will_do(name: str) -> None:
    run(**{name: WHOLE[name]}, policies=Policy("m", rae()))


@pytest.mark.parametrize("name", ["episode_deadline", "stall_deadline"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "60", None, True])
def test_deadlines(name: str, value: Any) -> None:
    """There is no waiting without an end."""
    with pytest.raises(SettingError, match=f"^{name}=.*finite number of seconds above 0"):
        run(**{name: value})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "0.5", None])
def test_the_share_of_faults(value: Any) -> None:
    with pytest.raises(SettingError, match=r"max_faults=.*between 0 and 1"):
        run(max_faults=value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "", "it names a folder"),
        ("name", "a/b", "name='a/b': it names a folder; use letters"),
        ("name", "..", "it names a folder"),
        ("name", "a\\b", "it names a folder"),
        ("name", "a\0", "it names a folder"),
        ("name", 3, "name=3: it names a folder"),
        ("folder", "runs", r"folder='runs': must be a pathlib.Path"),
        ("deterministic", 1, "deterministic=1: must be True or False"),
        ("backend", ScriptedBackend(), r"backend=.*as in Local\(\) or ScriptedModels\(\)"),
        ("backend", ScriptedModels, r"backend=<class .*as in Local\(\)"),
        ("backend", "local", "backend='local': must be settings"),
        ("train", [], r"train=\[\]: must be Episodes"),
        ("train", echo, "train=.*must be Episodes"),
        ("train", [Episodes(echo, [1]), echo], "train=.*must be Episodes"),
        ("train", Episodes(echo, [1], seen=True), "train source 0: seen=True belongs to held-out"),
        ("train", [Episodes(echo, [1]), Episodes(echo, [1], greedy=True)], "train source 1: greedy=True belongs"),
        ("held_out", [Episodes(echo, [1])], "held_out=.*a mapping of names"),
        ("held_out", {"": Episodes(echo, [1])}, "held_out: the name '' must be text"),
        ("held_out", {"x": echo}, r"held_out\['x'\]=.*must be Episodes"),
        ("policies", {}, r"policies=\{\}: must be a Policy"),
        ("policies", "m", "policies='m': must be a Policy"),
        ("policies", {"a@b": Policy("m")}, "the name 'a@b' also names a folder"),
        ("policies", {"a/b": Policy("m")}, "the name 'a/b' also names a folder"),
        ("policies", {"": Policy("m")}, "the name '' also names a folder"),
        ("policies", {"a": "m"}, r"policies\['a'\]='m': must be a Policy, as in Policy"),
    ],
)
def test_other_fields(field: str, value: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        run(**{field: value})


def test_a_group_too_small_to_be_compared() -> None:
    with pytest.raises(SettingError, match=r"group_size=1: group mean of 'policy' compares at least 2.*use rae\(\)"):
        run(group_size=1)
    run(group_size=1, policies=Policy("m", rae()))
    run(group_size=1, policies=Policy("m", grpo(compare={"solver": "episode"})))

    @advantages(minimum=1)
    def plain(group: Comparable) -> F:
        return group.rewards

    run(group_size=1, policies=Policy("m", grpo(advantages=plain)))


def test_a_comparison_of_a_seat_that_is_not_there() -> None:
    """It would be ignored for ever."""
    with pytest.raises(SettingError, match=r"policy 'policy': compare=\{'slover': .*did you mean 'solver'\?"):
        run(policies=Policy("m", grpo(compare={"slover": "episode"})))
    with pytest.raises(SettingError, match=r"the seats are solver, first, second"):
        both = [Episodes(echo, [1]), Episodes(duel, [1])]
        run(train=both, policies=Policy("m", grpo(compare={"judge": "group"})))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Episodes(untyped(undecorated), [1]), "no environment; decorate its function with @environment"),
        (lambda: Episodes(echo, []), "echo: its tasks are empty; give at least one"),
        (lambda: Episodes(echo, [1], []), r"echo: lineup=\[\]: is empty; Lineup\(\)"),
        (lambda: Episodes(echo, [1], untyped("policy")), "echo: lineup='policy': must be a Lineup"),
        (lambda: Episodes(echo, [1], untyped({"solver": "policy"})), "lineup=.*must be a Lineup"),
        (lambda: Episodes(echo, [1], untyped([Lineup(), {}])), "lineup=.*must be a Lineup"),
    ],
)
def test_bad_episodes(made: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        made()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": ""}, "model='': must be text"),
        ({"model": Path("m")}, "model=.*must be text, the path of a folder"),
        ({"algorithm": rae}, r"algorithm=<function rae.*must be a sparring.Algorithm, as in algorithm=grpo\(\)"),
        ({"lora": 16}, r"lora=16: must be a sparring.Lora, as in lora=Lora\(\)"),
        ({"sampling": 0.7}, "sampling=0.7: must be a sparring.Sampling"),
        ({"adam": 1e-3}, "adam=0.001: must be a sparring.Adam"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be a finite number above 0"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": "1e-4"}, "learning_rate='1e-4'"),
        ({"lr_schedule": "step"}, "lr_schedule='step': must be 'constant', 'linear' or 'cosine'"),
        ({"adam": Adam(learning_rate=3e-4)}, r"adam.learning_rate=0.0003: is not used; set the policy's learning_rate"),
        ({"sampling": Sampling(temperature=0)}, "sampling.temperature=0 on a trained policy.*greedy=True"),
    ],
)
def test_bad_policies(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Policy(**{"model": "m"} | fields)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.85355339, 0.5, 0.14644661])],
)
def test_the_learning_rate_falls_as_its_schedule_says(schedule: Any, factors: list[float]) -> None:
    policy = Policy("m", learning_rate=2e-4, lr_schedule=schedule)
    assert [policy.rate_at(step, 4) for step in range(4)] == pytest.approx([2e-4 * factor for factor in factors])


async def test_every_step_is_taken_at_the_rate_of_the_schedule(tmp_path: Path) -> None:
    """The scripted weights are a hash over the optimizer's settings, so other rates end in other weights."""
    digests = {}
    for schedule, rates in (("constant", [1e-2, 1e-2]), ("linear", [1e-2, 5e-3])):
        policy = Policy("m", learning_rate=1e-2, lr_schedule=untyped(schedule))
        made = run(policies=policy, backend=ScriptedModels(), folder=tmp_path / schedule, deterministic=True)
        store = MemorySegments()
        await train_async(made, store=store)
        steps = [event for event in events_of(store) if isinstance(event, Stepped)]
        assert [step.engine["learning_rate"] for step in steps] == rates
        digests[schedule] = [step.digest for step in steps]
    assert digests["constant"][0] == digests["linear"][0]
    assert digests["constant"][1] != digests["linear"][1]


def test_a_learning_rate_said_twice_alike_is_no_harm() -> None:
    Policy("m", learning_rate=3e-4, adam=Adam(learning_rate=3e-4, beta1=0.8))


@pytest.mark.parametrize("fields", [{"renderer": "own"}, {"thinking": "drop"}])
def test_what_is_not_there_yet(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="is there"):
        Policy("m", **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rate": -1.0}, "adam.learning_rate=-1.0"),
        ({"weight_decay": math.inf}, "adam.weight_decay=inf"),
        ({"grad_clip_norm": math.nan}, "adam.grad_clip_norm=nan"),
        ({"beta1": 1.0}, "adam.beta1=1.0: must be at least 0 and less than 1"),
        ({"beta2": -0.1}, "adam.beta2=-0.1"),
        ({"eps": 0.0}, "adam.eps=0.0: must be a finite number above 0"),
    ],
)
def test_bad_optimizers(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Adam(**fields)


# ------------------------------------------------------------------------------------ what is refused when the run starts


class Broken:
    """Tasks of which one cannot be had."""

    def __init__(self, bad: int, count: int | None) -> None:
        self._bad = bad
        self._count = count

    def __getitem__(self, index: int, /) -> int:
        if index == self._bad:
            raise OSError("no such row")
        return index


class BrokenList(Broken):
    def __len__(self) -> int:
        assert self._count is not None
        return self._count


def started(folder: Path, **changes: Any) -> SparringError:
    """What a run of those settings ends with."""
    made = run(backend=ScriptedModels(), folder=folder, group_size=2, groups_per_step=2, **changes)
    with pytest.raises(SparringError) as refused:
        train(made)
    return refused.value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train": Episodes(echo, range(4)), "held_out": Episodes(echo, range(3, 6))},
            "task 0 of held-out 'held-out' is task 3 of train source 0 too: keep them apart (split()), or say seen=True",
        ),
        (
            {"train": [Episodes(echo, [9]), Episodes(echo, [1, 2])], "held_out": {"x": Episodes(duel, [5, 2])}},
            "task 1 of held-out 'x' is task 1 of train source 1 too",
        ),
        (
            {"train": Episodes(echo, generated(lambda rng: rng.randrange(3))), "held_out": Episodes(echo, [2])},
            "task 0 of held-out 'held-out' is task",
        ),
        ({"held_out": Episodes(echo, generated(lambda rng: rng.random()))}, "held-out 'held-out' is endless"),
        (
            {"train": Episodes(echo, BrokenList(3, 5))},
            "task 3 of train source 0 raised OSError: no such row",
        ),
        ({"held_out": Episodes(echo, BrokenList(7, 8))}, "task 7 of held-out 'held-out' raised OSError: no such row"),
        ({"train": Episodes(echo, Broken(70, None)), "steps": 40}, "raised OSError: no such row"),
        ({"train": Episodes(echo, [{1, 2}, object()])}, "is not JSON data"),
        ({"train": Episodes(echo, untyped({5, 6, 7}))}, "task 0 of train source 0 raised TypeError"),
        ({"train": Episodes(duel, [1], Lineup({"frist": "policy"}))}, "seat 'frist'; did you mean 'first'?"),
        (
            {"train": Episodes(duel, [1], Lineup({"first": "alice"}))},
            "'first' is played by policy 'alice'; the policies",
        ),
    ],
)
def test_what_a_run_is_refused_for_at_its_start(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    refused = started(tmp_path, **changes)
    assert isinstance(refused, SettingError)
    assert said in str(refused)


def test_held_out_tasks_that_are_trained_on_may_be_seen(tmp_path: Path) -> None:
    made = run(
        train=Episodes(echo, range(4)),
        held_out=Episodes(echo, range(4), seen=True),
        backend=ScriptedModels(),
        folder=tmp_path,
        group_size=2,
        groups_per_step=2,
    )
    assert train(made)
