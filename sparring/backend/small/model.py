"""A small policy as a `TrainingClient`. Its operations are done when the call returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.bytes_renderer import VOCABULARY
from sparring.backend.check_data import check_data
from sparring.backend.datum import Datum
from sparring.backend.local.adamw import adamw, clipped_norm
from sparring.backend.local.checkpoint import write_folder
from sparring.backend.local.measures import measures
from sparring.backend.local.objectives import Scored, objective
from sparring.backend.losses import Custom, Loss, Regularized, clip_thresholds
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SamplingClient
from sparring.backend.scripted_weights import done
from sparring.backend.small.policies import SmallPolicy
from sparring.backend.small.renderer import ReplyRenderer
from sparring.backend.small.sampler import CONTEXT, SmallSampler
from sparring.backend.training import PLAIN, Adam, ForwardOutput, ModelInfo, OptimOutput
from sparring.errors import BackendError, SettingError, UnsupportedError


class SmallModel:
    """A `TrainingClient`, and, where nobody trains it, a `ReferenceClient`."""

    def __init__(self, name: str, policy: SmallPolicy, renderer: ReplyRenderer, seed: int) -> None:
        self._policy, self._unloaded = policy, False
        self._master = policy.begin(seed)
        self._mean, self._square, self._grad = (torch.zeros_like(self._master) for _ in range(3))
        self._steps = 0
        self._published: dict[int, Tensor] = {}
        self._newest = -1
        self.renderer = renderer
        self.info = ModelInfo(
            model=name,
            parameters=policy.parameters,
            trained_parameters=policy.parameters,
            context_length=CONTEXT,
            dtype="float32",
            fingerprint=sha256(f"{policy!r} {renderer.fingerprint}".encode()).hexdigest(),
            architecture=type(policy).__name__,
        )

    def forward(
        self, data: Sequence[Datum], loss: Loss = PLAIN, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        with torch.no_grad():
            _, output = self._computed(data, loss, self._master, entropy=entropy)
        return done("forward", output)

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        weights = self._master.detach().requires_grad_(True)
        value, output = self._computed(data, loss, weights, entropy=entropy)
        if value.requires_grad:
            self._grad += torch.autograd.grad(value, weights)[0]
        return done("forward_backward", output)

    def optim_step(self, adam: Adam) -> PendingResult[OptimOutput]:
        self._refuse_if_unloaded()
        norm = clipped_norm(self._grad, adam, self._steps + 1)
        self._steps += 1
        self._master = self._master.clone()  # snapshots hold the one before
        adamw(self._master, self._mean, self._square, self._grad, adam, self._steps)
        self._grad.zero_()
        return done("optim_step", OptimOutput(metrics={"gradient_norm": norm}))

    def discard_gradients(self) -> PendingResult[None]:
        self._refuse_if_unloaded()
        self._grad.zero_()
        return done("discard_gradients", None)

    def save_state(self, name: str) -> PendingResult[str]:
        """`name` must be an absolute path: this backend has no folder of its own."""
        self._refuse_if_unloaded()
        if not Path(name).is_absolute():
            raise SettingError(f"save_state({name!r}): small models have no folder of their own; give an absolute path")
        state = {"master": self._master, "mean": self._mean, "square": self._square}
        about = {"model": self.info.model, "fingerprint": self.info.fingerprint, "steps": self._steps}
        write_folder(Path(name), {_STATE: save(state), _ABOUT: json.dumps(about).encode()})
        return done("save_state", name)

    def load_state(self, path: str, *, optimizer: bool = True) -> PendingResult[None]:
        self._refuse_if_unloaded()
        about = described(path)
        if about.fingerprint != self.info.fingerprint:
            raise SettingError(f"state {path!r} is of a {about.model!r} of another size or with other replies")
        try:
            state = load((Path(path) / _STATE).read_bytes())
        except (OSError, SafetensorError) as error:
            raise SettingError(f"state {path!r} is damaged ({error}); take an earlier one") from error
        self._master = state["master"]
        self._mean = state["mean"] if optimizer else torch.zeros_like(self._master)
        self._square = state["square"] if optimizer else torch.zeros_like(self._master)
        self._steps = about.steps if optimizer else 0
        self._grad.zero_()
        return done("load_state", None)

    def export(self, folder: str, form: Literal["adapter", "merged"] = "adapter") -> PendingResult[str]:
        raise UnsupportedError(f"export({folder!r}): a small model has no format that others load; use save_state")

    def unload(self) -> PendingResult[None]:
        self._refuse_if_unloaded()
        self._unloaded = True
        return done("unload", None)

    def digest(self) -> PendingResult[str]:
        self._refuse_if_unloaded()
        found = sha256(self._steps.to_bytes(8, "little"))
        for values in (self._master, self._mean, self._square):
            found.update(values.numpy().tobytes())
        return done("digest", found.hexdigest())

    def publish(self, version: int) -> PendingResult[None]:
        self._refuse_if_unloaded()
        if version <= self._newest:
            raise SettingError(f"version={version!r}: {self._newest} is published, and versions never go back")
        self._published[version], self._newest = self._master, version
        return done("publish", None)

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        """Of a version all of which is kept: weights are small."""
        self._refuse_if_unloaded()
        if kind != "snapshot":
            raise UnsupportedError(
                f"sampler({kind!r}): a reply is one token, so that nothing is in flight; use 'snapshot'"
            )
        if version is None:
            return SmallSampler(self._policy, self._master, self.renderer, self._steps, _nothing)
        if version not in self._published:
            raise SettingError(f"sampler(version={version!r}): published are {sorted(self._published)}")
        return SmallSampler(self._policy, self._published[version], self.renderer, version, _nothing)

    def _computed(
        self, data: Sequence[Datum], loss: Loss, weights: Tensor, *, entropy: bool
    ) -> tuple[Tensor, ForwardOutput]:
        """The loss, and what is told of the call."""
        self._refuse_if_unloaded()
        check_small(data, loss)
        places = [(number, int(place)) for number, datum in enumerate(data) for place in np.flatnonzero(datum.mask)]
        found = tuple(np.zeros(len(datum.tokens), np.float32) for datum in data)
        if not places:
            return torch.zeros(()), ForwardOutput(logprobs=found, metrics={"loss": 0.0, "tokens": 0.0})
        temperatures = torch.tensor([data[number].temperature for number, _ in places])
        logits = self._policy.logits(weights, [data[number].tokens[:place] for number, place in places])
        every = torch.log_softmax(logits / temperatures[:, None], dim=-1)
        replies = torch.tensor([int(data[number].tokens[place]) - VOCABULARY for number, place in places])
        lp, entropies = every.gather(1, replies[:, None])[:, 0], -(every.exp() * every).sum(-1)
        scored = _scored(data, places, loss)
        result = objective(loss, lp, scored)
        bonus = loss.entropy if isinstance(loss, Regularized) else 0.0
        value = result.loss - bonus * (scored.weights * entropies).sum()
        for (number, place), one in zip(places, lp.tolist(), strict=True):
            found[number][place] = one
        metrics = measures(loss, lp, scored.q, result).fetched() | {"loss": float(value.detach())}
        if entropy or bonus > 0:
            metrics |= {"entropy_sum": float(entropies.detach().sum()), "entropy_tokens": float(len(places))}
        return value, ForwardOutput(logprobs=found, metrics=metrics)

    def _refuse_if_unloaded(self) -> None:
        if self._unloaded:
            raise BackendError(f"model {self.info.model!r} was unloaded; create one from a state that it saved")


_STATE, _ABOUT = "state.safetensors", "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a saved state says of itself."""

    model: str
    fingerprint: str
    steps: int


