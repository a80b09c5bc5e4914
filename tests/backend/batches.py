"""Batches for tiny models, and the plain way to compute on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparring.arrays import I32, Bools
from sparring.backend.datum import Datum
from sparring.backend.local.lora import Adapter
from sparring.backend.local.model import TorchModel
from sparring.backend.local.sampler import TorchSampler
from sparring.backend.local.snapshots import WeightsOutlet
from sparring.backend.local.trainer import Trainer
from sparring.backend.losses import Loss, Regularized
from sparring.backend.training import Lora
from tests.backend.reference import reference

LORA = Lora(rank=4, alpha=8.0)


def scored(tokens: I32, mask: Bools, random: np.random.Generator, temperature: float) -> Datum:
    """Random log-probs where the mask is, and one random advantage for all of it."""
    return Datum(
        tokens=tokens,
        mask=mask,
        logprobs=np.where(mask, -random.exponential(4, len(tokens)), 0).astype(np.float32),
        advantages=np.where(mask, random.normal(), 0).astype(np.float32),
        weights=mask.astype(np.float32),
        temperature=temperature,
    )


def groups(count: int = 3, size: int = 4, *, seed: int = 0, temperature: float = 1.0) -> list[Datum]:
    """`count` prompts with `size` completions each, of several lengths; some completions have an unscored token inside."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        prompt = random.integers(3, 320, random.integers(2, 12))
        for _ in range(size):
            length = int(random.integers(1, 9))
            tokens = np.concatenate([prompt, random.integers(3, 320, length)]).astype(np.int32)
            place = np.arange(len(tokens)) - len(prompt)
            mask = (place == 0) | ((place > 0) & (random.random(len(tokens)) < 0.8))
            data.append(scored(tokens, mask, random, temperature))
    return data


def conversations(count: int = 2, *, seed: int = 0) -> list[Datum]:
    """Turns that go on, forks, completions that begin alike or are alike, some drawn at another temperature: wherever two data
    meet, each has log-probs and advantages of its own."""
    random = np.random.default_rng(seed)
    data: list[Datum] = []
    for _ in range(count):
        turns = random.integers(3, 320, 24).astype(np.int32)
        fork = np.concatenate([turns[:14], random.integers(3, 320, 6)]).astype(np.int32)
        for tokens, first, last in (
            (turns, 4, 10),
            (turns, 12, 24),
            (turns[:14], 10, 14),
            (fork, 8, 20),
            (fork, 4, 20),
        ):
            for temperature in (1.0, 1.0, 0.6):
                place = np.arange(len(tokens))
                data.append(scored(tokens, (place >= first) & (place < last), random, temperature))
    return [data[index] for index in random.permutation(len(data))]


def diverged() -> list[Datum]:
    """The second datum's sampler log-prob is so low that the ratio is infinite in fp32."""
    good, bad = groups(2, 1)
    return [
        good,
        Datum(
            tokens=bad.tokens,
            mask=bad.mask,
            logprobs=bad.logprobs - 200 * bad.mask.astype(np.float32),
            advantages=bad.advantages,
            weights=bad.weights,
        ),
    ]


def trainer(model: TorchModel) -> Trainer:
    return model._trainer  # pyright: ignore[reportPrivateUsage]


def sampler_of(model: TorchModel) -> TorchSampler:
    """The torch sampler that draws from a model's published weights."""
    outlet = model._outlet  # pyright: ignore[reportPrivateUsage]
    assert isinstance(outlet, WeightsOutlet)
    assert isinstance(outlet.sampler, TorchSampler)
    return outlet.sampler


def lora_of(model: TorchModel) -> Adapter:
    found = trainer(model).adapter
    assert isinstance(found, Adapter)
    return found


def spread(model: TorchModel, seed: int = 0) -> None:
    """Give the adapter weights that matter: a fresh one's B is zero, and so is the gradient of its A."""
    adapter = lora_of(model)
    generator = torch.Generator().manual_seed(seed)
    for b in adapter.master_b:
        b.normal_(0, 0.1, generator=generator)
    adapter.refresh()


async def gradient(model: TorchModel, data: Sequence[Datum], loss: Loss) -> torch.Tensor:
    await model.forward_backward(data, loss)
    grad = trainer(model).adapter.grad.clone()
    await model.discard_gradients()
    return grad


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def plain_loss(model: TorchModel, data: Sequence[Datum], loss: Loss) -> tuple[torch.Tensor, list[np.ndarray]]:
    """The gradient and log-probs by the plain way: one datum at a time, full logits, autograd through everything."""
    base, adapter = trainer(model).base, lora_of(model)
    logprobs = []
    for datum in data:
        ids = torch.from_numpy(datum.tokens).long()[None]
        embedded = base.model.get_input_embeddings()(ids).requires_grad_(True)
        with base.call.rows([(adapter.weights, 1)]):
            hidden = base.body(inputs_embeds=embedded, use_cache=False).last_hidden_state
            scores = torch.log_softmax((hidden[0, :-1] @ base.head.T).double() / datum.temperature, dim=-1)
            scores = torch.cat([torch.zeros_like(scores[:1]), scores])  # the row of each token's own distribution
            lp, soft = scores.gather(1, ids[0, :, None])[:, 0], None
            if datum.soft_targets is not None:
                soft = scores.gather(1, torch.from_numpy(datum.soft_targets.tokens).long())
            value = reference(loss, datum, lp, soft)
            if isinstance(loss, Regularized):
                entropies = -(scores.exp() * scores).sum(-1)
                value = value - loss.entropy * (torch.from_numpy(datum.weights) * entropies)[datum.mask].sum()
            if value.requires_grad:  # not where every token is clipped
                value.backward()
        logprobs.append(np.where(datum.mask, lp.detach().numpy(), 0).astype(np.float32))
    grad = adapter.grad.clone()
    adapter.grad.zero_()
    return grad, logprobs
