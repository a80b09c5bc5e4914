"""`gather`, `effect` and chance: results in order, failures as they are, and nothing that depends on which branch ran first."""

from __future__ import annotations

import functools
import gc
from random import Random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sparring.environments import EpisodeRandom, effect, gather, reveal
from sparring.environments.running import RUNNING, branches, encoded
from sparring.errors import ContextFull, EffectError, SettingError
from tests.environments.conftest import episode, saying

# ------------------------------------------------------------------------------------------------------------- gather


async def after(event: anyio.Event, value: Any = None, then: anyio.Event | None = None) -> Any:
    """Wait for an event, announce another, return or raise."""
    await event.wait()
    if then is not None:
        then.set()
    if isinstance(value, BaseException):
        raise value
    return value


def happened() -> anyio.Event:
    event = anyio.Event()
    event.set()
    return event


async def test_results_come_in_the_order_given() -> None:
    first, second = anyio.Event(), anyio.Event()
    assert await gather(after(second, "a"), after(first, "b", second), after(happened(), "c", first)) == ("a", "b", "c")


async def test_branches_run_beside_each_other() -> None:
    """Each waits for the other: one after the other would never end."""
    one, two = anyio.Event(), anyio.Event()

    async def meet(mine: anyio.Event, other: anyio.Event) -> None:
        mine.set()
        await other.wait()

    with anyio.fail_after(5):
        await gather(meet(one, two), meet(two, one))


async def test_nothing_to_gather() -> None:
    assert await gather() == ()


async def test_the_episode_knows_how_many_parts_run_at_once() -> None:
    """The branches in place of the one that gathers, which goes on in the place of the last; however they end."""
    with episode(saying()) as running:
        first, second = anyio.Event(), anyio.Event()
        await gather(after(second), gather(after(first, "b", second), after(happened(), "c", first)), after(happened()))
        assert running.parts == [1, 3, 4, 3, 2, 1]
        assert await gather() == ()
        assert await gather(after(happened(), 1)) == (1,)
        assert len(running.parts) == 6, "one branch is no more than none"
        with pytest.raises(ZeroDivisionError):
            await gather(after(happened(), ZeroDivisionError()), gather(anyio.sleep_forever(), anyio.sleep_forever()))
        with anyio.move_on_after(0):
            await gather(checkpoint(), checkpoint(), anyio.sleep_forever())
        assert running.parts[-1] == 1


async def test_a_failure_cancels_the_others_and_is_raised_as_it_is() -> None:
    cancelled: list[str] = []

    async def patient() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("patient")

    cause = KeyError("cause")
    error = ContextFull("full")
    error.__cause__ = cause
    with anyio.fail_after(5), pytest.raises(ContextFull) as raised:
        await gather(patient(), after(happened(), error), patient())
    assert raised.value is error
    assert raised.value.__cause__ is cause
    assert cancelled == ["patient", "patient"]


async def test_of_two_failures_the_first_is_raised() -> None:
    second = anyio.Event()

    async def late() -> None:
        try:
            await second.wait()
        finally:
            raise ValueError("late")

    with pytest.raises(EffectError, match="first"):
        await gather(late(), after(happened(), EffectError("first")))


async def test_a_group_that_a_branch_raises_is_its_failure() -> None:
    error = ValueError("x")
    with pytest.raises(ExceptionGroup, match="mine") as raised:
        await gather(after(happened(), ExceptionGroup("mine", [error])))
    assert raised.value.exceptions == (error,)


async def test_nested_gathers_raise_the_failure_itself() -> None:
    with pytest.raises(ValueError, match="deep"):
        await gather(
            anyio.sleep_forever(), gather(gather(after(happened(), ValueError("deep"))), anyio.sleep_forever())
        )


