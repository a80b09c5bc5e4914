"""What a signature says, read also where annotations are text (as everywhere in this file) or name what is not there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import msgspec
import pytest

from sparring.environments import MathVerifier, Score, Seat, environment
from sparring.environments.signature import Signature, hint, read_signature, setting_type
from sparring.errors import SettingError

if TYPE_CHECKING:
    from sparring.nowhere import Problem  # type: ignore[import-not-found]

    from sparring.environments import Seat as Elsewhere


@dataclass(frozen=True)
class Case:
    question: str
    truth: bool


class Row(TypedDict):
    question: str
    truth: bool


class Record(msgspec.Struct):
    question: str
    truth: bool


async def debate(task: Case, pro: Seat, con: Seat, *, rng: Random, rounds: int = 2, style: str = "calm") -> None: ...


async def unannotated(task: Case, seat: Seat, *, rounds: int = 2, limit: int | None = None, rng: Random) -> None: ...


unannotated.__annotations__.clear()


async def unresolved(task: Problem, seat: Elsewhere, *, rounds: Problem = 2, tries: Problem = None) -> None: ...


def test_the_parts_of_a_signature() -> None:
    assert read_signature(debate) == Signature(
        task_type=Case, seats=("pro", "con"), settings={"rounds": 2, "style": "calm"}, takes_rng=True
    )


def test_annotations_may_be_missing_or_name_what_is_not_there() -> None:
    assert read_signature(unannotated) == Signature(
        task_type=Any, seats=("seat",), settings={"rounds": 2, "limit": None}, takes_rng=True
    )
    assert read_signature(unresolved).task_type is Any


def test_local_types_are_found_where_the_function_uses_them() -> None:
    @dataclass
    class Local:
        text: str

    async def uses(task: Local, seat: Seat) -> None:
        assert isinstance(task, Local)

    async def does_not(task: Local, seat: Seat) -> None: ...

    assert read_signature(uses).task_type is Local
    assert read_signature(does_not).task_type is Any


def test_one_name_that_is_not_there_does_not_hide_the_others() -> None:
    async def mixed(task: Problem, seat: Seat, *, rounds: int = 2, mode: Literal["a", "b"] = "a") -> None: ...

    assert setting_type(mixed, "rounds") is int
    assert setting_type(mixed, "mode") == Literal["a", "b"]
    assert hint(mixed, "seat") is Seat


def test_a_setting_without_a_type_has_that_of_its_default() -> None:
    assert setting_type(unannotated, "rounds") is int
    assert setting_type(unannotated, "limit") is Any
    assert setting_type(unresolved, "rounds") is int
    assert setting_type(unresolved, "tries") is Any


# -------------------------------------------------------------------------------------------------- refused signatures


def plain(task: Case, seat: Seat) -> None: ...


async def generator(task: Case, seat: Seat) -> Any:
    yield None


class Callable_:
    async def __call__(self, task: Case, seat: Seat) -> None: ...


@pytest.mark.parametrize("function", [plain, generator, Callable_(), functools.partial(debate, rounds=3), 3, print])
def test_an_environment_is_an_async_function(function: Any) -> None:
    with pytest.raises(SettingError, match="an environment is an async function"):
        read_signature(function)


async def no_seat(task: Case) -> None: ...
async def nothing(*, rounds: int = 2) -> None: ...
async def many(task: Case, *seats: Seat) -> None: ...
async def any_setting(task: Case, seat: Seat, **settings: int) -> None: ...
async def no_default(task: Case, seat: Seat, *, rounds: int) -> None: ...
async def forgotten_star(task: Case, seat: Seat, rounds: int = 2) -> None: ...
async def no_seat_at_all(task: Case, rounds: int) -> None: ...
async def optional_seat(task: Case, seat: Seat | None = None) -> None: ...
async def rng_in_the_way(task: Case, rng: Random, seat: Seat) -> None: ...
async def not_data(task: Case, seat: Seat, *, judge: Callable[[], None] = print) -> None: ...
async def endless(task: Case, seat: Seat, *, limit: float = float("inf")) -> None: ...


@pytest.mark.parametrize(
    "function, message",
    [
        (no_seat, r"no_seat\(task: 'Case'\) -> 'None': the first parameter is the task, then at least one seat"),
        (nothing, "the first parameter is the task"),
        (many, r"many: \*seats: 'Seat' hides its seats or settings; name them, or subclass Environment"),
        (any_setting, r"any_setting: \*\*settings: 'int' hides"),
        (no_default, "setting 'rounds' has no default; give it one"),
        (
            forgotten_star,
            r"forgotten_star\(rounds: 'int' = 2\): has a default, so it is a setting: write settings after \*",
        ),
        (no_seat_at_all, r"no_seat_at_all\(rounds: 'int'\): what follows the task is a Seat"),
        (optional_seat, "has a default, so it is a setting"),
        (rng_in_the_way, "rng is the reserved name of a generator"),
        (not_data, r"not_data\(judge: .*\): a setting must be JSON data"),
        (endless, r"endless\(limit: 'float' = inf\): a setting must be JSON data"),
    ],
)
def test_signatures_that_say_something_else_are_refused(function: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        environment(function)


MARKED = MathVerifier()


async def verified(task: Case, seat: Seat, *, verify: MathVerifier = MARKED) -> Score:
    return await verify("5", "5")


def test_a_setting_may_be_a_record() -> None:
    whole = environment(verified)(verify=MathVerifier(extract="whole"))
    assert whole.described()["settings"]["verify"]["extract"] == "whole"
    with pytest.raises(SettingError, match=r"verified\(verify=3\): Expected `object`, got `int`"):
        environment(verified)(verify=3)


# ------------------------------------------------------------------------------------------------------- hidden fields


@pytest.mark.parametrize("task_type", [Case, Row, Record, "Case", "Row", "Record"])
def test_hidden_fields_are_fields_of_the_task(task_type: Any) -> None:
    async def play(task: Any, pro: Seat, con: Seat) -> None: ...

    play.__annotations__["task"] = task_type
    made = environment(hidden={"pro": ("truth",), "*": ("question", "truth")})(play)
    assert made.hidden == {"pro": ("truth",), "*": ("question", "truth")}
    for seat in ("pro", "*"):
        with pytest.raises(SettingError, match=r"play: hidden field 'answer' is none of \w+'s: question, truth"):
            environment(hidden={seat: ("truth", "answer")})(play)


@pytest.mark.parametrize("task_type", [int, str, "float", bool])
def test_a_number_has_no_fields_to_hide(task_type: Any) -> None:
    async def play(seed: Any, seat: Seat) -> None: ...

    play.__annotations__["seed"] = task_type
    with pytest.raises(SettingError, match=r"hidden field 'answer' is none of \w+'s: none"):
        environment(hidden={"*": ("answer",)})(play)


@pytest.mark.parametrize("task_type", [dict, "dict[str, int]", Any, "Problem", "list[int]"])
def test_what_does_not_say_its_fields_is_not_checked(task_type: Any) -> None:
    async def play(task: Any, seat: Seat) -> None: ...

    play.__annotations__["task"] = task_type
    assert environment(hidden={"*": ("answer",)})(play).hidden == {"*": ("answer",)}


def test_a_text_is_no_tuple_of_fields() -> None:
    with pytest.raises(SettingError, match=r"debate: hidden\['pro'\] is the text 'truth'; write \('truth',\)"):
        environment(hidden={"pro": "truth"})(debate)  # type: ignore[dict-item]
