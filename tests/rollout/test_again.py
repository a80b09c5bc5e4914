"""A stored episode under changed code: stored replies answer the same questions and no others, in the order of then."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sparring.environments import Conversation, Environment, Outcome, Request, Score, Seat, effect, environment, gather
from sparring.errors import SparringError
from sparring.rollout.again import Again, Stage, again
from sparring.rollout.events import DEADLINE, Acted, Admitted, Affected, Ended
from sparring.rollout.past import Effects
from tests.rollout.stage import Played, Voice, conduct, last_message, plan_of

CLOCK = Random(0)
"""How long things take, and what luck has it: other from call to call."""


async def sometime() -> None:
    for _ in range(CLOCK.randrange(6)):
        await anyio.lowlevel.checkpoint()


async def moody(conversation: Conversation, request: Request, seed: int) -> str:
    await sometime()
    return f"{last_message(conversation)} {CLOCK.random():.6f}"


async def played(of: Environment[Any], *, trained: frozenset[str] | None = None) -> Played:
    """The episode as it was."""
    return await conduct(plan_of(of, Voice(moody), trained=trained))


async def scored(
    changed: Environment[Any],
    then: Played,
    *,
    effects: Effects = "anew",
    past: Sequence[Acted | Affected] | None = None,
    before: Ended | None = None,
    deadline: float = 30.0,
) -> Again:
    """What it comes to under changed rules, however long things take."""
    admitted = Admitted(group=0, source=0, index=0, task=plan_of(changed, {}).task_digest, lineup=0, trained=["policy"])
    stage = Stage(environment=changed, seed=0, deadline=deadline, effects=effects)
    with anyio.fail_after(20):
        return await again(
            stage, 0, admitted, before or then.ended, then.events if past is None else past, {"one": "policy"}
        )


async def weather(place: str) -> float:
    """Another answer every time."""
    await sometime()
    return CLOCK.random()


@environment
async def talk(task: int, one: Seat, two: Seat, *, rng: Random, bonus: float = 0.0, looks: bool = True) -> Outcome:
    """Branches in branches that hear of each other, with effects between; what was heard is noted in the order of hearing."""
    heard: list[str] = [f"{rng.random():.6f}"]

    async def say(seat: Seat, text: str) -> None:
        heard.append(f"{seat.key}: {(await seat.ask(text)).text}")

    async def look(seat: Seat, times: int) -> None:
        for number in range(times):
            if looks:
                await effect(weather, f"{number}")
            await say(seat, f"and now? ({number})")

    aside = one.fork()
    await gather(say(one, "hello"), gather(say(two, "hi"), look(two.fork("scout"), 2)), look(aside, 3))
    two.new_context()
    await gather(say(two, f"{len(heard)}, {heard[1]}"), gather(), say(one, "last"))
    rewards = {one: float(len("".join(heard))) + bonus, aside: 0.5, two: 0.0}
    return Outcome(rewards, notes={"heard": "\n".join(heard)})


@pytest.mark.parametrize("effects", ["anew", "journal"])
@pytest.mark.parametrize("attempt", range(4))
async def test_the_same_code_comes_to_the_same(attempt: int, effects: Effects) -> None:
    then = await played(talk, trained=frozenset({"one"}))
    now = await scored(talk, then, effects=effects)
    assert now.ended == then.ended, "also the order in which branches heard of each other"
    assert (now.unasked, now.no_reply, now.unknown) == (0, None, False)


@pytest.mark.parametrize("attempt", range(4))
async def test_what_is_asked_for_no_more_is_passed_over(attempt: int) -> None:
    """Without its effects, the rest is heard in the order of then."""
    then = await played(talk, trained=frozenset({"one"}))
    now = await scored(talk(bonus=1.0, looks=False), then)
    assert now.ended.notes == then.ended.notes
    assert now.ended.results[0].value == (then.ended.results[0].value or 0.0) + 1.0


@environment
async def rounds(
    task: int, one: Seat, *, asks: int = 3, text: str = "round", worth: float = 1.0, limit: int = 9
) -> float:
    total = 0.0
    for number in range(asks):
        total += worth * len((await one.ask(f"{text} {number}", max_tokens=limit)).text)
    return total


async def test_another_reward_of_the_same_replies() -> None:
    then = await played(rounds)
    now = await scored(rounds(worth=2.0), then)
    assert then.value is not None and now.ended.results[0].value == 2 * then.value
    assert now.ended.detail == "" and now.unasked == 0


async def test_an_earlier_end_is_an_end() -> None:
    then = await played(rounds)
    now = await scored(rounds(asks=2), then)
    assert now.unasked == 1 and not now.unknown
    spoken = [event for event in then.events if isinstance(event, Acted)]
    assert now.ended.results[0].value == sum(len(event.reply.text) for event in spoken[:2] if event.reply)


@pytest.mark.parametrize(
    ("changed", "turn", "said"),
    [
        (rounds(text="Round"), 0, "seat 'one' asks something else at turn 0"),
        (rounds(limit=8), 0, "seat 'one' asks something else at turn 0"),
        (rounds(asks=4), 3, "seat 'one' asks for more than the journal holds at turn 3"),
    ],
)
async def test_another_question_has_no_answer(changed: Environment[Any], turn: int, said: str) -> None:
    now = await scored(changed, await played(rounds))
    assert now.no_reply is not None and now.unknown
    assert (now.no_reply.turn, now.ended.detail, now.ended.results) == (turn, said, [])
    assert now.trajectories == ()


async def test_a_changed_environment_cannot_swallow_that_it_has_no_answer() -> None:
    @environment
    async def deaf(task: int, one: Seat) -> float:
        try:
            await one.ask("other")
        except SparringError:
            return 0.0
        return 1.0

    assert (await scored(deaf, await played(rounds))).unknown


async def test_another_fork_has_no_answer() -> None:
    @environment
    async def forking(task: int, one: Seat, *, forked: bool = False) -> float:
        seat = one.fork() if forked else one
        return float(len((await seat.ask("well?")).text))

    now = await scored(forking(forked=True), await played(forking))
    assert now.ended.detail == "seat 'one/1' asks for more than the journal holds at turn 0"


async def test_what_was_cut_off_is_not_what_asks_otherwise() -> None:
    then = await played(rounds)
    late = Ended(group=0, member=0, fault=DEADLINE, detail="too slow")
    now = await scored(rounds, then, past=then.events[:2], before=late)
    assert now.no_reply is not None and now.cut and not now.unknown
    other = await scored(rounds(text="Round"), then, past=then.events[:2], before=late)
    assert other.unknown and not other.cut


# --------------------------------------------------------------------------------------------------------------- effects

VERDICTS: list[float] = []


async def verdict(text: str) -> float:
    VERDICTS.append(float(len(VERDICTS)))
    return VERDICTS[-1]


@environment
async def verified(task: int, one: Seat, *, extra: bool = False) -> float:
    value = await effect(verdict, (await one.ask("well?")).text)
    more = await effect(verdict, "more") if extra else 0.0
    return float(value) + 100 * float(more)


async def test_effects_are_computed_anew_or_taken_from_the_journal() -> None:
    VERDICTS.clear()
    then = await played(verified)
    assert then.value == 0.0
    assert (await scored(verified, then)).ended.results[0].value == 1.0
    assert (await scored(verified, then, effects="journal")).ended.results[0].value == 0.0
    assert len(VERDICTS) == 2
    assert (await scored(verified(extra=True), then, effects="journal")).ended.results[0].value == 200.0


async def test_an_effect_that_fails_now_fails_now() -> None:
    then = await played(verified)

    @environment
    async def risky(task: int, one: Seat) -> float:
        return float(await effect(broken, (await one.ask("well?")).text))

    now = await scored(risky, then)
    assert (now.ended.fault, now.unknown) == ("EffectError", False)
    assert "broken raised OSError: no network" in now.ended.detail


async def broken(text: str) -> float:
    raise OSError("no network")


# ---------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("returned", "fault"), [(float("nan"), "RewardError"), (None, "RewardError"), (KeyError("x"), "KeyError")]
)
async def test_what_would_stop_a_run_is_a_fault_here(returned: Any, fault: str) -> None:
    @environment
    async def odd(task: int, one: Seat) -> Any:
        await one.ask("round 0", max_tokens=9)
        if isinstance(returned, Exception):
            raise returned
        return returned

    now = await scored(odd, await played(rounds))
    assert now.ended.fault == fault and now.ended.detail
    assert now.trajectories == () and not now.unknown


async def test_an_environment_that_hangs_is_given_up() -> None:
    @environment
    async def hanging(task: int, one: Seat) -> float:
        await anyio.sleep_forever()
        return 0.0

    now = await scored(hanging, await played(rounds), deadline=0.02)
    assert now.ended.fault == DEADLINE


async def test_what_only_a_model_knows_is_said_to_be_so() -> None:
    @environment
    async def careful(task: int, one: Seat) -> float:
        return float(one.context_left > 3)

    now = await scored(careful, await played(rounds))
    assert now.ended.fault == "UnsupportedError"
    assert "seat 'one': context_left is the model's to say" in now.ended.detail


async def test_what_nobody_could_judge_is_not_judged() -> None:
    @environment
    async def shy(task: int, one: Seat) -> Score:
        await one.ask("round 0", max_tokens=9)
        return Score(error="no verdict")

    now = await scored(shy, await played(rounds))
    assert (now.ended.fault, now.ended.results[0].unjudged, now.trajectories) == ("", "no verdict", ())


async def test_timeouts_of_then_are_timeouts() -> None:
    @environment
    async def patient(task: int, one: Seat, *, worth: float = 1.0) -> float:
        try:
            await one.ask("quick!", timeout=0.01)
        except TimeoutError:
            return worth * len((await one.ask()).text)
        return -1.0

    async def slow_once(conversation: Conversation, request: Request, seed: int) -> str:
        if request.attempt == 0:
            await anyio.sleep_forever()
        return "there"

    then = await conduct(plan_of(patient, Voice(slow_once)))
    now = await scored(patient(worth=2.0), then)
    assert (then.value, now.ended.results[0].value) == (5.0, 10.0)


@pytest.mark.parametrize("limit", ["its own", "a branch that fails"])
async def test_what_was_given_up_then_is_given_up_now(limit: str) -> None:
    """The journal holds no reply to it, only one to the next attempt."""

    async def fail(seat: Seat) -> None:
        await seat.ask("quick!", timeout=0.02)

    @environment
    async def impatient(task: int, one: Seat, two: Seat, *, worth: float = 1.0) -> dict[Seat, float]:
        if limit == "its own":
            with anyio.move_on_after(0.02):
                await one.ask("slow?")
        else:
            with pytest.raises(TimeoutError):
                await gather(one.ask("slow?"), fail(two))
        return {one: worth * len((await one.ask()).text), two: 0.0}

    async def slow_once(conversation: Conversation, request: Request, seed: int) -> str:
        if request.attempt == 0:
            await anyio.sleep_forever()
        return "there"

    then = await conduct(plan_of(impatient, Voice(slow_once)))
    now = await scored(impatient(worth=2.0), then)
    assert (then.value, now.ended.results[0].value, now.unknown) == (5.0, 10.0, False)


async def test_what_was_given_up_then_and_is_not_now_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.rollout.past.REPLAY_DEADLINE", 0.02)

    @environment
    async def patient(task: int, one: Seat, *, limit: float = 0.02) -> float:
        with anyio.move_on_after(limit):
            await one.ask("slow?")
        return float(len((await one.ask()).text))

    async def slow_once(conversation: Conversation, request: Request, seed: int) -> str:
        if request.attempt == 0:
            await anyio.sleep_forever()
        return "there"

    now = await scored(patient(limit=60.0), await conduct(plan_of(patient, Voice(slow_once))))
    assert now.unknown and now.ended.detail == "seat 'one' asks for more than the journal holds at turn 0"
