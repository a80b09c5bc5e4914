"""DPO against TRL's own loss on the same log-probs: values and gradients."""

from __future__ import annotations

from collections import defaultdict
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from sparring import DPO

pytestmark = pytest.mark.trl

PAIRS, LONGEST = 5, 6


def theirs(beta: float, logps: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """`DPOTrainer._compute_loss`; `logps` f64[2 N, T], those of chosen replies first, `reference` f64[2 N] their sums."""
    shape = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        log_probs=logps, entropy=shape, mean_logits=shape, is_top1=shape.bool(), log_sum_sq_probs=shape
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        beta=beta,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    whole = torch.cat([torch.zeros(len(mask), 1), mask], dim=1).long()
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    found: Tensor = import_module("trl.trainer.dpo_trainer").DPOTrainer._compute_loss(
        trainer, lambda **_: outputs, inputs, False
    )
    return found


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_loss_and_gradient_are_trl_s(beta: float, spread: float) -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, LONGEST + 1, 2 * PAIRS)
    mask = torch.tensor(np.arange(LONGEST) < lengths[:, None], dtype=torch.float64)
    logps = torch.tensor(-rng.uniform(0.1, 3, mask.shape)) * mask
    reference = logps.sum(dim=1) + torch.tensor(rng.normal(0, spread, 2 * PAIRS))
    logps.requires_grad_(True)
    other = theirs(beta, logps, mask, reference)
    (slope,) = torch.autograd.grad(other, logps)
    objective = DPO(beta=beta)
    sides = [array.detach().numpy().reshape(2, PAIRS).T for array in (logps.sum(dim=1), reference)]
    margins = objective.margins(*sides)
    assert objective.losses(margins).mean() == pytest.approx(other.item(), rel=1e-9)
    mine = objective.slopes(margins) / PAIRS
    wanted = torch.tensor(np.concatenate([mine, -mine]))[:, None] * mask
    torch.testing.assert_close(wanted, slope * mask, rtol=1e-9, atol=1e-12)


def test_what_is_not_the_same_is_seen() -> None:
    """The planted defect: TRL with another beta."""
    logps, mask = torch.tensor([[-1.0], [-2.0]]).double(), torch.ones(2, 1).double()
    other = theirs(0.2, logps, mask, torch.zeros(2).double()).item()
    assert DPO(beta=0.1).losses(np.ones(1)).mean() != pytest.approx(other, rel=1e-3)
    assert DPO(beta=0.2).losses(np.ones(1)).mean() == pytest.approx(other)
