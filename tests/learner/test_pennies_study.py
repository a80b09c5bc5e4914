"""The study of matching pennies: what a policy is asked, what is made of where it was, and that runs do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pennies import LINEUPS, Orbit, heads, mean_place, orbit, pennies_run, picture, told
from sparring import Lineup, Scripted, play
from sparring.environments import Conversation, Message
from sparring.environments.games import matching_pennies
from sparring.learner import train
from sparring.learner.history import read_events
from sparring.rollout.events import Admitted


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


def test_what_is_told() -> None:
    """A league that swings more, and an average that is as far as the policy, are short."""
    small, large, away = square(0.1), square(0.4), square(0.01, at=0.9)
    met = [row.met for row in told("table", [0], {"self-play": [large], "league": [small]}) if row.met is not None]
    assert met == [True, True, True]
    met = [row.met for row in told("table", [0], {"self-play": [small], "league": [away]}) if row.met is not None]
    assert met == [True, False, False]
    drawing = picture({"table": {"self-play": [large], "league": [small]}})
    assert drawing.count("<svg") == drawing.count("</svg>") == 3 and "table, league" in drawing


@pytest.mark.parametrize("how", LINEUPS)
def test_a_short_run(how: str, tmp_path: Path) -> None:
    """It begins in the middle and moves; in a league it meets its past."""
    run = pennies_run("table", how, 0, tmp_path, 8)
    assert train(run)
    members = [
        version
        for event in read_events(run.path, 0)
        if isinstance(event, Admitted)
        for version in event.opponents.values()
    ]
    assert (set(members) <= {0, 2, 4, 6} and len(set(members)) > 1) if how == "league" else members == []


def test_an_orbit() -> None:
    found = orbit("table", "self-play", 0, steps=6)
    assert list(found.steps) == [0, 2, 4, 6] and found.places[0] == pytest.approx((0.5, 0.5))
    assert found.places[-1] != pytest.approx((0.5, 0.5), abs=1e-3) and found.seconds > 0