async def test_a_gather_that_was_cancelled_leaves_nothing_unawaited() -> None:
    """Warnings are errors here, and an abandoned coroutine is one: see the next test."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await gather(checkpoint(), checkpoint(), anyio.sleep_forever())
    assert scope.cancelled_caught
    with pytest.raises(ZeroDivisionError):
        await gather(after(happened(), ZeroDivisionError()), *(checkpoint() for _ in range(5)))
    gc.collect()


async def test_an_abandoned_coroutine_would_be_seen() -> None:
    abandoned = [checkpoint()]
    with pytest.warns(RuntimeWarning, match="never awaited"):
        abandoned.clear()


async def test_what_is_no_awaitable_fails_and_leaves_nothing_unawaited() -> None:
    with pytest.raises(TypeError):
        await gather(checkpoint(), 3)  # type: ignore[arg-type]
    gc.collect()


async def test_the_same_coroutine_twice_fails() -> None:
    with pytest.raises(RuntimeError):
        await gather(*[checkpoint()] * 2)


async def test_being_cancelled_from_outside_is_no_failure() -> None:
    with anyio.move_on_after(0.01) as scope:
        await gather(anyio.sleep_forever(), anyio.sleep_forever())
    assert scope.cancelled_caught


async def test_branches_know_where_they_are() -> None:
    async def here() -> tuple[int, ...]:
        await checkpoint()
        return tuple(branch.index for branch in branches())

    assert branches() == ()
    assert await gather(here(), gather(here(), here()), here()) == ((0,), ((1, 0), (1, 1)), (2,))
    assert branches() == ()


# ------------------------------------------------------------------------------------------------------------- chance

DRAWS = [
    lambda rng: rng.random(),
    lambda rng: rng.gauss(),
    lambda rng: rng.normalvariate(),
    lambda rng: rng.expovariate(1.0),
    lambda rng: rng.randint(1, 6),
    lambda rng: rng.choice("JQK"),
    lambda rng: rng.choices("JQK", k=2),
    lambda rng: rng.sample("JQK", 2),
    lambda rng: rng.shuffle(list("JQK")),
    lambda rng: rng.getrandbits(4),
    lambda rng: rng.randbytes(4),
    lambda rng: rng.uniform(0, 1),
]


@pytest.mark.parametrize("draw", DRAWS)
async def test_no_draw_inside_gather(draw: Any) -> None:
    rng = EpisodeRandom("seed")
    draw(rng)
    rng.gauss()  # leaves its twin behind, which needs no further draw

    async def branch() -> None:
        await checkpoint()
        draw(rng)

    with pytest.raises(SettingError, match=r"rng was used inside gather\(\)"):
        await gather(branch())
    draw(rng)


async def test_a_draw_before_gather_may_be_used_in_it() -> None:
    rng = EpisodeRandom("seed")

    async def branch(own: Random) -> float:
        return own.random()

    drawn = [rng.getrandbits(64) for _ in range(2)]
    assert await gather(*(branch(Random(seed)) for seed in drawn)) == tuple(Random(seed).random() for seed in drawn)


async def test_an_episode_inside_an_outer_gather_has_its_own_chance() -> None:
    """`await gather(play(...), play(...))` in a notebook: each episode's rng is its own, and it is in no branch of its own."""

    async def whole_episode() -> float:
        with episode(saying()):
            drawn = EpisodeRandom("seed").random()
            with pytest.raises(SettingError, match="rng was used"):
                await gather(in_branch())
            return drawn

    async def in_branch() -> float:
        return EpisodeRandom("seed").random()

    one, other = await gather(whole_episode(), whole_episode())
    assert one == other == Random("seed").random()


def test_the_same_chance_for_the_same_seed() -> None:
    ours, theirs = EpisodeRandom("5/abc/0"), Random("5/abc/0")
    assert [ours.random() for _ in range(3)] == [theirs.random() for _ in range(3)]
    assert ours.sample(range(100), 5) == theirs.sample(range(100), 5)
    assert [ours.gauss() for _ in range(3)] == [theirs.gauss() for _ in range(3)]


# ------------------------------------------------------------------------------------------------------------- effect


async def double(number: Any) -> Any:
    return number * 2


class Tool:
    async def use(self, text: str) -> str:
        return text.upper()

    async def __call__(self) -> None: ...


async def test_an_effect_goes_through_the_episode_as_json() -> None:
    with episode(saying()) as running:
        assert await effect(double, (1, "a"), timeout=3) == [1, "a", 1, "a"]
        assert await effect(Tool().use, "x") == "X"
    assert running.effects == [
        (f"{__name__}:double", b'[[1,"a"]]', 3),
        (f"{__name__}:Tool.use", b'["x"]', 60.0),
    ]


async def test_outside_an_episode_an_effect_is_a_call() -> None:
    assert RUNNING.get() is None
    assert await effect(double, (1,)) == (1, 1)


async def test_effects_in_branches_are_named_by_their_branch() -> None:
    """Two branches that call the same with the same never swap results, whichever runs first."""

    async def nested(number: int) -> None:
        await gather(effect(double, number), checkpoint())

    for _ in range(20):
        with episode(saying()) as running:
            await gather(effect(double, 1), effect(double, 1), nested(1))
            await effect(double, 1)
        assert sorted(name.removeprefix(f"{__name__}:") for name, _, _ in running.effects) == [
            "double",
            "double (branch 0)",
            "double (branch 1)",
            "double (branch 2-0)",
        ]


@pytest.mark.parametrize("argument", [{1, "a"}, object(), float("nan"), float("inf"), "\ud800", Tool()])
async def test_arguments_must_be_json_data(argument: object) -> None:
    with episode(saying()) as running:
        with pytest.raises(EffectError, match=r"the arguments of .*double must be JSON data"):
            await effect(double, argument)
        assert running.effects == []


def not_async(number: int) -> int:
    return number


@pytest.mark.parametrize("inside", [True, False])
async def test_only_an_async_function_is_an_effect(inside: bool) -> None:
    running = saying()
    token = RUNNING.set(running if inside else None)
    try:
        with pytest.raises(SettingError, match=r"not_async.*: it returned 1 at once; make it an async function"):
            await effect(not_async, 1)  # type: ignore[arg-type]
        for wrong in (Tool(), functools.partial(double, 1), 3):
            with pytest.raises(SettingError, match="give it an async function, and its arguments after it"):
                await effect(wrong)  # type: ignore[arg-type]
    finally:
        RUNNING.reset(token)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
async def test_every_effect_has_a_deadline(timeout: float) -> None:
    with episode(saying()), pytest.raises(SettingError, match="must be a finite number of seconds above 0"):
        await effect(double, 1, timeout=timeout)


def test_json_has_sorted_keys() -> None:
    assert encoded({"b": 1, "a": {"d": [True, None], "c": 1.5}}, "x") == b'{"a":{"c":1.5,"d":[true,null]},"b":1}'


def test_a_revealed_value_is_itself() -> None:
    quote = ["a"]
    assert reveal(quote) is quote
