"""The benchmark of the role baseline: its closed form where the answer is exact, and the players that it has."""

from __future__ import annotations

import pytest

from benchmarks.nim import advantages, both, nim_rewards, shared_variance


async def test_the_variances_of_nim_are_what_is_said() -> None:
    """In short: the benchmark has the bounds. The shared baseline's closed form is exact where all rewards are alike."""
    rewards = await nim_rewards(60, seed=1)
    assert set(rewards) <= {1.0, -1.0} and sum(rewards) > 40
    certain = both([1.0] * 2000)[2000:]
    mean = sum(certain) / len(certain)
    assert sum((one - mean) ** 2 for one in certain) / len(certain) == pytest.approx(shared_variance(1.0), rel=1e-3)
    assert abs(advantages([1.0] * 2000, -1.0, "second")[-1]) < 1e-6
