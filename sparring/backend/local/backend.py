"""The backend that trains and samples on this machine with torch: one engine thread, frozen bases, many adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import anyio
import torch
from anyio import to_thread

from sparring.backend.chat import ChatRenderer
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel, load_base
from sparring.backend.local.canary import TorchCanary
from sparring.backend.local.checkpoint import describe, state_folder
from sparring.backend.local.critic import TorchCritic
from sparring.backend.local.device import choose_device, choose_token_budget
from sparring.backend.local.dtype import Dtype, choose_dtype
from sparring.backend.local.full import FullModel
from sparring.backend.local.lora import Adapter, Trained
from sparring.backend.local.model import TorchModel
from sparring.backend.local.passes import Passes
from sparring.backend.local.reference import TorchReference
from sparring.backend.local.sampler import PREFIX_BYTES, TorchSampler
from sparring.backend.local.scorer import Scorer
from sparring.backend.local.served import VllmOutlet, served_model
from sparring.backend.local.snapshots import Outlet, WeightsOutlet
from sparring.backend.local.thread import EngineThread
from sparring.backend.local.trainer import Trainer, forward_backward_together
from sparring.backend.local.value_scorer import ValueScorer
from sparring.backend.losses import LOSSES, Loss
from sparring.backend.models import default_cache, resolve_model
from sparring.backend.pending import PendingResult
from sparring.backend.totals import add_up
from sparring.backend.training import Capabilities, ForwardOutput, Lora, ModelInfo
from sparring.backend.vllm import VllmSampler, VllmSettings
from sparring.backend.vllm.settings import refuse_unserved
from sparring.errors import SettingError, UnsupportedError

DETERMINISTIC_THREADS = 2
"""How many threads a deterministic backend computes with, so that its sums do not depend on how many cores there are."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What all models on one folder share."""

    base: BaseModel
    sampler: TorchSampler
    renderer: ChatRenderer


