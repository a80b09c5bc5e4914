"""Algorithms as settings: what the presets are, and what is refused when one is made."""

from typing import Any

import pytest

from sparring import (
    CISPO,
    DPPO,
    DRO,
    GSPO,
    PPO,
    Algorithm,
    Comparable,
    CrossEntropy,
    DecoupledPPO,
    F,
    ImportanceSampling,
    Truncated,
    TruncatedImportanceSampling,
    advantages,
    grpo,
    rae,
)
from sparring.errors import SettingError
from sparring.learner import GroupMean, RoleBaseline


@advantages
def mine(group: Comparable) -> F:
    return group.rewards


def test_the_presets() -> None:
    assert grpo() == Algorithm(name="grpo", advantages=GroupMean(), loss=PPO(), compare={})
    assert grpo(deviation=True).advantages == GroupMean(deviation=True)
    assert grpo(advantages=mine).advantages is mine
    assert grpo(loss=ImportanceSampling(), compare={"solver": "episode"}) == Algorithm(
        name="grpo", advantages=GroupMean(), loss=ImportanceSampling(), compare={"solver": "episode"}
    )
    assert rae() == Algorithm(name="rae", advantages=RoleBaseline(decay=0.95), loss=PPO())
    assert rae(decay=0.5, loss=ImportanceSampling()).advantages == RoleBaseline(decay=0.5)
    assert (grpo().advantages.minimum, rae().advantages.minimum) == (2, 1)


def plain(group: Comparable) -> F:
    return group.rewards


@pytest.mark.parametrize("estimator", [plain, GroupMean, lambda group: group.rewards, "group mean", 3])
def test_what_is_no_estimator_is_refused(estimator: Any) -> None:
    """A plain function is the likely mistake: it would fail only when the first batch is there."""
    with pytest.raises(SettingError, match=r"grpo\(advantages=.*decorate the function with @advantages"):
        grpo(advantages=estimator)


def test_an_estimator_of_ones_own_needs_no_base_class() -> None:
    class Own:
        name = "own"
        minimum = 1

        def __call__(self, group: Comparable, state: Any) -> tuple[F, Any]:
            return group.rewards, state

    own = Own()
    assert grpo(advantages=own).advantages is own


@pytest.mark.parametrize("loss", ["ppo", PPO, CrossEntropy()])
def test_a_loss_without_advantages_is_refused(loss: Any) -> None:
    """Cross-entropy would imitate every reply, good or bad."""
    for preset in (grpo, rae):
        with pytest.raises(SettingError, match=r"loss=.*must be a loss that uses advantages"):
            preset(loss=loss)


@pytest.mark.parametrize("loss", [DecoupledPPO(), Truncated(loss=PPO())])
def test_a_loss_that_reads_what_a_run_does_not_compute_is_refused(loss: Any) -> None:
    with pytest.raises(SettingError, match=r"reads proximal_logprobs, which a run does not compute; Truncated"):
        grpo(loss=loss)


@pytest.mark.parametrize("loss", [GSPO(), CISPO(), TruncatedImportanceSampling(level="sequence"), DPPO(), DRO()])
def test_losses_that_need_no_more_than_the_sampler_are_taken(loss: Any) -> None:
    assert grpo(loss=loss).loss is rae(loss=loss).loss is loss


def test_two_ways_to_say_the_advantages_are_one_too_many() -> None:
    with pytest.raises(SettingError, match=r"deviation=True.*give one of both"):
        grpo(advantages=mine, deviation=True)


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"solver": "groups"}, r"compare=\{'solver': 'groups'\}\): must be 'group' or 'episode'"),
        ({"solver": None}, "must be 'group' or 'episode'"),
        ("episode", r"compare='episode'\): must be a mapping"),
    ],
)
def test_a_scope_that_there_is_not(compare: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        grpo(compare=compare)
