"""The benchmark of the role baseline: its closed forms where the answer is exact, its players, and that it can be short."""

from __future__ import annotations

from random import Random
from statistics import pvariance

import pytest

from benchmarks.nim import SKIPPED, advantages, games_of, nim_rewards, picture, role_variance, shared_variance, worst


async def test_the_first_seat_wins() -> None:
    rewards = await nim_rewards(60, 1)
    assert set(rewards) <= {1.0, -1.0} and sum(rewards) > 40


def test_the_closed_forms() -> None:
    """Exact where all rewards are alike; near for coins."""
    certain = advantages([1.0] * 2000, ("either", "either"))[2000:]
    assert pvariance(certain) == pytest.approx(shared_variance(1.0), rel=1e-3)
    settled = advantages([1.0] * 2000, ("first", "second"))
    assert max(map(abs, settled[2000:])) < 1e-6 and role_variance(1.0) == 0
    assert settled[1::2] == [-value for value in settled[::2]], "the second seat mirrors the first"
    rng = Random(0)
    coins = [float(rng.choice((-1, 1, 1, 1))) for _ in range(6000)]
    assert max(games_of(coins).off) < 0.05


def test_what_is_furthest_from_a_target_is_what_is_told() -> None:
    """Seats whose baselines mix, and a value that is none, are short, whichever seed has them."""
    rng = Random(1)
    good = games_of([float(rng.random() < 0.95) * 2 - 1 for _ in range(5000)])
    assert [row.met for row in worst([good])] == [True] * 4
    even = games_of([1.0, -1.0] * 1000)
    mixed = type(good)(rewards=good.rewards, by_role=good.shared, shared=good.shared)
    assert [row.met for row in worst([good, mixed])] == [True, False, True, False]
    assert worst([even, good])[0].met is False


def test_a_picture_of_all_seeds() -> None:
    rng = Random(2)
    found = [games_of([float(rng.random() < 0.9) * 2 - 1 for _ in range(2 * SKIPPED)]) for _ in range(3)]
    drawing = picture(found)
    assert drawing.count("<svg") == drawing.count("</svg>") == 3 and drawing.count('class="band') == 5
    assert all(label in drawing for label in ("first", "second", "shared", "by role", "games"))
