"""One episode again: whatever the journal holds of it is delivered as it was, and what is new is new."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sparring.environments import Conversation, Outcome, Request, Score, Seat, effect, environment, gather
from sparring.errors import (
    ContextFull,
    EffectError,
    ReplayDiverged,
    SettingError,
    SparringError,
)
from sparring.rollout.episode import seeded
from sparring.rollout.events import Acted, Affected
from tests.rollout.stage import Voice, conduct, echo, last_message, plan_of

CLOCK = Random(0)
"""How long things take: other from call to call, whatever the seeds."""


async def sometime() -> None:
    for _ in range(CLOCK.randrange(6)):
        await anyio.lowlevel.checkpoint()


async def weather(place: str) -> list[Any]:
    """Another answer every time."""
    await sometime()
    return [place, CLOCK.random()]


async def moody(conversation: Conversation, request: Request, seed: int) -> str:
    """Another reply every time; too late for some, too long for others."""
    await sometime()
    luck = CLOCK.random()
    if luck < 0.1:
        raise ContextFull("no room")
    if luck < 0.2:
        raise TimeoutError("busy")
    return f"{last_message(conversation)} {luck:.6f}"


@environment
async def talk(task: int, one: Seat, two: Seat, *, rng: Random) -> Outcome:
    """Branches in branches, forks, contexts, effects, retries; what was heard is written down in the order of hearing."""
    heard: list[str] = [f"{rng.random():.6f}"]

    async def say(seat: Seat, text: str | None) -> str:
        try:
            reply = await seat.ask(text, timeout=30)
        except (TimeoutError, ContextFull) as error:
            heard.append(f"{seat.key}: {error}")
            return await say(seat, None)
        heard.append(f"{seat.key}: {reply}")
        return reply.text

    async def look(seat: Seat, times: int) -> None:
        for _ in range(times):
            heard.append(f"{await effect(weather, 'here')}")
            await say(seat, "and now?")

    await gather(say(one, "hello"), gather(say(two, "hi"), look(two.fork("scout"), 2)), look(one.fork(), 1))
    two.new_context()
    await gather(say(two, "afresh"), say(one, f"{len(heard)}"))
    return Outcome({one: float(len("".join(heard))), two: rng.random()}, notes={"heard": "\n".join(heard)})


async def played(past: Sequence[Acted | Affected] = (), voice: Voice | None = None) -> Any:
    return await conduct(plan_of(talk, voice or Voice(moody), past=past, trained=frozenset()))


@pytest.mark.parametrize("attempt", range(4))
async def test_a_replay_of_everything_is_the_same_and_asks_nobody(attempt: int) -> None:
    first = await played()
    nobody = Voice(moody)
    again = await played(first.events, nobody)
    assert again.ended == first.ended, "also the order in which branches heard of each other"
    assert again.events == [] and nobody.asked == []


async def test_a_replay_of_any_beginning_keeps_it_and_goes_on() -> None:
    first = await played()
    for cut in range(len(first.events) + 1):
        past = first.events[:cut]
        again = await played(past)
        assert not again.ended.fault, again.ended.detail
        whole = [*past, *again.events]
        assert len({event.key for event in whole}) == len(whole), "asked twice"
        heard = again.ended.notes["heard"].split("\n")
        for event in past:
            if isinstance(event, Acted) and event.reply is not None:
                assert any(line.endswith(event.reply.text) for line in heard), "a journaled reply was not heard"
        assert (await played(whole)).ended == again.ended


async def test_seeds_are_a_function_of_the_place() -> None:
    first, second = Voice(echo), Voice(echo)
    quiet = await played(voice=first)
    await played(quiet.events[:3], second)
    assert len({seed for _, _, seed in first.asked}) == len(first.asked)
    assert set(second.asked) < set(first.asked), "what is asked after a resume is asked with the same seed"
    other = Voice(echo)
    await conduct(plan_of(talk, other, member=1, trained=frozenset()))
    assert not {seed for _, _, seed in first.asked} & {seed for _, _, seed in other.asked}
    assert seeded(1, 23) != seeded(12, 3)


async def test_chance_is_common_to_a_group() -> None:
    rewards = {}
    for group in (0, 1):
        for member in (0, 1):
            done = await conduct(plan_of(talk, Voice(echo), group=group, member=member, trained=frozenset()))
            rewards[group, member] = done.ended.results[-1].value
    assert rewards[0, 0] == rewards[0, 1] != rewards[1, 0] == rewards[1, 1]


# ------------------------------------------------------------------------------------------------ a replay that differs


@environment
async def ask_twice(
    task: int, one: Seat, *, first: str = "a", second: str = "b", asks: int = 2, fails: bool = False
) -> float:
    for text in (first, second)[:asks]:
        await one.ask(text)
    if fails:
        raise KeyError(task)
    return 1.0


async def test_another_request_is_found() -> None:
    past = (await conduct(plan_of(ask_twice, Voice(echo)))).events
    with pytest.raises(ReplayDiverged, match="something else"):
        await conduct(plan_of(ask_twice(second="c"), Voice(echo), past=past))
    await conduct(plan_of(ask_twice(second="c"), Voice(echo), past=past[:1]))


@pytest.mark.parametrize("fails", [False, True])
async def test_an_end_before_the_end_is_found(fails: bool) -> None:
    past = (await conduct(plan_of(ask_twice, Voice(echo)))).events
    with pytest.raises(ReplayDiverged, match="ended without asking"):
        await conduct(plan_of(ask_twice(asks=1, fails=fails), Voice(echo), past=past))


async def test_a_fault_after_all_was_replayed_is_a_fault() -> None:
    past = (await conduct(plan_of(ask_twice, Voice(echo)))).events
    again = await conduct(plan_of(ask_twice(fails=True), Voice(echo), past=past))
    assert again.ended.fault == "KeyError"


async def test_what_is_not_asked_again_is_waited_for_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.rollout.past.REPLAY_DEADLINE", 0.02)
    past = (await conduct(plan_of(ask_twice, Voice(echo)))).events
    with pytest.raises(ReplayDiverged, match=r"did not ask again for .*'one', '', 0, 1, 0"):
        await conduct(plan_of(ask_twice, Voice(echo), past=past[::-1]))


async def test_a_changed_environment_cannot_swallow_that_it_diverged() -> None:
    @environment
    async def deaf(task: int, one: Seat) -> float:
        try:
            await one.ask("other")
        except Exception:  # noqa: BLE001 - what users write
            return 0.0
        return 1.0

    past = (await conduct(plan_of(ask_twice(asks=1), Voice(echo)))).events
    with pytest.raises(ReplayDiverged, match="something else"):
        await conduct(plan_of(deaf, Voice(echo), past=past))


# ----------------------------------------------------------------------------------------------- timeouts, full contexts


async def test_a_timeout_is_journaled_and_replayed() -> None:
    @environment
    async def patient(task: int, one: Seat) -> float:
        with pytest.raises(TimeoutError, match=r"'one' gave no reply within 0.01 s"):
            await one.ask("quick!", timeout=0.01)
        return float(len((await one.ask()).text))

    async def slow_once(conversation: Conversation, request: Request, seed: int) -> str:
        if request.attempt == 0:
            await anyio.sleep_forever()
        return "there"

    done = await conduct(plan_of(patient, Voice(slow_once)))
    assert [(event.attempt, event.error) for event in done.events if isinstance(event, Acted)] == [
        (0, "timeout"),
        (1, ""),
    ]
    again = await conduct(plan_of(patient, Voice(slow_once), past=done.events))
    assert again.ended == done.ended and again.value == 5.0


async def slow() -> float:
    await anyio.sleep(0.05)
    return 1.0


async def test_without_a_clock_nothing_ends_for_its_time() -> None:
    @environment
    async def hasty(task: int, one: Seat) -> float:
        await one.ask("quick!", timeout=0.001)
        return float(await effect(slow, timeout=0.001))

    async def late(conversation: Conversation, request: Request, seed: int) -> str:
        await anyio.sleep(0.05)
        return "at last"

    assert (await conduct(plan_of(hasty, Voice(late), clock=False, deadline=0.001))).value == 1.0
    assert (await conduct(plan_of(hasty, Voice(late)))).ended.fault == "TimeoutError"


async def test_a_full_context_is_journaled_and_replayed() -> None:
    @environment
    async def long(task: int, one: Seat) -> float:
        with pytest.raises(ContextFull, match="no room"):
            await one.ask("a long one")
        one.new_context()
        await one.ask("a short one")
        return 1.0

    async def forgetful(conversation: Conversation, request: Request, seed: int) -> str:
        if conversation.place.context == 0:
            raise ContextFull("no room")
        return "fine"

    done = await conduct(plan_of(long, Voice(forgetful)))
    assert [event.error for event in done.events if isinstance(event, Acted)] == ["context_full", ""]
    assert (await conduct(plan_of(long, Voice(forgetful), past=done.events))).ended == done.ended
    (only,) = (await conduct(plan_of(ask_twice(asks=1), Voice(forgetful)))).events
    assert isinstance(only, Acted) and only.error == "context_full"


async def test_an_uncaught_full_context_is_a_fault() -> None:
    async def full(conversation: Conversation, request: Request, seed: int) -> str:
        raise ContextFull("no room")

    done = await conduct(plan_of(ask_twice, Voice(full)))
    assert (done.ended.fault, done.ended.detail, done.ended.results) == ("ContextFull", "no room", [])


async def test_an_ask_that_was_cancelled_is_asked_again_as_another() -> None:
    @environment
    async def impatient(task: int, one: Seat) -> float:
        with anyio.move_on_after(0.01):
            await one.ask("quick!")
        return float(len((await one.ask()).text))

    async def slow_once(conversation: Conversation, request: Request, seed: int) -> str:
        if request.attempt == 0:
            await anyio.sleep_forever()
        return "there"

    done = await conduct(plan_of(impatient, Voice(slow_once)))
    assert [event.attempt for event in done.events if isinstance(event, Acted)] == [1]
    assert (await conduct(plan_of(impatient, Voice(slow_once), past=done.events))).ended == done.ended


async def test_a_branch_that_fails_cancels_the_others_in_the_replay_too() -> None:
    @environment
    async def race(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
        with pytest.raises(TimeoutError):
            await gather(one.ask("?", timeout=0.02), two.ask("slow?"))
        return {one: 0.0, two: float(len((await two.ask()).text))}

    async def stuck(conversation: Conversation, request: Request, seed: int) -> str:
        if conversation.place.seat == "one" or request.attempt == 0:
            await anyio.sleep_forever()
        return "now"

    done = await conduct(plan_of(race, Voice(stuck)))
    assert [(e.seat, e.attempt, e.error) for e in done.events if isinstance(e, Acted)] == [
        ("one", 0, "timeout"),
        ("two", 1, ""),
    ]
    for cut in range(3):
        assert (await conduct(plan_of(race, Voice(stuck), past=done.events[:cut]))).ended == done.ended


# -------------------------------------------------------------------------------------------------------------- effects


async def test_equal_effects_are_told_apart() -> None:
    @environment
    async def twice(task: int, one: Seat) -> Outcome:
        here = [await effect(weather, "here"), await effect(weather, "here"), await effect(weather, "there")]
        both = await gather(effect(weather, "here"), effect(weather, "here"))
        await one.ask("well?")
        assert len({str(one) for one in (*here, *both)}) == 5
        return Outcome(1.0, notes={"seen": f"{here} {both}"})

    done = await conduct(plan_of(twice, Voice(echo)))
    for cut in range(len(done.events) + 1):
        again = await conduct(plan_of(twice, Voice(echo), past=done.events[:cut]))
        assert (again.ended == done.ended) == (cut >= 5), "each has its own result, and keeps it"


async def broken() -> None:
    raise OSError("no network \udc80")


async def unjudged() -> float:
    return float(Score(error="no verdict"))


async def hanging() -> None:
    await anyio.sleep_forever()


async def own_timeout() -> None:
    raise TimeoutError("the server was too slow")


async def no_data() -> object:
    return object()


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (broken, "broken raised OSError: no network"),
        (unjudged, "no verdict"),
        (hanging, "did not answer within 0.01 s"),
        (own_timeout, "the server was too slow"),
        (no_data, "must be JSON data"),
    ],
)
async def test_an_effect_that_fails_is_the_same_failure_in_a_replay(fn: Any, said: str) -> None:
    @environment
    async def risky(task: int, one: Seat) -> Outcome:
        try:
            await effect(fn, timeout=0.01)
        except EffectError as error:
            return Outcome({one: 0.0}, notes={"said": str(error)})
        return Outcome({one: 1.0})

    done = await conduct(plan_of(risky, Voice(echo)))
    assert said in done.ended.notes["said"]
    assert (await conduct(plan_of(risky, Voice(echo), past=done.events))).ended == done.ended


async def test_an_effect_that_is_used_wrongly_ends_the_run() -> None:
    async def misused() -> None:
        raise SettingError("gold answer 'x' is not a number")

    @environment
    async def wrong(task: int, one: Seat) -> float:
        try:
            await effect(misused)
        except SparringError:
            return 0.0
        return 1.0

    with pytest.raises(SettingError, match="gold answer"):
        await conduct(plan_of(wrong, Voice(echo)))
