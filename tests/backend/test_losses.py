"""What losses and data refuse: every bound and every field, by name, with the value and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch

import sparring
from sparring.backend import ScriptedBackend
from sparring.backend.datum import Datum, SoftTargets, token_mean
from sparring.backend.local.model import TorchModel
from sparring.backend.losses import (
    CISPO,
    DPPO,
    DRO,
    GSPO,
    LOSSES,
    PPO,
    ClippedValue,
    CrossEntropy,
    Custom,
    DecoupledPPO,
    ImportanceSampling,
    Loss,
    Regularized,
    Truncated,
    TruncatedImportanceSampling,
    clip_thresholds,
    read_fields,
    required_fields,
)
from sparring.backend.training import Adam
from sparring.errors import SettingError, UnsupportedError
from tests.backend.batches import groups, trainer

WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: PPO(clip_low_threshold=1.1), r"PPO bounds \(1.1, 1.2\): they bound the ratio itself, so 0 <= low <= 1"),
    (lambda: PPO(clip_high_threshold=0.2), r"PPO bounds \(0.8, 0.2\)"),
    (lambda: PPO(clip_low_threshold=nan), r"PPO bounds \(nan, 1.2\)"),
    (lambda: CISPO(clip_low_threshold=-1.0), r"CISPO bounds \(-1.0, 4.0\)"),
    (lambda: GSPO(clip_high_threshold=3e-4), "GSPO bounds .*0.0003"),
    (lambda: DecoupledPPO(clip_high_threshold=0.5), "DecoupledPPO bounds"),
    (lambda: DecoupledPPO(cap=0.5), "DecoupledPPO cap=0.5: at least 1"),
    (lambda: DRO(beta=0.0), "DRO beta=0.0: a finite number above 0"),
    (lambda: DRO(beta=inf), "DRO beta=inf"),
    (lambda: DPPO(divergence="js"), "DPPO divergence='js': must be 'tv' or 'kl'"),  # type: ignore[arg-type]
    (lambda: DPPO(threshold=0.0), "DPPO threshold=0.0: above 0 and below 1"),
    (lambda: DPPO(threshold=1.0), "DPPO threshold=1.0: .* total variation"),
    (lambda: DPPO(divergence="kl", threshold=nan), "DPPO threshold=nan: above 0 and finite"),
    (lambda: TruncatedImportanceSampling(cap=0.9), "TruncatedImportanceSampling cap=0.9: at least 1"),
    (lambda: TruncatedImportanceSampling(cap=nan), "cap=nan"),
    (lambda: TruncatedImportanceSampling(level="turn"), "level='turn': must be 'token' or 'sequence'"),  # type: ignore[arg-type]
    (lambda: Truncated(loss=PPO(), level="all"), "Truncated level='all'"),  # type: ignore[arg-type]
    (lambda: Truncated(loss=DRO()), r"Truncated\(loss=DRO\(.*takes ImportanceSampling, PPO"),  # type: ignore[arg-type]
    (lambda: Truncated(loss=PPO), r"Truncated\(loss=<class"),  # type: ignore[arg-type]
    (lambda: Custom(function="mean"), r"Custom\(function='mean'\): must be a function"),  # type: ignore[arg-type]
    (lambda: ClippedValue(clip=0.0), "ClippedValue clip=0.0: above 0"),
    (lambda: ClippedValue(clip=nan), "ClippedValue clip=nan"),
]


@pytest.mark.parametrize(("make", "said"), WRONG)
def test_a_setting_that_a_loss_cannot_have(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make()


def test_the_edges_of_what_a_loss_can_have() -> None:
    PPO(clip_low_threshold=0.0, clip_high_threshold=inf)
    GSPO(clip_low_threshold=1.0, clip_high_threshold=1.0)
    DPPO(divergence="kl", threshold=2.0)
    DecoupledPPO(cap=1.0)
    assert ClippedValue(clip=inf).clip == inf


def test_losses_are_public_and_equal_by_value() -> None:
    assert {kind.__name__ for kind in LOSSES} <= set(sparring.__all__)
    assert Truncated(loss=PPO()) == Truncated(loss=PPO(), cap=2.0)


def test_which_loss_reads_what() -> None:
    bounds, proximal = {"clip_low", "clip_high"}, {"proximal_logprobs"}
    assert read_fields(CrossEntropy()) == {"soft_targets"}
    assert read_fields(PPO()) == read_fields(CISPO()) == bounds
    assert read_fields(GSPO()) == read_fields(DRO()) == read_fields(DPPO()) == set()
    assert read_fields(DecoupledPPO()) == read_fields(Truncated(loss=PPO())) == bounds | proximal
    assert read_fields(Truncated(loss=GSPO())) == proximal
    assert required_fields(DecoupledPPO()) == required_fields(Truncated(loss=ImportanceSampling())) == proximal
    assert required_fields(PPO()) == required_fields(TruncatedImportanceSampling()) == set()
    assert clip_thresholds(Truncated(loss=PPO(clip_low_threshold=0.1))) == (0.1, 1.2)
    assert clip_thresholds(DRO()) == (0.0, inf)
    pulled, rewarded = Regularized(loss=DecoupledPPO(), kl=0.1), Regularized(loss=PPO(), entropy=0.1)
    assert read_fields(pulled) == bounds | proximal | {"reference_logprobs"} and read_fields(rewarded) == bounds
    assert required_fields(pulled) == proximal | {"reference_logprobs"} and required_fields(rewarded) == set()
    assert clip_thresholds(Regularized(loss=CISPO(), kl=1)) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": CrossEntropy(), "kl": 0.1}, "takes a loss that uses advantages"),
        ({"loss": Regularized(loss=PPO(), kl=1), "kl": 0.1}, "takes a loss that uses advantages"),
        ({"loss": PPO()}, "kl and entropy are 0; take the loss itself"),
        ({"loss": PPO(), "kl": -0.1}, r"Regularized\(kl=-0.1\): a finite number, at least 0"),
        ({"loss": PPO(), "entropy": inf}, r"Regularized\(entropy=inf\)"),
        ({"loss": PPO(), "kl": 0.1, "estimator": "k1"}, "must be 'k2' or 'k3'; the expected gradient of 'k1' is 0"),
    ],
)
def test_regularizers_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Regularized(**settings)


def _one() -> Datum:
    return groups(1, 1)[0]


def _full(value: float) -> np.ndarray:
    return np.full(len(_one().tokens), value, np.float32)


def _soft(weight: float = 0.5, token: int = 5, *, length: int | None = None) -> SoftTargets:
    shape = (len(_one().tokens) if length is None else length, 2)
    return SoftTargets(tokens=np.full(shape, token, np.int32), weights=np.full(shape, weight, np.float32))


WRONG_DATA: list[tuple[Callable[[], object], str]] = [
    (lambda: replace(_one(), advantages=_full(nan)), "advantages holds .*nan.* at a scored token: must be finite"),
    (lambda: replace(_one(), advantages=_full(inf)), "advantages holds .*inf"),
    (lambda: replace(_one(), proximal_logprobs=_full(nan)), "proximal_logprobs holds .*nan"),
    (lambda: replace(_one(), proximal_logprobs=np.zeros(1, np.float32)), r"proximal_logprobs has shape \(1,\)"),
    (lambda: replace(_one(), clip_low=_full(1.5)), r"clip_low holds .*1.5.* at a scored token: 0 <= clip_low <= 1"),
    (lambda: replace(_one(), clip_low=_full(-0.1)), "clip_low holds .*-0.1"),
    (lambda: replace(_one(), clip_high=_full(0.9)), "clip_high holds .*0.9"),
    (lambda: replace(_one(), clip_high=_full(nan)), "clip_high holds .*nan.*: 0 <= clip_low <= 1 <= clip_high"),
    (lambda: replace(_one(), clip_high=np.ones((2, 2), np.float32)), r"clip_high has shape \(2, 2\)"),
    (lambda: replace(_one(), soft_targets=_soft(nan)), "soft_targets holds .*nan"),
    (lambda: replace(_one(), soft_targets=_soft(length=1)), "soft_targets for 1 tokens, there are"),
    (lambda: SoftTargets(tokens=np.zeros(3, np.int32), weights=np.zeros(3, np.float32)), r"must be \[T, K\]"),
    (lambda: SoftTargets(tokens=np.zeros((3, 2), np.int32), weights=np.zeros((3, 1), np.float32)), r"shapes \(3, 2\)"),
    (lambda: SoftTargets(tokens=np.zeros((3, 0), np.int32), weights=np.zeros((3, 0), np.float32)), "K at least 1"),
]


@pytest.mark.parametrize(("make", "said"), WRONG_DATA)
def test_a_datum_that_cannot_be(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make()


def test_a_token_may_have_no_upper_bound() -> None:
    replace(_one(), clip_low=_full(0), clip_high=_full(inf))


def test_only_scored_tokens_are_checked() -> None:
    datum = _one()
    values = np.where(datum.mask, 1, nan).astype(np.float32)
    replace(datum, advantages=values, clip_low=values, clip_high=values, proximal_logprobs=values)


def test_dividing_a_batch_divides_soft_weights() -> None:
    datum = replace(_one(), soft_targets=_soft(0.5))
    (divided,) = token_mean([datum])
    assert divided.soft_targets is not None
    np.testing.assert_allclose(divided.soft_targets.weights, 0.5 / datum.mask.sum())


MISFITS: list[tuple[Callable[[], Datum], Loss, str]] = [
    (_one, DecoupledPPO(), r"datum 1 has proximal_logprobs=None, which DecoupledPPO reads: .*dataclasses.replace"),
    (_one, Truncated(loss=GSPO()), "datum 1 has proximal_logprobs=None, which Truncated reads"),
    (
        _one,
        Regularized(loss=GSPO(), kl=1),
        "datum 1 has reference_logprobs=None, which Regularized reads: take them from a reference's `forward`, with",
    ),
    (
        lambda: replace(_one(), reference_logprobs=_full(-1)),
        Regularized(loss=GSPO(), entropy=1),
        "datum 1 has reference_logprobs, which Regularized",
    ),
    (
        lambda: replace(_one(), proximal_logprobs=_full(-1)),
        PPO(),
        r"datum 1 has proximal_logprobs, which PPO\(.*leave it",
    ),
    (lambda: replace(_one(), clip_low=_full(1)), GSPO(), "datum 1 has clip_low, which GSPO"),
    (lambda: replace(_one(), clip_high=_full(1)), CrossEntropy(), "datum 1 has clip_high, which CrossEntropy"),
    (lambda: replace(_one(), soft_targets=_soft()), PPO(), "datum 1 has soft_targets, which PPO"),
]


@pytest.mark.parametrize(("make", "loss", "said"), MISFITS)
async def test_a_field_that_is_missing_or_not_read(
    model: TorchModel, make: Callable[[], Datum], loss: Loss, said: str
) -> None:
    """On both backends; nothing was touched, and the next call goes through."""
    given: dict[str, Any] = {name: _full(-1) for name in required_fields(loss)}
    good = replace(_one(), **given)
    scripted = await ScriptedBackend().create_model("m")
    for one in (model, scripted):
        before = await one.digest()
        for call in (one.forward, one.forward_backward):
            with pytest.raises(SettingError, match=said):
                call([good, make()], loss)
        await one.forward_backward([good], loss)
        await one.discard_gradients()
        assert await one.digest() == before
    await model.optim_step(Adam())


@pytest.mark.parametrize("token", [320, -1])
async def test_a_soft_target_that_the_model_has_not(model: TorchModel, token: int) -> None:
    datum = replace(_one(), soft_targets=_soft(token=token))
    with pytest.raises(SettingError, match=f"datum 0 has soft target {token}; this model's are 0 to 319"):
        model.forward_backward([datum], CrossEntropy())
    await model.forward_backward([_one()], CrossEntropy())
    assert torch.isfinite(trainer(model).adapter.grad).all()


async def test_the_scripted_backend_refuses_and_remembers_alike() -> None:
    scripted = ScriptedBackend()
    model = await scripted.create_model("m")
    assert scripted.capabilities().losses == set(LOSSES)
    with pytest.raises(UnsupportedError, match="loss 'ppo': this backend computes CrossEntropy, ImportanceSampling"):
        model.forward([_one()], "ppo")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="entropy=True: the scripted backend has no distribution"):
        model.forward([_one()], PPO(), entropy=True)
    digests = set()
    for fields in (
        {},
        {"clip_low": _full(1)},
        {"clip_high": _full(1)},
        {"clip_low": _full(0.5)},
        {"proximal_logprobs": _full(-1)},
        {"soft_targets": _soft()},
        {"soft_targets": _soft(0.7)},
    ):
        digests.add(
            await _weights(replace(_one(), **fields), DecoupledPPO() if "proximal_logprobs" in fields else None)
        )
    assert len(digests) == 7


async def _weights(datum: Datum, loss: Any) -> str:
    model = await ScriptedBackend().create_model("m")
    await model.forward_backward([datum], loss or (PPO() if datum.soft_targets is None else CrossEntropy()))
    await model.optim_step(Adam())
    return await model.digest()
