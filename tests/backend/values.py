"""Data and critics on tiny models, and the plain way to compute values: transformers, PEFT, autograd, a token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from sparring.arrays import F32
from sparring.backend.datum import Datum, ValueDatum
from sparring.backend.local.critic import TorchCritic
from sparring.backend.local.trainer import Trainer
from sparring.backend.losses import ClippedValue
from tests.backend.architectures import plain


def to_learn(data: Sequence[Datum], *, old_values: Sequence[F32] | None = None, seed: int = 0) -> list[ValueDatum]:
    """The same contexts with random weights and returns; old values are those given, or random."""
    random, made = np.random.default_rng(seed), []
    for index, datum in enumerate(data):
        weights, returns, old = (random.normal(size=(3, len(datum.tokens))) * datum.mask).astype(np.float32)
        given = old if old_values is None else old_values[index]
        made.append(
            ValueDatum(tokens=datum.tokens, mask=datum.mask, weights=np.abs(weights), returns=returns, old_values=given)
        )
    return made


def trainer_of(critic: TorchCritic) -> Trainer:
    return critic._trainer  # pyright: ignore[reportPrivateUsage]


def spread_critic(critic: TorchCritic, seed: int = 0) -> None:
    """Weights that matter: a fresh head is zero, and so is the gradient of everything below it."""
    trained = trainer_of(critic).adapter
    generator = torch.Generator().manual_seed(seed)
    trained.master.add_(torch.randn(trained.master.shape, generator=generator), alpha=0.05)
    trained.refresh()


async def gradient_of(critic: TorchCritic, data: Sequence[ValueDatum], loss: ClippedValue) -> Tensor:
    await critic.forward_backward(data, loss)
    grad = trainer_of(critic).adapter.grad.clone()
    await critic.discard_gradients()
    return grad


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """`gradients` by the names that weights have in the critic's folder; those of the head as "weight" and "bias"."""

    values: list[F32]
    loss: float
    gradients: dict[str, Tensor]

    def flat(self, critic: TorchCritic) -> Tensor:
        """The gradient in the layout of what the critic trains."""
        names = [*trainer_of(critic).adapter.named(), "weight", "bias"]
        assert sorted(names) == sorted(self.gradients)
        return torch.cat([self.gradients[name].reshape(-1) for name in names])


def plain_pass(model_folder: Path, state: Path, data: Sequence[ValueDatum], loss: ClippedValue) -> Plain:
    """Values, the summed loss and its gradient, from the folder `state` that a critic on this model saved."""
    model = plain(model_folder)
    whole: nn.Module = model
    if (state / "adapter_config.json").exists():
        whole = PeftModel.from_pretrained(model, str(state), is_trainable=True)
    else:
        model.load_state_dict(load_file(state / "model.safetensors"), strict=False)
    head = {name: tensor.requires_grad_(True) for name, tensor in load_file(state / "value_head.safetensors").items()}
    body = model.get_decoder()
    assert isinstance(body, nn.Module)
    values, total = [], torch.zeros((), dtype=torch.float64)
    for datum in data:
        hidden = body(input_ids=torch.from_numpy(datum.tokens).long()[None], use_cache=False).last_hidden_state[0]
        found = np.zeros(len(datum.tokens), np.float32)
        for t in np.flatnonzero(datum.mask).tolist():
            v = (hidden[t - 1] * head["weight"]).sum() + head["bias"][0]
            total = total + _term(datum, t, v.double(), loss.clip)
            found[t] = v.item()
        values.append(found)
    total.backward()
    trained = {name.replace(".default.", "."): p for name, p in whole.named_parameters() if p.requires_grad} | head
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}
    return Plain(values=values, loss=total.item(), gradients=gradients)


def _term(datum: ValueDatum, t: int, v: Tensor, clip: float) -> Tensor:
    assert datum.returns is not None and datum.old_values is not None
    old, target, weight = float(datum.old_values[t]), float(datum.returns[t]), float(datum.weights[t])
    held = min(max(v.item(), old - clip), old + clip)
    free = (v - target) ** 2
    if held != v.item() and (held - target) ** 2 > free.item():  # held there, where no gradient flows
        return torch.tensor(weight / 2 * (held - target) ** 2, dtype=torch.float64)
    return weight / 2 * free
