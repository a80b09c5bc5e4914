"""The study of matching pennies: what a policy is asked, what is made of where it was, and that runs do what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.pennies import WAYS, Orbit, heads, mean_place, orbit, pennies_run, picture, told
from sparring import Lineup, Scripted, play
from sparring.environments import Conversation, Message
from sparring.environments.games import matching_pennies
from sparring.learner import train
from sparring.learner.history import read_events
from sparring.rollout.events import Admitted, Stepped


async def test_a_policy_is_asked_in_the_words_of_the_game() -> None:
    heard: dict[str, list[str]] = {"asked": [], "played": []}

    def player(into: str, says: str) -> Scripted:
        def script(conversation: Conversation) -> str:
            entry = conversation.entries[-1]
            assert isinstance(entry, Message)
            heard[into].append(entry.text)
            return says

        return Scripted(script)

    both = Lineup({"even": player("asked", "heads"), "odd": player("asked", "tails")})
    assert [(await play(heads, task, both)).metrics["heads"] for task in (0, 1)] == [1.0, 0.0]
    await play(matching_pennies, 0, Lineup({"even": player("played", "heads"), "odd": player("played", "tails")}))
    assert sorted(set(heard["asked"])) == sorted(heard["played"]) and len(heard["played"]) == 2


def square(size: float, at: float = 0.5) -> Orbit:
    """Round (at, 0.5), by corners; the first half is far away."""
    corners = [(at + x * size, 0.5 + y * size) for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return Orbit(steps=list(range(9)), places=[(0.0, 0.0)] * 4 + [*corners, corners[0]], seconds=1.0)


def test_amplitude_and_average() -> None:
    one = Orbit(steps=square(0.2).steps[:-1], places=square(0.2).places[:-1], seconds=1.0)
    assert one.steps[-1] == 7 and len(one.second_half) == 4
    assert one.amplitude == pytest.approx(0.2) and one.off == pytest.approx(0)
    assert mean_place([(0.0, 1.0), (1.0, 1.0)]) == (0.5, 1.0)
    shifted = Orbit(steps=[0, 1, 2], places=[(0.5, 0.5), (0.9, 0.5), (0.9, 0.5)], seconds=1.0)
    assert shifted.amplitude == pytest.approx(0.4) == shifted.off


def test_corners_and_turns() -> None:
    assert square(0.2).cornered == 0 and square(0.45).cornered == 0, "one seat alone is beyond 0.9"
    away = Orbit(steps=[0, 1, 2, 3], places=[(0.4, 0.4), (0.6, 0.4), (0.95, 0.05), (0.92, 0.6)], seconds=1.0)
    assert away.cornered == 0.5 and away.turns == 2


def test_what_is_told() -> None:
    """Measurements, none of them a target."""
    small, large = square(0.1), square(0.4)
    rows = told("table", [0, 1], {"self-play": [small, large], "league": [large, large]})
    assert [row.met for row in rows] == [None] * 6
    assert rows[2].figure == "0.250, 0.050, 0.20" and rows[0].figure.startswith("0.100, 0.020, 0.00, ")
    drawing = picture({"table": {"self-play": [large], "league": [small]}})
    assert drawing.count("<svg") == drawing.count("</svg>") == 3 and "table, league" in drawing


@pytest.mark.parametrize("how", WAYS)
def test_a_short_run(how: str, tmp_path: Path) -> None:
    """It begins in the middle and moves; in a league it meets its past, in a small one the newest alone."""
    run = replace(pennies_run("table", how, 0, tmp_path, 12), groups_per_step=32)
    assert train(run)
    assert (run.named_policies["alice"].algorithm.kl is not None) == ("magnet" in how)
    made, met = 0, list[tuple[int, int]]()
    for event in read_events(run.path, 0):
        made += isinstance(event, Stepped)
        if isinstance(event, Admitted):
            met += [(made, version) for version in event.opponents.values()]
    versions = {version for _, version in met}
    assert versions <= {0, 2, 4, 6, 8, 10} and (len(versions) > 1) == ("self-play" not in how)
    assert (0 in {version for step, version in met if step >= 10}) == ("league" in how)


def test_an_orbit() -> None:
    found = orbit("table", "self-play", 0, steps=6)
    assert list(found.steps) == [0, 2, 4, 6] and found.places[0] == pytest.approx((0.5, 0.5))
    assert found.places[-1] != pytest.approx((0.5, 0.5), abs=1e-3) and found.seconds > 0
