"""What a vLLM engine is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparring.backend.sampling import MOST_TOP
from sparring.backend.training import Lora
from sparring.errors import SettingError, UnsupportedError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of an adapter."""

_TOKEN_SECONDS, _MEASURED_BYTES = 0.01, 270e6
"""What a token of a prompt takes two cores at most, and the size of the model with which that was measured (SmolLM2-135M; see
benchmarks/README.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """How vLLM serves one base model.

    max_loras        versions that can be sampled from at once, of all models on the base together; each has memory of its own
    max_lora_rank    the largest rank of an adapter; None for no adapters: a version is then all weights
    slots            sequences drawn at once
    cache_tokens     tokens whose keys and values are kept; never less than the model's context
    stuck_after      seconds without an answer after which the engine counts as stuck; one step takes less. None: see `patience`
    start_within     seconds that an engine may take to start, and again to draw its first token; one that takes longer is ended
    restarts         how often one request is asked again after the engine died under it
    replicas         engines that draw from the same versions; with GPUs each on one, in turn
    """

    max_loras: int
    max_lora_rank: int | None
    slots: int
    cache_tokens: int = 65536
    stuck_after: float | None = None
    start_within: float = 600.0
    restarts: int = 2
    replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("max_loras", "max_lora_rank", "slots", "cache_tokens", "replicas"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name}={value!r}: must be at least 1")
        if self.max_lora_rank is not None and self.max_lora_rank > RANKS[-1]:
            raise SettingError(f"lora.rank={self.max_lora_rank!r}: vLLM takes up to {RANKS[-1]}; sampler='torch' any")
        if self.stuck_after is not None and not self.stuck_after > 0:
            raise SettingError(f"stuck_after={self.stuck_after!r}: must be above 0 seconds")
        if not self.start_within > 0:
            raise SettingError(f"start_within={self.start_within!r}: must be above 0 seconds")
        if self.restarts < 0:
            raise SettingError(f"restarts={self.restarts!r}: must be at least 0")


def refuse_unserved(lora: Lora | None) -> None:
    """Raises `UnsupportedError` for what this sampler cannot draw from yet."""
    if lora is not None and lora.unembedding:
        raise UnsupportedError(
            "lora.unembedding=True: vLLM adapts attention and MLP; sampler='torch' the output layer too"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The base that vLLM serves: its folder and what of it must be the same here and there. `adapted` names the linear layers
    that adapters may change, `token_bytes` is what the keys and values of one token take, `gpus` how many there are."""

    folder: Path
    adapted: tuple[str, ...]
    context_length: int
    vocabulary: int
    dtype: Literal["float32", "bfloat16"]
    on_cpu: bool
    token_bytes: int
    gpus: int = 0


def patience(settings: VllmSettings, model: ServedModel) -> float:
    """Seconds after which an engine that computes without an answer counts as stuck: what the user set, else 20 on a GPU.

    On a CPU, four times its longest step: no prompt is computed in parts there (see `engine_options`), so one step may take as
    many tokens as the longest, and a question asked meanwhile is answered after it. One that does not even compute is noticed
    sooner, see `engine.IDLE`.
    """
    return settings.stuck_after or (4 * _longest_step(model) if model.on_cpu else 20.0)


def _longest_step(model: ServedModel) -> float:
    """Seconds that a step may take on a CPU at most, by the size of the model."""
    size = sum(file.stat().st_size for file in model.folder.glob("*.safetensors"))
    return _step_tokens(model) * _TOKEN_SECONDS * max(1.0, size / _MEASURED_BYTES)


def _step_tokens(model: ServedModel) -> int:
    """Tokens of prompts that one step computes at most."""
    return max(2048, model.context_length + 1)


def block_size(model: ServedModel) -> int:
    """Tokens whose keys and values vLLM caches together: on a CPU the fewest that its attention takes, else as vLLM has it."""
    return 32 if model.on_cpu else 16


def engine_options(settings: VllmSettings, model: ServedModel, *, replica: int = 0) -> Mapping[str, Any]:
    """The fields of vLLM's `AsyncEngineArgs`.

    One more token than the context, because vLLM draws one after every prompt, also where only the prompt is scored. Memory
    for keys and values has two of vLLM's blocks to spare. On a CPU no prompt is computed in parts: vLLM 0.32 would then turn
    back the generator of a seeded request, which on a CPU ends the engine ("CPU Generator does not use offset"). The worker
    extensions bring what applies adapters on a CPU, and the engine that reads all weights from a file.
    """
    tokens = max(settings.cache_tokens, model.context_length + 1) + 2 * 128
    return {
        "model": str(model.folder),
        "dtype": model.dtype,
        "max_model_len": model.context_length + 1,
        "max_num_seqs": settings.slots,
        "max_num_batched_tokens": _step_tokens(model),
        "enable_chunked_prefill": not model.on_cpu,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": MOST_TOP,
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        **({"block_size": block_size(model)} if model.on_cpu else {}),
        "kv_cache_memory_bytes": model.token_bytes * tokens,
        "enforce_eager": model.on_cpu,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **({} if settings.replicas == 1 or model.on_cpu else {"device_ids": [replica % model.gpus]}),
        **(
            _whole() if settings.max_lora_rank is None else _adapters(settings.max_loras, settings.max_lora_rank, model)
        ),
    }


def _adapters(most: int, rank: int, model: ServedModel) -> Mapping[str, Any]:
    return {
        "enable_lora": True,
        "lora_target_modules": list(model.adapted),
        "max_loras": most,
        "max_cpu_loras": most,
        "max_lora_rank": next(known for known in RANKS if known >= rank),
        **({"worker_extension_cls": "sparring.backend.vllm.grouped.WorkerExtension"} if model.on_cpu else {}),
    }


def _whole() -> Mapping[str, Any]:
    return {
        "enable_lora": False,
        "weight_transfer_config": {"backend": "sparring-file"},
        "worker_extension_cls": "sparring.backend.vllm.transfer.WorkerExtension",
    }
