"""vLLM as an outlet: a model's weights are sent there, and what vLLM draws with them is compared with the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save

from sparring.backend.local.base import BaseModel
from sparring.backend.local.cache import KeyValueCache
from sparring.backend.local.canary import CANARY, canary_prompt, compare
from sparring.backend.local.checkpoint import adapter_files
from sparring.backend.local.lora import Adapter
from sparring.backend.local.snapshots import refuse_unpublished
from sparring.backend.local.trainer import Trainer
from sparring.backend.sampling import SamplingClient
from sparring.backend.vllm import Probe, ServedModel, VllmSampler
from sparring.backend.vllm.files import WEIGHTS, WeightsFile
from sparring.backend.vllm.following import Followed


def served_model(base: BaseModel, folder: Path) -> ServedModel:
    """What vLLM is told of a base."""
    dtype: Literal["float32", "bfloat16"] = "float32" if base.dtype == torch.float32 else "bfloat16"
    return ServedModel(
        folder=folder,
        adapted=tuple(sorted({t.name.rpartition(".")[2] for t in base.targets if t.part != "unembedding"})),
        context_length=base.context_length,
        vocabulary=base.vocabulary,
        dtype=dtype,
        on_cpu=base.device.type == "cpu",
        gpus=torch.cuda.device_count(),
        token_bytes=KeyValueCache.of(base, slots=1, max_tokens=1).bytes_per_token,
    )


@dataclass(frozen=True, slots=True)
class VllmSnapshot:
    """One version in vLLM."""

    sampler: VllmSampler
    weights: WeightsFile

    def open(self, *, release: Callable[[], None]) -> SamplingClient:
        return self.sampler.open(self.weights, release=release)

    def free(self) -> None:
        self.sampler.retire(self.weights)


class VllmOutlet:
    """Sends adapters, or all weights, to vLLM; the engine thread waits for it meanwhile. A model takes part in nothing that is
    followed before somebody follows it, and from when nobody does any more."""

    def __init__(self, sampler: VllmSampler) -> None:
        self._sampler = sampler
        self._newest: WeightsFile | None = None
        self._source: Followed | None = None
        self._clients = 0

    def take(self, trainer: Trainer, version: int) -> VllmSnapshot:
        return self._send(trainer, version, None)

    def publish(self, trainer: Trainer, version: int) -> VllmSnapshot:
        snapshot = self._send(trainer, version, self._source)
        self._newest = snapshot.weights
        return snapshot

    def follow(self, *, release: Callable[[], None]) -> SamplingClient:
        if self._newest is None:
            raise refuse_unpublished()
        if self._source is None:
            self._source = self._sampler.follow(self._newest)
        self._clients += 1
        return self._sampler.open(self._source, release=release)

    def unfollow(self) -> None:
        self._clients -= 1
        if self._clients == 0 and self._source is not None:
            self._sampler.retire(self._source)
            self._source = None

    def _send(self, trainer: Trainer, version: int, source: Followed | None) -> VllmSnapshot:
        """Raises `BackendError` where vLLM does not take it, or draws from another distribution than the trainer has."""
        adapter = trainer.adapter
        if isinstance(adapter, Adapter):
            files = adapter_files(adapter, trainer.base.name)
        else:
            files = {WEIGHTS: save(adapter.computed(), metadata={"format": "pt"})}
        prompt = canary_prompt(trainer.base)
        probe = Probe(prompt=prompt, params=CANARY, check=lambda sample: compare(trainer, prompt, sample))
        return VllmSnapshot(self._sampler, self._sampler.install(files, probe, version=version, source=source))
