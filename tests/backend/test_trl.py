"""Presets against TRL's own loss on the same tensors: values and gradients, where TRL implements the same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparring import KL, SequenceMean, cispo, dapo, dr_grpo, grpo, gspo
from sparring.backend import Datum
from sparring.backend.local.objectives import Scored, objective
from sparring.backend.losses import clip_thresholds
from sparring.learner import Algorithm
from sparring.learner.measured import rows_of
from sparring.learner.step import decide
from sparring.learner.updates import Laid, updates
from sparring.rollout import Batch, Trajectory
from tests.learner.sets import batch, context, trajectory

pytestmark = pytest.mark.trl

LONGEST = 7
LENGTHS = (3, LONGEST, 1, 5)
REWARDS = (1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 2.0, 1.0)


def drawn(seed: int) -> Batch:
    """Two groups of four completions, with log-probs of the sampler by chance."""
    rng, made = np.random.default_rng(seed), []
    for number, reward in enumerate(REWARDS):
        plain = context([LENGTHS[number % 4]])
        logprobs = np.where(plain.action_mask, -rng.uniform(0.1, 3, len(plain.tokens)), 0).astype(np.float32)
        one = replace(plain, logprobs=logprobs)
        made.append(trajectory(reward, one, group=number // 4, episode=number % 4))
    return batch(*made)


def padded(rows: list[Any]) -> Tensor:
    """f64[B, T], 0 beyond the end of a row."""
    return torch.stack(
        [torch.nn.functional.pad(torch.as_tensor(row).double(), (0, LONGEST - len(row))) for row in rows]
    )


def examples(algorithm: Algorithm, of: Batch, reference: list[Any]) -> tuple[list[Datum], list[float]]:
    """The examples of a step, and its advantages before the division."""
    decided = decide(of, replace(algorithm, kl=None).credit, {}, ["game"])
    laid = [
        Laid(advantages=row, reference=ref if algorithm.kl is not None else None)
        for row, ref in zip(decided.values, reference, strict=True)
    ]
    (update,) = updates(of, laid, algorithm.normalization)
    return list(update.data), [float(row[0]) for row in decided.values]


def ours(algorithm: Algorithm, data: list[Datum], lps: list[Tensor]) -> Tensor:
    """The preset's loss, in float64."""
    loss = algorithm.objective(0.0 if algorithm.kl is None else algorithm.kl.coefficient)
    low, high = clip_thresholds(loss)

    def joined(name: str) -> Tensor:
        return torch.cat([torch.from_numpy(getattr(datum, name)[datum.mask]).double() for datum in data])

    sequence = torch.cat([torch.full((len(lp),), number) for number, lp in enumerate(lps)])
    scored = Scored(
        q=joined("logprobs"),
        advantages=joined("advantages"),
        weights=joined("weights"),
        low=torch.full((len(sequence),), low, dtype=torch.float64),
        high=torch.full((len(sequence),), high, dtype=torch.float64),
        sequence=sequence,
        reference=None if algorithm.kl is None else joined("reference_logprobs"),
    )
    return objective(loss, torch.cat(lps), scored).loss


def theirs(settings: dict[str, Any], inputs: dict[str, Tensor], logps: Tensor) -> Tensor:
    """`GRPOTrainer._compute_loss`, which takes its settings from the trainer."""
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        **{"importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, **settings},
    )
    found: Tensor = import_module("trl.trainer.grpo_trainer").GRPOTrainer._compute_loss(trainer, None, inputs)
    return found


CASES: list[tuple[str, Algorithm, dict[str, Any]]] = [
    ("token mean", grpo(), {"loss_type": "bnpo"}),
    ("the paper's grpo", grpo(deviation=True, normalization=SequenceMean()), {"loss_type": "grpo"}),
    ("with a reference", replace(grpo(), kl=KL(coefficient=0.3)), {"loss_type": "bnpo", "beta": 0.3}),
    ("dr_grpo", dr_grpo(), {"loss_type": "dr_grpo"}),
    ("dapo", dapo(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("cispo", cispo(), {"loss_type": "cispo", "epsilon_high": 4.0}),
    (
        "gspo",
        gspo(),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
]


@pytest.mark.parametrize(("algorithm", "settings"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.parametrize("spread", [1e-4, 0.3, 1.5])
def test_losses_and_gradients_are_trl_s(algorithm: Algorithm, settings: dict[str, Any], spread: float) -> None:
    of, rng = drawn(3), np.random.default_rng(4)
    made: list[Trajectory] = [one for unit in of.units for one in unit.trajectories]
    q = rows_of([part.logprobs for one in made for part in one.contexts], made)
    lps = [torch.tensor(row + rng.normal(0, spread, len(row)), requires_grad=True) for row in q]
    reference = [(row + rng.normal(0, 0.3, len(row))).astype(np.float32) for row in q]
    data, advantages = examples(algorithm.resolved(LONGEST), of, reference)
    mask = padded([np.ones(len(row)) for row in q])
    inputs = {
        "prompt_ids": torch.zeros(8, 2, dtype=torch.long),
        "prompt_mask": torch.ones(8, 2),
        "completion_ids": torch.zeros(8, LONGEST, dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "old_per_token_logps": padded(list(q)),
        "ref_per_token_logps": padded(reference),
        "num_items_in_batch": mask.sum(),
    }
    mine, other = ours(algorithm.resolved(LONGEST), data, lps), theirs(settings, inputs, padded(lps))
    assert mine.item() == pytest.approx(other.item(), rel=1e-5, abs=1e-7)
    for one, two in zip(torch.autograd.grad(mine, lps), torch.autograd.grad(other, lps), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_what_is_not_the_same_is_seen() -> None:
    """The planted defect: DAPO's loss with the bounds of GRPO."""
    with pytest.raises(AssertionError):
        test_losses_and_gradients_are_trl_s(dapo(), {"loss_type": "dapo", "epsilon_high": 0.2}, 1.5)