class LocalBackend:
    """A `Backend` in this process. Everything happens between entering and leaving its `async with` block.

    dtype           "auto" (bfloat16 where it is faster, float32 elsewhere and under `deterministic`), "bfloat16", "float32"
    device          "auto" (CUDA if there is any, and not under `deterministic`), "cpu", "cuda" or one of several, "cuda:1"
    threads         for matrix products on a CPU; None leaves torch's choice (2 under `deterministic`)
    slots           how many sequences a base model samples at once
    deterministic   float32 on the CPU, a fixed number of threads: the same calls give the same digests
    cache_dir       where named states and converted models are kept; None is the user's cache folder
    token_budget    tokens of one micro-batch; None chooses by device and model. It bounds memory and changes no result
    decode_share    decode steps between two training micro-batches
    sampler         "torch" (in this process) or "vllm" (in processes of its own: not deterministic). Without an adapter, vLLM
                    holds one version's weights at a time; where several are drawn from, they take turns
    max_loras       vLLM: how many versions, of all models on one base, can be drawn from at once
    replicas        vLLM: engines of each base that share the requests; on GPUs, each on one
    prefix_bytes    torch: keys and values kept for contexts that begin alike, as the turns of a conversation do; for each base
    canary          torch: after each publication a few tokens are drawn and scored by a full pass; where the two differ, the
                    next publication raises `BackendError` (vLLM is always compared; a deterministic sampler never)
    """

    def __init__(
        self,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        threads: int | None = None,
        slots: int = 128,
        deterministic: bool = False,
        cache_dir: str | Path | None = None,
        token_budget: int | None = None,
        decode_share: int = 1,
        sampler: Literal["torch", "vllm"] = "torch",
        max_loras: int = 8,
        replicas: int = 1,
        prefix_bytes: int = PREFIX_BYTES,
        canary: bool = False,
    ) -> None:
        _at_least(1, {"threads": threads, "slots": slots, "token_budget": token_budget})
        _at_least(1, {"max_loras": max_loras, "replicas": replicas})
        _at_least(0, {"decode_share": decode_share, "prefix_bytes": prefix_bytes})
        self._device = choose_device(device, deterministic=deterministic)
        self._dtype = choose_dtype(dtype, device=self._device, deterministic=deterministic)
        self._threads = DETERMINISTIC_THREADS if threads is None and deterministic else threads
        self._slots, self._deterministic = slots, deterministic
        self._cache = default_cache() if cache_dir is None else Path(cache_dir).absolute()
        self._token_budget = token_budget
        self._engine = EngineThread(decode_share=decode_share, on_start=self._on_start)
        self._loaded: dict[Path, _Loaded] = {}
        self._prefix_bytes, self._canary = prefix_bytes, canary and not deterministic
        self._sampler = _sampler(sampler, deterministic=deterministic, replicas=replicas)
        self._max_loras, self._replicas = max_loras, replicas
        self._served: dict[tuple[Path, bool], VllmSampler] = {}
        self._serving = anyio.Lock()

    async def __aenter__(self) -> LocalBackend:
        await self._engine.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            for sampler in self._served.values():
                await to_thread.run_sync(sampler.close)
        await self._engine.__aexit__(*exc)
        self._loaded.clear()

    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        return Capabilities(
            losses=frozenset(LOSSES),
            kinds=frozenset({"snapshot"} if self._deterministic else {"snapshot", "inflight"}),
            deterministic=self._deterministic,
            critics=True,
            references=True,
            versions=self._max_loras if self._sampler == "vllm" else None,
        )

    def statistics(self) -> Mapping[str, float]:
        """Of the engine thread, and of the samplers of all bases together."""
        torch = [asdict(loaded.sampler.statistics()) for loaded in self._loaded.values()]
        vllm = [asdict(sampler.statistics()) for sampler in self._served.values()]
        samplers = add_up([*torch, *vllm])
        engine = asdict(self._engine.statistics())
        return {f"engine/{name}": float(count) for name, count in engine.items()} | {
            f"sampler/{name}": float(count) for name, count in samplers.items()
        }

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> TorchModel:
        """A fresh adapter on `model`: a folder, a hub name, or "smollm2-135m-instruct". A base is loaded once and shared.

        Without `lora`, all weights are trained: copies, so that the base can still be shared. Raises `SettingError` for a model
        that is not there, `UnsupportedError` for one that is not computed exactly here.
        """
        if self._sampler == "vllm":
            refuse_unserved(lora)
        folder = await to_thread.run_sync(resolve_model, model, self._cache)
        loaded = await self._engine.submit(lambda: self._load(folder), "create_model")
        canary = TorchCanary(loaded.base, loaded.sampler) if self._canary and self._sampler == "torch" else None
        outlet: Outlet = WeightsOutlet(loaded.sampler, follows=not self._deterministic, canary=canary)
        if self._sampler == "vllm":
            outlet = VllmOutlet(await self._serve(folder, loaded.base, lora))
        return await self._engine.submit(lambda: self._create(model, loaded, lora, seed, outlet), "create_model")

    async def create_from_state(self, path: str, *, model: str | None = None, optimizer: bool = True) -> TorchModel:
        """What `save_state` wrote; without `optimizer` also an adapter folder of PEFT. See `Backend.create_from_state`.

        Raises `SettingError` for a folder that is missing, damaged or of another base, `UnsupportedError` for an adapter that
        is more than `Lora`.
        """
        folder = state_folder(path, self._cache / "states")
        saved = await to_thread.run_sync(describe, folder)
        created = await self.create_model(saved.base if model is None else model, lora=saved.lora)
        try:
            await created.load_state(str(folder), optimizer=optimizer)
        except BaseException:
            created.unload()
            raise
        return created

    async def create_critic(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> TorchCritic:
        """A fresh critic on `model`, whose base it shares with policies there. Without `lora`, all weights of a copy are
        trained; of an output layer that is not the input embedding too, they get no gradient.

        Raises `SettingError` for an adapter on the output layer, which a critic does not have, and as `create_model` does.
        """
        if lora is not None and lora.unembedding:
            raise SettingError(f"{lora!r}: a critic has a value head in place of the output layer; unembedding=False")
        folder = await to_thread.run_sync(resolve_model, model, self._cache)
        return await self._engine.submit(lambda: self._create_critic(model, folder, lora, seed), "create_critic")

    async def reference(self, model: str) -> TorchReference:
        """`model` without an adapter; raises as `create_model` does."""
        folder = await to_thread.run_sync(resolve_model, model, self._cache)

        def create() -> TorchReference:
            base = self._load(folder).base
            return TorchReference(self._passes(base), self._engine, info=_info(model, base, None))

        return await self._engine.submit(create, "reference")

    def forward_backward(
        self, calls: Sequence[tuple[TorchModel, Sequence[Datum], Loss]]
    ) -> PendingResult[list[ForwardOutput]]:
        """`forward_backward` of several models on one base, in shared passes: the outputs in the order of the calls.

        Gradients are those of calls one by one. Data that make one model's gradient non-finite raise `NonFinite` and break its
        buffer alone. Raises `SettingError` for models of several bases, the same model twice, or data that a model cannot take.
        """
        models = [model for model, _, _ in calls]
        shares = [model.share(data, loss, among=len(calls)) for model, data, loss in calls]
        if not shares or len({id(share.trainer.base) for share in shares}) > 1:
            names = sorted({model.info.model for model in models})
            raise SettingError(f"forward_backward of models {names!r} together: they must be of one base")
        if len({id(model) for model in models}) < len(models):
            raise SettingError(f"forward_backward of {len(models)} calls together: each model may have one of them")
        pending = self._engine.submit(lambda: forward_backward_together(shares), "forward_backward")
        for model in models:
            model.follow(pending)
        return pending

    async def _serve(self, folder: Path, base: BaseModel, lora: Lora | None) -> VllmSampler:
        """The vLLM engine of a base's adapters, or of all weights in its place, started for the first model that needs it."""
        kind = (folder, lora is None)
        async with self._serving:
            if kind not in self._served:
                rank = None if lora is None else lora.rank
                settings = VllmSettings(
                    max_loras=self._max_loras, max_lora_rank=rank, slots=self._slots, replicas=self._replicas
                )
                sampler = VllmSampler(served_model(base, folder), self._engine, settings)
                await to_thread.run_sync(sampler.start)
                self._served[kind] = sampler
            self._served[kind].check(lora)
            return self._served[kind]

    def _create(self, name: str, loaded: _Loaded, lora: Lora | None, seed: int, outlet: Outlet) -> TorchModel:
        base, passes = loaded.base, self._passes(loaded.base)
        adapter = _trained(base, lora, seed)
        return TorchModel(
            Trainer(passes, adapter),
            Scorer(base, adapter.weights, token_budget=passes.token_budget),
            self._engine,
            renderer=loaded.renderer,
            info=_info(name, base, adapter),
            outlet=outlet,
            states=self._cache / "states",
        )

    def _create_critic(self, name: str, folder: Path, lora: Lora | None, seed: int) -> TorchCritic:
        base = self._load(folder).base
        trained, passes = _trained(base, lora, seed, tail=base.hidden + 1), self._passes(base)
        return TorchCritic(
            Trainer(passes, trained),
            ValueScorer(base, trained, token_budget=passes.token_budget),
            self._engine,
            info=_info(name, base, trained),
            states=self._cache / "states",
        )

    def _passes(self, base: BaseModel) -> Passes:
        budget = self._token_budget or choose_token_budget(base)
        return Passes(base=base, token_budget=budget, between=self._engine.interleave)

    def _load(self, folder: Path) -> _Loaded:
        if folder not in self._loaded:
            base = load_base(folder, dtype=self._dtype, device=self._device)
            renderer = ChatRenderer(base.tokenizer)
            sampler = TorchSampler(
                base,
                self._engine,
                slots=self._slots,
                prefix_bytes=self._prefix_bytes,
                deterministic=self._deterministic,
            )
            self._loaded[folder] = _Loaded(base, sampler, renderer)
        return self._loaded[folder]

    def _on_start(self) -> None:
        """On the engine thread, where torch's number of threads counts."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)


def _trained(base: BaseModel, lora: Lora | None, seed: int, *, tail: int = 0) -> Trained:
    """A fresh adapter, or a copy of all weights; `tail` more numbers for a value head."""
    if lora is None:
        return FullModel(base.named_parameters, head=base.head, tail=tail)
    return Adapter(base.targets, lora, seed=seed, dtype=base.dtype, device=base.device, tail=tail)


def _info(name: str, base: BaseModel, trained: Trained | None) -> ModelInfo:
    return ModelInfo(
        model=name,
        parameters=base.parameters,
        trained_parameters=0 if trained is None else trained.parameters,
        context_length=base.context_length,
        dtype=str(base.dtype).removeprefix("torch."),
        fingerprint=base.fingerprint,
        architecture=type(base.model).__name__,
        lora=None if trained is None else trained.lora,
    )


def _at_least(least: int, settings: Mapping[str, int | None]) -> None:
    for name, value in settings.items():
        if value is not None and value < least:
            raise SettingError(f"{name}={value!r}: must be at least {least}")


def _sampler(wanted: Literal["torch", "vllm"], *, deterministic: bool, replicas: int) -> Literal["torch", "vllm"]:
    if wanted not in ("torch", "vllm"):
        raise SettingError(f"sampler={wanted!r}: must be 'torch' or 'vllm'")
    if wanted == "torch" and replicas > 1:
        raise SettingError(f"replicas={replicas!r}: sampler='torch' draws in this process; sampler='vllm' has replicas")
    if wanted == "vllm" and deterministic:
        raise UnsupportedError(
            "sampler='vllm' with deterministic=True: what vLLM draws depends on what else it draws; 'torch'"
        )
    return wanted
