"""check_environment: what is right passes, and every check sees the defects that were planted for it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import anyio
import pytest

from sparring import Checked, check_environment
from sparring.environments import FunctionEnvironment, environment
from sparring.errors import SettingError
from sparring.rollout.check import CHECKS, ended
from tests.rollout import planted

PLANTED = (
    ("plays", "raises", "ValueError: invalid literal for int()"),
    ("plays", "waits", "deadline: play did not end within 1.0 s; it waited for the environment itself"),
    ("plays", "never_judged", "no episode was judged: the judge is ill"),
    ("plays", "misused", "was asked for a reply but told nothing since its last one"),
    ("rewards", "not_finite", "must be finite"),
    ("rewards", "generous", "zero_sum seats got one: 1.0, two: 0.0"),
    ("rewards", "for_nobody", "which is no seat of this episode"),
    ("rewards", "forgets_one", "two"),
    ("rewards", "one_for_two", "return a mapping"),
    ("replay", "by_hash", "and is asked"),
    ("replay", "by_clock", "and is asked 'It is the year 20"),
    ("replay", "by_date", "and is asked 'It is 20"),
    ("replay", "by_luck", "'The die shows "),
    ("replay", "by_loop", "'We run on asyncio.' and is asked 'We run on trio.'"),
    ("replay", "by_count", "You are number"),
    ("replay", "worth_by_luck", "its results were"),
    ("replay", "shorter_later", "ended without asking for"),
    ("interleaving", "by_count", "You are number"),
    ("interleaving", "by_luck", "The die shows"),
    ("interleaving", "worth_by_luck", "its results were"),
    ("interleaving", "shared", "its results were"),
    ("hidden", "tells", "seat 'solver' must not see 'answer'; task 0 with another there: "),
    ("hidden", "tells_its_rules", "two, context 0, turn 0, attempt 0 was asked 'rules hint 21\\n?' and is asked"),
    ("hidden", "goes_on", "is asked 'No. Once more.', and was not"),
    ("hidden", "stops_short", "is asked 'Last.'"),
    ("hidden", "offers", "with other limits"),
    ("hidden", "limits", "with other limits"),
    ("hidden", "reveals_too_late", "was asked '45?' and is asked '47?'"),
    ("hidden", "reveals_another", "must not see 'answer'"),
    ("gold", "wrong_gold", "the gold reply '46' scores 0: it must score 1"),
    ("gold", "gold_unjudged", "the gold reply '45' has no score (too hard to say)"),
    ("hostile", "anywhere", "(several answers), which scores 1"),
    ("hostile", "any_digits", "(unicode digits), which scores 1"),
    ("hostile", "beginning", "says '' (empty), which scores 1"),
    ("hostile", "as_template", "(template markers), which scores 1"),
    ("hostile", "small_numbers", "(huge number): ValueError: Exceeds the limit"),
    ("hostile", "executes", "(code that raises SystemExit): the process ended itself with exit code 1: SystemExit"),
    ("hostile", "waits_for_long", "deadline: play did not end within 1.0 s"),
    ("hostile", "unfair_forfeit", "(controls): RewardError: zero_sum seats got one: 1.0, two: 0.0"),
    ("hostile", "hangs", "(nested braces): hangs ("),
    ("event loop", "slow", "busy ("),
)


@cache
def checked(name: str, **settings: Any) -> Checked:
    """The planted environment of that name, checked."""
    found: object = getattr(planted, name)
    assert isinstance(found, FunctionEnvironment)
    settings = {"count": 4, "deadline": 1.0} | settings

    async def check() -> Checked:
        return await check_environment(found, planted.SUMS, **settings)

    return anyio.run(check)


def rows() -> list[Any]:
    """Those of the table; all but the first of each check are slow."""
    first = {check: name for check, name, _ in reversed(PLANTED)}
    return [
        pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=() if first[row[0]] == row[1] else pytest.mark.slow)
        for row in PLANTED
    ]


@pytest.mark.parametrize("check, name, says", rows())
def test_each_check_sees_what_was_planted_for_it(check: str, name: str, says: str) -> None:
    found = checked(name)
    assert not found.passed
    row = found.row(check)
    assert row.verdict == "failed", str(found)
    assert says in "\n".join(row.failures), str(found)
    assert all(text in str(found) for text in (f"{check} ", "failed", says)), "the table says it too"


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "speed"])
def test_a_defect_is_planted_for_every_check(check: str) -> None:
    assert check in {one for one, _, _ in PLANTED}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "by_loop", "by_clock", "by_date", "by_hash"])
def test_what_one_check_alone_can_see_the_others_pass(name: str) -> None:
    """So it was that one thing that was seen, and nothing beside it."""
    found = checked(name, deadline=20.0)
    failed = [row.check for row in found.rows if row.verdict == "failed"]
    assert failed == (["interleaving"] if name == "shared" else ["replay"]), str(found)


async def test_what_is_right_passes_every_check_on_either_loop() -> None:
    found = await check_environment(planted.right, planted.SUMS)
    assert [(row.check, row.verdict) for row in found.rows] == [
        (check, "measured" if check == "speed" else "passed") for check in CHECKS
    ], str(found)
    assert found.passed and str(found).splitlines()[0] == "right: 8 passed, 0 failed, 0 not checked"
    assert "another task's value for solver: answer, solver: hint" in found.row("hidden").detail
    turns = found.row("speed").detail.partition(" ")[0]
    assert int(turns) > 0


def test_effects_branches_and_reveals_are_no_defects() -> None:
    for name in ("talk", "goes_on_revealed"):
        found = checked(name, deadline=20.0)
        assert found.passed, str(found)
        assert found.row("hidden").verdict == "passed"


def test_what_does_not_apply_does_not_count_as_passed() -> None:
    found = checked("live", deadline=20.0)
    skipped = {row.check: row.detail for row in found.rows if row.verdict == "not checked"}
    assert found.passed and skipped.keys() == {"replay", "interleaving", "hidden", "gold"}
    assert skipped["replay"] == skipped["interleaving"] == "resumable=False: an episode starts anew instead"
    assert skipped["gold"] == "the environment names no gold reply: @environment(gold=...)"
    assert skipped["hidden"] == "no field is declared hidden: @environment(hidden=...)"
    assert "whether they score is not checked" in found.row("hostile").detail
    two = checked("talk", deadline=20.0)
    assert two.row("gold").verdict == "not checked" and "there are 2" in two.row("gold").detail


async def test_a_hidden_field_that_is_the_same_in_all_tasks_is_not_checked() -> None:
    found = await check_environment(planted.tells, [planted.SUMS[0], replace(planted.SUMS[0], text="1 + 1")])
    row = found.row("hidden")
    assert row.verdict == "not checked" and "solver: answer (no other task has another value there" in row.detail


def test_what_comes_after_the_end_of_a_process_was_not_reached() -> None:
    found = checked("hangs")
    assert found.row("event loop").verdict == "not checked"
    assert "not reached" in found.row("event loop").detail
    assert found.row("replay").verdict == "passed", "the other process played"


def test_only_trained_seats_must_be_rewarded() -> None:
    assert checked("forgets_one", trained=("one",), deadline=20.0).passed


async def test_what_cannot_be_checked_is_refused() -> None:
    for settings, says in (
        ({"count": 0}, "count=0"),
        ({"count": True}, "count=True"),
        ({"deadline": float("inf")}, "deadline=inf"),
        ({"trained": ("nobody",)}, "'nobody' is no seat of it; its seats are solver"),
    ):
        with pytest.raises(SettingError, match=says.replace("(", r"\(")):
            await check_environment(planted.right, planted.SUMS, **settings)
    with pytest.raises(SettingError, match="there are no tasks"):
        await check_environment(planted.right, [])

    @environment
    async def local(task: int, solver: object) -> float:
        return 0.0

    with pytest.raises(SettingError, match="local cannot be loaded in another process"):
        await check_environment(local, range(3))


def test_how_a_process_ended_is_told() -> None:
    assert ended(-9, []) == "it was ended by SIGKILL"
    assert ended(3, ["what it said"]) == "the process ended itself with exit code 3: what it said"
    held = "play (rules.py:3) holds the event loop for 3.1 s, longer than the run may stand still"
    assert ended(75, ["before", held, "after"]) == "play (rules.py:3) holds the event loop for 3.1 s"
    log = ["Timeout (0:00:04)!", "Thread 0x1 (most recent call first):", '  File "rules.py", line 3 in play']
    assert ended(1, log).endswith('every thread: File "rules.py", line 3 in play')