def described(path: str) -> About:
    """Of a folder that `save_state` wrote. Raises `SettingError` for another."""
    try:
        about = json.loads((Path(path) / _ABOUT).read_text())
        return About(model=str(about["model"]), fingerprint=str(about["fingerprint"]), steps=int(about["steps"]))
    except OSError as error:
        raise SettingError(f"state {path!r}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"state {path!r} is damaged ({error!r}); take an earlier one") from error


def check_small(data: Sequence[Datum], loss: Loss) -> None:
    """What every backend refuses, and what a small model cannot compute."""
    check_data(data, loss)
    if isinstance(loss, Custom):
        raise UnsupportedError(f"loss {loss!r}: small models compute every other loss")
    for index, datum in enumerate(data):
        if datum.soft_targets is not None:
            raise UnsupportedError(f"datum {index} has soft_targets, which small models do not compute: leave them out")
        bad = datum.tokens[datum.mask & (datum.tokens < VOCABULARY)]
        if len(bad):
            raise SettingError(
                f"datum {index}: scored token {int(bad[0])!r} is no reply; a small model says replies alone"
            )


def _scored(data: Sequence[Datum], places: Sequence[tuple[int, int]], loss: Loss) -> Scored:
    low, high = clip_thresholds(loss)

    def field(name: str, default: float) -> Tensor:
        values: list[F32 | None] = [getattr(datum, name) for datum in data]
        rows = [default if (row := values[number]) is None else float(row[place]) for number, place in places]
        return torch.tensor(rows)

    def given(name: str) -> Tensor | None:
        return None if all(getattr(datum, name) is None for datum in data) else field(name, float("nan"))

    numbers = np.unique([number for number, _ in places], return_inverse=True)[1]
    return Scored(
        q=field("logprobs", 0.0),
        advantages=field("advantages", 0.0),
        weights=field("weights", 0.0),
        low=field("clip_low", low),
        high=field("clip_high", high),
        sequence=torch.from_numpy(numbers),
        proximal=given("proximal_logprobs"),
        reference=given("reference_logprobs"),
    )


def _nothing() -> None:
    """A closed client leaves its version for others."""
