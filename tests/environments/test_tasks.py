"""Tasks: the same one at the same index for ever, digests of content, splits that are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.environments import generated, jsonl, size, split, task_digest
from sparring.errors import SettingError


@dataclass(frozen=True)
class Sum:
    question: str
    answer: int = 0


def draw(rng: Random) -> Sum:
    one, other = rng.randint(0, 9), rng.randint(0, 9)
    return Sum(f"{one}+{other}", one + other)


# ----------------------------------------------------------------------------------------------------------- generated


@given(index=st.integers(0, 10**12), seed=st.integers())
def test_the_task_at_an_index_is_always_the_same(index: int, seed: int) -> None:
    assert generated(draw, seed=seed)[index] == generated(draw, seed=seed)[index]
    numpys: Any = np.int64(index)
    assert generated(draw, seed=seed)[numpys] == generated(draw, seed=seed)[index]


def test_the_order_of_asking_does_not_matter() -> None:
    forwards, backwards = generated(draw), generated(draw)
    assert [forwards[i] for i in range(20)] == [backwards[i] for i in reversed(range(20))][::-1]


def test_seeds_and_indices_give_different_tasks() -> None:
    numbers = generated(lambda rng: rng.getrandbits(64), seed=1)
    others = generated(lambda rng: rng.getrandbits(64), seed=11)
    assert len({numbers[i] for i in range(100)} | {others[i] for i in range(100)}) == 200


@pytest.mark.parametrize(
    "index, error", [(-1, IndexError), (slice(0, 3), TypeError), (1.0, TypeError), ("1", TypeError)]
)
def test_an_index_is_a_number_from_0_on(index: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        generated(draw)[index]


@pytest.mark.parametrize(
    "use", [list, sorted, lambda tasks: split(tasks, 1), lambda tasks: 3 in tasks, lambda tasks: [*tasks]]
)
def test_an_endless_source_is_not_gone_through(use: Callable[[Any], object]) -> None:
    """Python would call `__getitem__` with 0, 1, 2, ... for ever."""
    with pytest.raises(SettingError, match=r"take the first n as \[source\[i\] for i in range\(n\)\]"):
        use(generated(draw))


# --------------------------------------------------------------------------------------------------------------- jsonl


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_tasks_from_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, '{"question": "1+1", "answer": 2}\n\n  \r\n{"question": "2+2", "extra": [1]}')
    assert jsonl(path, Sum) == [Sum("1+1", 2), Sum("2+2", 0)]
    assert jsonl(str(path)) == [{"question": "1+1", "answer": 2}, {"question": "2+2", "extra": [1]}]
    assert jsonl(written(tmp_path, "")) == []
    assert jsonl(written(tmp_path, "\ufeff" + '{"question": "\u00e9\u2028"}'), Sum) == [Sum("\u00e9\u2028")]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"question": "a"}\n{"question"', "line 2: "),
        ('\n\n{"question": 3}', r"line 3: Expected `str`, got `int` - at `\$.question`"),
        ('{"answer": 3}', "line 1: .*missing required field `question`"),
        ("[1]", "line 1: Expected `object`"),
        ("NaN", "line 1: "),
        (b'{"question": "\xff"}', "line 1: "),
        ('{"question": "a"} {"question": "b"}', "line 1: "),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(SettingError, match=f"tasks.jsonl, {message}"):
        jsonl(written(tmp_path, content), Sum)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"tasks file '.*gone.jsonl': No such file"):
        jsonl(tmp_path / "gone.jsonl")
    with pytest.raises(SettingError, match="Is a directory"):
        jsonl(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    "tasks, count", [([1, 2], 2), (range(5), 5), ((), 0), (generated(draw), None), (np.arange(3), 3)]
)
def test_how_many_there_are(tasks: Any, count: int | None) -> None:
    assert size(tasks) == count


def test_a_source_of_the_users_own() -> None:
    class Endless:
        def __getitem__(self, index: int, /) -> int:
            return index

    class Finite(Endless):
        def __len__(self) -> int:
            return 7

    assert size(Endless()) is None
    assert size(Finite()) == 7


# -------------------------------------------------------------------------------------------------------------- digests


def test_equal_content_has_an_equal_digest() -> None:
    digest = task_digest(Sum("1+1", 2))
    assert digest == task_digest({"answer": 2, "question": "1+1"})
    assert digest == task_digest(msgspec.json.decode(msgspec.json.encode(Sum("1+1", 2)), type=Sum))
    assert task_digest((1, [2])) == task_digest([1, (2,)])
    assert len(digest) == 64


@pytest.mark.parametrize(
    "one, other", [(1, "1"), (1, 1.0), (1, True), (None, ""), ([], {}), ("a", "a "), (["ab"], ["a", "b"])]
)
def test_other_content_has_another(one: Any, other: Any) -> None:
    assert task_digest(one) != task_digest(other)
    assert task_digest(Sum(one)) != task_digest(Sum(other))


@pytest.mark.parametrize("task", [object(), float("nan"), {"a": float("inf")}, draw, "\ud800", np.zeros(2)])
def test_a_task_that_is_no_data_is_refused(task: Any) -> None:
    with pytest.raises(SettingError, match=r"task .* is not JSON data .*: use a dataclass of numbers, text and lists"):
        task_digest(task)


# --------------------------------------------------------------------------------------------------------------- split


@given(tasks=st.lists(st.integers(0, 40), min_size=1), held_out=st.integers(-1, 45))
def test_the_two_sides_are_apart_and_whole(tasks: list[int], held_out: int) -> None:
    distinct = set(tasks)
    if not 0 < held_out < len(distinct):
        with pytest.raises(SettingError, match=r"of .* distinct tasks"):
            split(tasks, held_out)
        return
    train, test = split(tasks, held_out)
    assert len(test) == held_out
    assert sorted(train + test) == sorted(distinct)
    assert split([*reversed(tasks), *tasks], held_out) == (train, test)


def test_equal_tasks_of_other_kinds_are_one() -> None:
    train, test = split([Sum("a", 1), {"question": "a", "answer": 1}, Sum("b", 2)], 1)
    assert len(train) == len(test) == 1


@given(tasks=st.sets(st.integers(0, 1000), min_size=3, max_size=30), more=st.integers(1001, 1100))
def test_a_task_that_joins_moves_few_others(tasks: set[int], more: int) -> None:
    """Which side a task is on depends on its digest: one more task moves at most one other."""
    _, before = split(sorted(tasks), 2)
    _, after = split(sorted(tasks | {more}), 2)
    assert len(set(before) - set(after)) <= 1


@pytest.mark.parametrize("held_out", [0.5, "2", None])
def test_held_out_is_a_number_of_tasks(held_out: Any) -> None:
    with pytest.raises(SettingError, match=r"held_out=.* of 9 distinct tasks: must be a number from 1 to 8"):
        split(range(9), held_out)


def test_a_shuffle_that_every_process_makes_alike() -> None:
    train, test = split(range(6), 2)
    by_digest = sorted(range(6), key=task_digest)
    assert (train, test) == (by_digest[2:], by_digest[:2])
    assert task_digest(3) == "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce"
