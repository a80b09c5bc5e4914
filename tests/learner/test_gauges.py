"""Gauges: each figure that tells of a collapse stops a planted one, and leaves a run alone that is well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sparring import Episodes, Frozen, Gauge, League, Lineup, Run, Scripted, ScriptedModels, Seat, environment
from sparring.backend.scripted import ScriptedReply, babble
from sparring.errors import Collapsed, SettingError
from sparring.learner import train_async
from sparring.learner.gauges import Tripped, counted
from sparring.rollout import MemorySegments
from sparring.rollout.events import Stepped
from sparring.rollout.fell_back import Broken
from tests.learner.test_league import league_run
from tests.learner.worlds import events_of


@environment
async def choice(task: int, one: Seat, two: Seat) -> dict[Seat, float]:
    """The second says "b"; whoever comes later in the alphabet wins."""
    picked = await one.pick(f"{task}", ("a", "c"))
    said = (await two.ask(f"{task}")).text
    return {one: float((picked or "") > said), two: float((picked or "") < said)}


def choice_run(folder: Path, reply: ScriptedReply, *gauges: Gauge) -> Run:
    lineup = Lineup({"one": "alice", "two": Scripted(lambda conversation: "b")})
    run = league_run(folder, steps=4)
    return replace(
        run,
        train=Episodes(choice, range(20), lineup),
        held_out=None,
        backend=ScriptedModels(reply=reply),
        gauges=gauges,
    )


def either(prompt: str, rng: Random) -> str:
    return rng.choice("ac")


def always(text: str) -> ScriptedReply:
    return lambda prompt, rng: text


async def test_each_fixed_opponent_has_a_figure_of_its_own(tmp_path: Path) -> None:
    """A script and a past version do; members of a league are no fixed opponents."""
    opponents = (Scripted(lambda conversation: "b"), Frozen("alice@0"), League("alice"))
    lineups = [Lineup({"one": "alice", "two": opponent}) for opponent in opponents]
    store, run = MemorySegments(), choice_run(tmp_path, either)
    assert await train_async(replace(run, train=Episodes(choice, range(20), lineups), steps=9), store=store)
    won = [
        {name for name in one.metrics if name.startswith("won")} for one in events_of(store) if isinstance(one, Stepped)
    ]
    assert set.union(*won) == {"won", "won/<lambda>", "won/alice@0"}, "a league's members are no fixed opponents"
    assert any("won" in names and len(names) < 3 for names in won)


@pytest.mark.parametrize(
    ("gauge", "collapsed", "said"),
    [
        (
            Gauge(figure="won", below=0.01, steps=2),
            always("a"),
            r"step 1 of 'alice': won was 0, 0, below 0.01, in 2 steps",
        ),
        (Gauge(figure="won/<lambda>", below=0.01, steps=2), always("a"), "won/<lambda> was 0, 0, below 0.01"),
        (Gauge(figure="environment/illegal", above=1.5), always("x"), "environment/illegal was 2, 2, 2, above 1.5"),
        (Gauge(figure="distinct", below=0.3, policy="alice"), always("a"), "distinct was 0.25, 0.25, 0.25, below 0.3"),
        (Gauge(figure="length", above=40, steps=1), always("x" * 60), "length was 122, above 40"),
    ],
    ids=lambda value: value.figure if isinstance(value, Gauge) else "",
)
async def test_a_planted_collapse_stops_the_run(
    tmp_path: Path, gauge: Gauge, collapsed: ScriptedReply, said: str
) -> None:
    store = MemorySegments()
    run = choice_run(tmp_path, collapsed, gauge)
    with pytest.raises(Collapsed, match=said):
        await train_async(run, store=store)
    assert sum(isinstance(one, Stepped) for one in events_of(store)) == gauge.steps, "the step itself is kept"
    assert await train_async(replace(run, gauges=()), store=store), "and goes on without"
    assert await train_async(choice_run(tmp_path / "well", either, gauge), store=MemorySegments())


LOW = Gauge(figure="entropy", below=0.1, steps=2)


def told(*values: float | None, gauges: Sequence[Gauge] = (LOW,)) -> tuple[dict[str, Broken], Tripped | None]:
    """What comes of steps with these entropies, one after the other; None: a step without."""
    broken: dict[str, Broken] = {}
    tripped: Tripped | None = None
    for step, value in enumerate(values):
        assert tripped is None, f"before step {step}"
        engine = {} if value is None else {"entropy": value}
        stepped = Stepped(
            policy="alice", step=step, digest="", advantages="", metrics={}, engine=engine, durable={}, broken=broken
        )
        broken, tripped = counted(gauges, stepped, stepped.broken)
    return broken, tripped


def test_only_steps_in_a_row_count() -> None:
    assert told(0.0, 0.2, 0.0, None, 0.3) == ({}, None)
    broken, tripped = told(0.0, 0.3, 0.0)
    assert broken == {LOW.bounds: Broken(since=2, values=[0.0])} and tripped is None
    assert told(0.0, 0.3, 0.0, None) == (broken, None), "a step that does not have the figure does not count"
    _, tripped = told(0.0, 0.3, 0.0, None, 0.05)
    assert tripped == Tripped(gauge=LOW, since=2, why="entropy was 0, 0.05, below 0.1, in 2 steps in a row")


def test_each_gauge_counts_its_own_bounds() -> None:
    """Planted: counts that are kept by the figure's name; a gauge that is there twice counts twice."""
    high = Gauge(figure="entropy", above=0.5, steps=2)
    assert told(0.0, 0.9, 0.0, 0.9, gauges=(LOW, high))[1] is None
    assert told(0.0, gauges=(LOW, LOW, replace(LOW, fall_back=1)))[0] == {LOW.bounds: Broken(since=0, values=[0.0])}
    assert told(0.0, 0.0, gauges=(replace(LOW, policy="bob"),)) == ({}, None)


def test_a_gauge_that_is_another_counts_anew() -> None:
    """Gauges may change where a run goes on; how often one lets a policy fall back is no part of what it counts."""
    others = [replace(LOW, below=0.2), replace(LOW, above=1.0), replace(LOW, steps=3), replace(LOW, figure="won")]
    assert len({LOW.bounds, *(one.bounds for one in others)}) == 5
    assert replace(LOW, fall_back=4).bounds == LOW.bounds


def test_of_two_that_trip_the_one_that_falls_back_least_often_does() -> None:
    often, seldom = replace(LOW, fall_back=3), Gauge(figure="entropy", below=0.05, steps=2, fall_back=1)
    for gauges in ((often, seldom), (seldom, often)):
        _, tripped = told(0.0, 0.0, gauges=gauges)
        assert tripped is not None and tripped.gauge == seldom


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"figure": ""}, "must be the name of a step's figure"),
        ({"figure": "won"}, "has no bound"),
        ({"figure": "won", "below": float("nan")}, "must be None or a finite number"),
        ({"figure": "won", "below": 0.5, "steps": 0}, "a whole number, at least 1"),
        ({"figure": "won", "below": 0.5, "fall_back": -1}, r"fall_back=-1\) of 'won': must be a whole number of times"),
        ({"figure": "won", "below": 0.5, "fall_back": True}, r"fall_back=True\) of 'won'"),
    ],
)
def test_gauges_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Gauge(**settings)


def test_gauges_that_a_run_refuses(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="names no policy; there are alice"):
        choice_run(tmp_path, babble, Gauge(figure="won", below=0.5, policy="bob"))
    with pytest.raises(SettingError, match="must be a sequence of Gauge"):
        replace(choice_run(tmp_path, babble), gauges=("won",))  # type: ignore[arg-type]
