"""A base model served by vLLM: versions go in as files, sampling clients come out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.arrays import F32, I32
from sparring.backend.check_request import check_request, checked_tokens
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm.asked import Post, Request
from sparring.backend.vllm.client import VllmSamplingClient
from sparring.backend.vllm.convert import SCORING, sampled, scored, vllm_params
from sparring.backend.vllm.engine import Engine, start_vllm
from sparring.backend.vllm.files import WeightsFile, WeightsFolder
from sparring.backend.vllm.reaper import Reaper
from sparring.backend.vllm.replicas import Replicas
from sparring.backend.vllm.routing import blocks
from sparring.backend.vllm.settings import ServedModel, VllmSettings, engine_options, patience, refuse_unserved
from sparring.errors import BackendError, ContextFull, SettingError

INSTALLING = 240.0
"""Seconds that vLLM may take to load a version and to draw what it is compared by, a restart of the engine included."""

BLOCK_ON_CPU, BLOCK = 128, 16
"""Tokens whose keys and values vLLM caches together."""

DRAINING = 1800.0
"""The same where a version is all weights, and requests of another have to end before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What every engine draws with a new version; `check` raises `BackendError` where it is not what it should be."""

    prompt: I32
    params: SamplingParams
    check: Callable[[SampledSequence], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmStatistics:
    """How a sampler stands: versions that vLLM may be asked for, requests under way, how often an engine died, engines that
    requests go to, engines that left."""

    versions: int
    requests: int
    died: int
    replicas: int
    left: int


class VllmSampler:
    """Draws from adapters on one base, or from all weights in its place. `start` and `close` block; requests may come from any
    thread."""

    def __init__(
        self,
        model: ServedModel,
        post: Post,
        settings: VllmSettings,
        *,
        parent: Path | None = None,
        start_engine: Callable[[Mapping[str, Any]], Engine] = start_vllm,
    ) -> None:
        self._model, self._post, self._settings = model, post, settings
        self._block = BLOCK_ON_CPU if model.on_cpu else BLOCK
        self._replicas = Replicas(
            [partial(start_engine, engine_options(settings, model, replica=i)) for i in range(settings.replicas)],
            stuck_after=patience(settings, model),
            restarts=settings.restarts,
            remembered=max(1, settings.cache_tokens // self._block),
            started=self._watch,
        )
        self._reaper: Reaper | None = None
        self._parent = parent
        self._patience = INSTALLING if settings.max_lora_rank is not None else DRAINING
        self._files: WeightsFolder | None = None
        self._books = threading.Lock()
        self._requests: Counter[WeightsFile] = Counter()
        self._kept: set[WeightsFile] = set()
        self._retired: set[WeightsFile] = set()

    @property
    def replicas(self) -> Replicas:
        """What runs the engines."""
        return self._replicas

    def start(self) -> None:
        """Start vLLM. Raises `SettingError` where it is missing, `BackendError` where it does not start."""
        self._files = WeightsFolder(self._parent)
        self._reaper = Reaper()
        self._watch(())
        try:
            self._replicas.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End requests and processes, remove files."""
        self._replicas.close()
        if self._files is not None and self._reaper is not None:
            self._files.close()
            self._reaper.close()
            self._files = self._reaper = None

    def _watch(self, processes: tuple[int, ...]) -> None:
        """Have these processes and the files gone even where this process is killed."""
        assert self._files is not None and self._reaper is not None
        self._reaper.watch(processes, self._files.path)

    def statistics(self) -> VllmStatistics:
        """How it stands; read from any thread."""
        with self._books:
            versions, requests = len(self._kept), self._requests.total()
        engines = self._replicas
        return VllmStatistics(
            versions=versions,
            requests=requests,
            died=engines.died,
            replicas=len(engines.rotation),
            left=engines.left,
        )

    def check(self, lora: Lora | None) -> None:
        """Raises `UnsupportedError` or `SettingError` for a model that this engine cannot serve."""
        refuse_unserved(lora)
        most = self._settings.max_lora_rank
        assert (lora is None) == (most is None), "adapters and all weights are served by engines of their own"
        if lora is not None and most is not None and lora.rank > most:
            raise SettingError(
                f"lora.rank={lora.rank!r}: vLLM was started for ranks up to {most}, by the first "
                "model on this base; create the one with the largest rank first"
            )

    # ------------------------------------------------------------------------------------------------ versions

    def install(self, files: Mapping[str, bytes], probe: Probe) -> WeightsFile:
        """Send a version's files to every engine, and have a sequence drawn with it there; blocks until that is done. Raises
        `BackendError` where no engine takes it. See `Replicas` for where some do."""
        assert self._files is not None
        sent = self._files.write(files)
        with self._books:
            self._kept.add(sent)
        fields, ids = vllm_params(probe.params, 1), probe.prompt.tolist()

        async def load_and_draw(engine: Engine) -> Any:
            await engine.load(sent)
            return await engine.generate(ids, fields, sent)

        try:
            self._replicas.install(
                load_and_draw,
                lambda output: probe.check(sampled(output, probe.params, 1, version=0)[0]),
                within=self._patience,
            )
        except BaseException:
            self.retire(sent)
            raise
        return sent

    def open(self, weights: WeightsFile, *, version: int, release: Callable[[], None]) -> SamplingClient:
        """A client of a version that was sent."""
        return VllmSamplingClient(self, weights, version=version, release=release)

    def retire(self, weights: WeightsFile) -> None:
        """Unload a version and remove its files, once the last request that names it has ended."""
        with self._books:
            self._retired.add(weights)
        self._forget_if_idle(weights)

    # ------------------------------------------------------------------------------------------------ requests

    def request(
        self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, weights: WeightsFile, version: int
    ) -> Request[list[SampledSequence]]:
        """Check a request and hand it to vLLM. Raises `SettingError` and `ContextFull` as `SamplingClient.sample` says."""
        tokens = checked_tokens(prompt, self._model.vocabulary)
        check_request(tokens, params, n, self._model.context_length)
        return self._ask(
            "sample", tokens, vllm_params(params, n), weights, lambda output: sampled(output, params, n, version)
        )

    def scores(self, tokens: Sequence[int] | I32, *, weights: WeightsFile) -> Request[F32]:
        """Check a sequence and let vLLM score it."""
        ids = checked_tokens(tokens, self._model.vocabulary)
        if len(ids) > self._model.context_length:
            raise ContextFull(f"{len(ids)} tokens do not fit into a context of {self._model.context_length}")
        return self._ask("logprobs", ids, SCORING, weights, lambda output: scored(output, len(ids)))

    def _ask(
        self, name: str, tokens: I32, params: dict[str, Any], weights: WeightsFile, read: Callable[[Any], Any]
    ) -> Request[Any]:
        ids, chain = tokens.tolist(), blocks(tokens, weights.name, self._block)
        with self._books:
            self._requests[weights] += 1
        try:
            future = self._replicas.submit(
                lambda engine: engine.generate(ids, params, weights), chain=chain, work=params.get("n", 1)
            )
        except BaseException:
            self._ended(weights)
            raise
        return Request(name, self._post, future, read=read, done=lambda: self._ended(weights))

    def _ended(self, weights: WeightsFile) -> None:
        with self._books:
            self._requests[weights] -= 1
        self._forget_if_idle(weights)

    def _forget_if_idle(self, weights: WeightsFile) -> None:
        with self._books:
            if weights not in self._retired or self._requests[weights] > 0:
                return
            self._retired.discard(weights)
            self._kept.discard(weights)
            del self._requests[weights]
        try:
            self._replicas.everywhere(lambda engine: engine.unload(weights), then=lambda: self._remove(weights))
        except BackendError:
            return  # it is closed, and with it everything goes

    def _remove(self, weights: WeightsFile) -> None:
        if self._files is not None:
            self._files.remove(weights)
