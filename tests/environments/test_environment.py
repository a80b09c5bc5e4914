"""Environments: equal by value, set by name, found by name in another process, noticed when their code changes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from sparring.environments import Environment, FunctionEnvironment, Rewards, Seat, environment
from sparring.errors import SettingError
from tests.environments.conftest import played, saying

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    question: str
    truth: bool = False


@environment(hidden={"con": ("truth",)}, zero_sum=("pro", "con"), headline="judge_correct", resumable=False)
async def debate(
    task: Case,
    pro: Seat,
    con: Seat,
    *,
    rng: Random,
    rounds: int = 2,
    weight: float = 0.5,
    style: Literal["calm", "loud"] = "calm",
    topics: tuple[str, ...] = (),
    judge: str | None = None,
) -> dict[Seat, float]:
    await pro.ask(f"{task.question} {rounds} {style} {rng.random()}")
    return {pro: weight, con: -weight}


@environment
async def solo(task: Case, solver: Seat) -> float:
    return float((await solver.ask(task.question)).text == "yes")


async def _quiet(task: Case, solver: Seat, *, rounds: int = 1) -> None: ...


quiet = environment(_quiet)


class Table(Environment[int]):
    """Its seats vary."""

    def __init__(self, players: int) -> None:
        self.seats = tuple(f"player{number}" for number in range(players))

    async def play(self, task: int, *players: Seat) -> Rewards:
        return dict.fromkeys(players, float(task))


# ------------------------------------------------------------------------------------------------------------- playing


async def test_settings_and_chance_reach_the_function() -> None:
    rewards, (pro, con) = await played(debate(rounds=3, style="loud"), Case("Is it?"), lambda *_: "yes", rng=Random(5))
    assert rewards == {pro: 0.5, con: -0.5}
    (told, _) = pro.conversation.entries
    assert getattr(told, "text", "") == f"Is it? 3 loud {Random(5).random()}"


async def test_an_environment_without_settings() -> None:
    rewards, _ = await played(solo, Case("?"), lambda *_: "yes")
    assert rewards == 1.0


async def test_an_environment_whose_seats_vary() -> None:
    table = Table(3)
    rewards, seats = await played(table, 7, lambda *_: "")
    assert [seat.name for seat in seats] == ["player0", "player1", "player2"]
    assert rewards == dict.fromkeys(seats, 7.0)
    assert table.name == "Table"
    assert table.described() == {"name": f"{__name__}:Table", "seats": ["player0", "player1", "player2"]}
    assert (table.hidden, table.zero_sum, table.headline, table.resumable) == ({}, (), "", True)


def test_an_environment_needs_a_play() -> None:
    class Empty(Environment[int]):
        seats = ("a",)

    with pytest.raises(TypeError, match="abstract"):
        Empty()  # type: ignore[abstract]


# ------------------------------------------------------------------------------------------------------------- settings


def test_equal_by_value() -> None:
    assert debate(rounds=3) == debate(rounds=3) != debate(rounds=4)
    assert debate(rounds=2) == debate() == debate
    assert debate(rounds=3)(style="loud") == debate(style="loud", rounds=3)
    assert hash(debate(rounds=3)) == hash(debate(rounds=3))
    assert len({debate, debate(), debate(rounds=2), debate(rounds=3), solo}) == 3
    assert debate != solo
    assert environment(_quiet) == quiet


def test_frozen() -> None:
    made = debate(rounds=3)
    assert debate.settings["rounds"] == 2
    with pytest.raises(FrozenInstanceError):
        made.headline = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.settings["rounds"] = 5  # type: ignore[index]
    assert made.settings["rounds"] == 3


@pytest.mark.parametrize(
    "settings, held",
    [
        ({"rounds": 0}, 0),
        ({"weight": 1}, 1.0),
        ({"style": "loud"}, "loud"),
        ({"topics": ["a", "b"]}, ("a", "b")),
        ({"judge": None}, None),
        ({"judge": "x"}, "x"),
    ],
)
def test_values_that_fit(settings: dict[str, Any], held: object) -> None:
    (key,) = settings
    value = debate(**settings).settings[key]
    assert value == held
    assert type(value) is type(held)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rounds": "3"}, r"debate\(rounds='3'\): Expected `int`, got `str`"),
        ({"rounds": 2.5}, r"debate\(rounds=2.5\): Expected `int`, got `float`"),
        ({"rounds": True}, r"debate\(rounds=True\): Expected `int`, got `bool`"),
        ({"rounds": None}, "Expected `int`, got `null`"),
        ({"weight": "1"}, "Expected `float`, got `str`"),
        ({"weight": float("nan")}, r"debate\(weight=nan\): a setting must be JSON data"),
        ({"style": "rude"}, r"debate\(style='rude'\): Invalid enum value 'rude'"),
        ({"topics": "ab"}, "Expected `array`, got `str`"),
        ({"topics": [1]}, "Expected `str`, got `int`"),
        ({"judge": 3}, "got `int`"),
        ({"round": 3}, "debate has no setting 'round'; did you mean 'rounds'"),
        ({"depth": 3}, "debate has no setting 'depth'; it has rounds=2, weight=0.5, style='calm'"),
        ({"rng": Random(1)}, "debate has no setting 'rng'"),
        ({"pro": 1}, "debate has no setting 'pro'"),
    ],
)
def test_values_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        debate(**settings)


def test_settings_have_names() -> None:
    with pytest.raises(SettingError, match=r"debate\(3\): settings are given by name: rounds=2"):
        debate(3)
    with pytest.raises(SettingError, match=r"solo\(3\): settings are given by name: no settings"):
        solo(3)


def test_what_a_run_records() -> None:
    assert debate(rounds=3, topics=["a"]).described() == {
        "name": f"{__name__}:debate",
        "seats": ["pro", "con"],
        "settings": {"rounds": 3, "weight": 0.5, "style": "calm", "topics": ["a"], "judge": None},
    }
    assert debate.setting_types == {
        "rounds": int,
        "weight": float,
        "style": Literal["calm", "loud"],
        "topics": tuple[str, ...],
        "judge": str | None,
    }


def test_what_the_decorator_says() -> None:
    assert isinstance(debate, FunctionEnvironment)
    assert (debate.name, debate.seats, debate.task_type) == ("debate", ("pro", "con"), Case)
    assert (debate.zero_sum, debate.headline, debate.resumable) == (("pro", "con"), "judge_correct", False)
    assert debate.hidden == {"con": ("truth",)}
    assert (solo.zero_sum, solo.headline, solo.resumable, solo.gold, solo.hidden) == ((), "", True, None, {})
    assert environment(gold=lambda task: "yes")(_quiet).gold is not None


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"hidden": {"judge": ("truth",)}}, "_quiet: 'judge' is no seat of it; its seats are solver"),
        ({"zero_sum": ("solver", "other")}, "_quiet: 'other' is no seat of it"),
        ({"zero_sum": ("*",), "hidden": {"*": ("truth",)}}, r"_quiet: '\*' is no seat of it"),
        ({"zero_sum": "solver"}, r"_quiet: zero_sum is the text 'solver'; write a tuple of seats, as in \('solver',\)"),
    ],
)
def test_seats_are_named_rightly(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        environment(**wrong)(_quiet)


# ------------------------------------------------------------------------------------------------- copies and processes


@pytest.mark.parametrize("made", [debate, debate(rounds=3), solo, quiet, quiet(rounds=2)])
def test_pickled_and_copied_it_is_equal(made: FunctionEnvironment[Any]) -> None:
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), copy.copy(made)):
        assert other == made
        assert hash(other) == hash(made)
        assert other.function is made.function


def test_one_that_is_found_under_no_name_is_copied_and_not_pickled() -> None:
    @environment
    async def local(task: Case, solver: Seat, *, rounds: int = 1) -> None: ...

    assert copy.deepcopy(local(rounds=2)) == local(rounds=2)
    with pytest.raises((pickle.PicklingError, AttributeError), match="local"):
        pickle.dumps(local)


def test_another_process_finds_it(tmp_path: Path) -> None:
    (tmp_path / "duel.py").write_text(
        "from sparring.environments import Seat, environment\n"
        "@environment\n"
        "async def duel(task: int, solver: Seat, *, rounds: int = 2) -> float:\n"
        "    return 1.0\n"
    )
    (tmp_path / "make.py").write_text(
        "import pickle, sys\nfrom duel import duel\nsys.stdout.buffer.write(pickle.dumps(duel(rounds=5)))\n"
    )
    (tmp_path / "read.py").write_text(
        "import pickle, sys\nmade = pickle.loads(sys.stdin.buffer.read())\nprint(made.described(), made.fingerprint())\n"
    )

    def run(program: str, given: bytes = b"") -> bytes:
        environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        command = [sys.executable, str(tmp_path / program)]
        return subprocess.run(command, env=environ, input=given, check=True, capture_output=True, timeout=60).stdout

    first = run("read.py", run("make.py"))
    assert b"{'name': 'duel:duel', 'seats': ['solver'], 'settings': {'rounds': 5}}" in first
    (tmp_path / "duel.py").write_text((tmp_path / "duel.py").read_text().replace("return 1.0", "return 2.0"))
    second = run("read.py", run("make.py"))
    assert first.split()[:-1] == second.split()[:-1]
    assert first.split()[-1] != second.split()[-1]


def test_a_fingerprint_names_what_it_is_of() -> None:
    assert debate.fingerprint() == debate(rounds=3).fingerprint()
    assert f"{__name__}:debate" in debate.fingerprint()
    assert f"{__name__}:Table" in Table(2).fingerprint()
    assert all(len(digest) == 64 for digest in debate.fingerprint().values())


def test_a_seat_is_no_task() -> None:
    """Forgetting the task is noticed where the first parameter is a Seat."""

    async def forgot(pro: Seat, con: Seat) -> None: ...

    with pytest.raises(SettingError, match="forgot: its first parameter is the task, but pro is a Seat"):
        environment(forgot)
    assert Seat("x", saying()).name == "x"


class Lucky(Environment[int]):
    """Its seats vary, and it needs chance."""

    name = "lucky"
    seats = ("only",)

    async def play(self, task: int, *players: Seat, rng: Random | None = None) -> Rewards:
        assert rng is not None
        return task + rng.random()


async def test_an_environment_gets_chance_where_it_asks_for_it() -> None:
    assert await Lucky().begin(3, [], Random(0)) == 3 + Random(0).random()
    assert await Table(2).begin(3, [], Random(0)) == {}
