"""Algorithms as settings: what the presets are, and what is refused when one is made."""

from dataclasses import replace
from typing import Any

import pytest

from sparring import (
    CISPO,
    DPPO,
    DRO,
    GAE,
    GSPO,
    KL,
    PPO,
    Adam,
    Algorithm,
    Comparable,
    Critic,
    CrossEntropy,
    Custom,
    DecoupledPPO,
    F,
    ImportanceSampling,
    Regularized,
    Truncated,
    TruncatedImportanceSampling,
    advantages,
    grpo,
    ppo,
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


@pytest.mark.parametrize("loss", ["ppo", PPO, CrossEntropy(), Regularized(loss=PPO(), kl=1)])
def test_a_loss_without_advantages_is_refused(loss: Any) -> None:
    """Cross-entropy would imitate every reply, good or bad."""
    for preset in (grpo, rae):
        with pytest.raises(SettingError, match=r"loss=.*must be a loss that uses advantages"):
            preset(loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        GSPO(),
        CISPO(),
        TruncatedImportanceSampling(level="sequence"),
        DPPO(),
        DRO(),
        DecoupledPPO(),
        Truncated(loss=PPO()),
    ],
)
def test_every_loss_of_advantages_is_taken(loss: Any) -> None:
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


# ------------------------------------------------------------------------------------------------ reference, entropy, critic


def test_what_is_added_to_the_loss() -> None:
    assert grpo().objective(0.5) == PPO()
    pulled = replace(grpo(), kl=KL(coefficient=0.1))
    assert pulled.objective(0.5) == Regularized(loss=PPO(), kl=0.5), (
        "by the coefficient of the step, which may be adapted"
    )
    assert replace(pulled, kl=KL(coefficient=0.1, estimator="k2")).objective(0.1) == Regularized(
        loss=PPO(), kl=0.1, estimator="k2"
    )
    assert replace(grpo(), kl=KL(coefficient=0.1, into="reward")).objective(0.1) == PPO()
    both = replace(pulled, entropy=0.01).objective(0.1)
    assert both == Regularized(loss=PPO(), kl=0.1, entropy=0.01)


def own(data: Any, logprobs: Any) -> Any:
    return sum(lp.sum() for lp in logprobs), {}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"kl": 0.1}, r"kl=0.1\): must be None or KL\(coefficient=...\)"),
        ({"entropy": -0.1}, r"entropy=-0.1\): must be a finite number, at least 0"),
        ({"entropy": float("nan")}, "entropy=nan"),
        ({"entropy": True}, "entropy=True"),
        (
            {"loss": Custom(function=own), "entropy": 0.1},
            r"added to a loss of sparring's own.*or use KL\(into='reward'\)",
        ),
        ({"loss": Custom(function=own), "kl": KL(coefficient=0.1)}, "added to a loss of sparring's own"),
        ({"critic": True}, r"critic=True\): must be None or Critic\(\)"),
        ({"critic": Critic()}, r"group mean does not read its values; use GAE\(\) for the advantages, or leave out"),
        ({"advantages": GAE()}, r"reads a critic's values, and there is none; use ppo\(\), or critic=Critic\(\)"),
    ],
)
def test_parts_that_do_not_fit_together(parts: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        replace(grpo(), **parts)


def test_parts_that_do() -> None:
    assert replace(grpo(), loss=Custom(function=own), kl=KL(coefficient=0.1, into="reward"))
    assert replace(grpo(), critic=Critic(), advantages=mine), "who writes an estimator may read values"
    assert replace(ppo(), whiten=False, kl=KL(coefficient=0.1, into="reward"), entropy=0.01)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"coefficient": 0}, r"KL\(coefficient=0\): must be a finite number above 0"),
        ({"coefficient": True}, "coefficient=True"),
        ({"coefficient": 1, "into": "both"}, r"into='both'\): must be 'loss' or 'reward'"),
        ({"coefficient": 1, "estimator": "k4"}, "must be 'k1', 'k2', 'k3' or None"),
        ({"coefficient": 1, "estimator": "k1"}, r"its expected gradient is 0.*use 'k2' or 'k3', or into='reward'"),
        ({"coefficient": 1, "reference": ""}, "must be a folder or hub name, or None"),
        ({"coefficient": 1, "target": -1.0}, r"KL\(target=-1.0\): must be a finite number above 0"),
        ({"coefficient": 1, "rate": float("inf")}, r"KL\(rate=inf\)"),
    ],
)
def test_a_kl_that_cannot_be(settings: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        KL(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": ""}, r"Critic\(model=''\): must be a folder or hub name, or None"),
        ({"learning_rate": 0}, r"learning_rate=0\): must be a finite number above 0"),
        ({"pretraining": -1}, "must be a whole number of steps, at least 0"),
        ({"pretraining": 1.0}, "pretraining=1.0"),
        ({"returns": 0.9}, r"returns=0.9\): must be a GAE, as in GAE\(\)"),
        ({"loss": PPO()}, "must be a ClippedValue"),
        ({"lora": 8}, "must be a Lora"),
        ({"adam": Adam(learning_rate=1.0)}, "is not used; set the critic's learning_rate instead"),
    ],
)
def test_a_critic_that_cannot_be(settings: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Critic(**settings)


@pytest.mark.parametrize("settings", [{"decay": -0.1}, {"decay": 1.1}, {"discount": float("nan")}, {"discount": True}])
def test_a_gae_that_cannot_be(settings: Any) -> None:
    with pytest.raises(SettingError, match=r"GAE\((decay|discount)=.*must be between 0 and 1"):
        GAE(**settings)
