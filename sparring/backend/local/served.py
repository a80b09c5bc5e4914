"""Snapshots in vLLM: a model's weights are sent there, and what vLLM draws with them is compared with the trainer."""

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
from sparring.backend.local.trainer import Trainer
from sparring.backend.sampling import SamplingClient
from sparring.backend.vllm import Probe, ServedModel, VllmSampler
from sparring.backend.vllm.files import WEIGHTS, WeightsFile


def served_model(base: BaseModel, folder: Path) -> ServedModel:
    """What vLLM is told of a base."""
    dtype: Literal["float32", "bfloat16"] = "float32" if base.dtype == torch.float32 else "bfloat16"
    return ServedModel(
        folder=folder,
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

    def open(self, *, version: int, release: Callable[[], None]) -> SamplingClient:
        return self.sampler.open(self.weights, version=version, release=release)

    def free(self) -> None:
        self.sampler.retire(self.weights)


def send(sampler: VllmSampler, trainer: Trainer) -> VllmSnapshot:
    """Install the trainer's adapter, or all its weights, in vLLM. Engine thread only, which waits for it.

    Raises `BackendError` where vLLM does not take it, or draws from another distribution than the trainer has.
    """
    adapter = trainer.adapter
    if isinstance(adapter, Adapter):
        files = adapter_files(adapter, trainer.base.name)
    else:
        files = {WEIGHTS: save(adapter.computed(), metadata={"format": "pt"})}
    prompt = canary_prompt(trainer.base)
    probe = Probe(prompt=prompt, params=CANARY, check=lambda sample: compare(trainer, prompt, sample))
    return VllmSnapshot(sampler, sampler.install(files, probe))
