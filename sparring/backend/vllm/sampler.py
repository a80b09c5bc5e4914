"""A base model served by vLLM: versions go in as adapters, sampling clients come out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.arrays import F32, I32
from sparring.backend.check_request import check_request, checked_tokens
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm.adapters import AdapterFile, AdapterFolder
from sparring.backend.vllm.asked import Post, Request, failure
from sparring.backend.vllm.client import VllmSamplingClient
from sparring.backend.vllm.convert import SCORING, sampled, scored, vllm_params
from sparring.backend.vllm.engine import Engine, VllmThread, start_vllm
from sparring.backend.vllm.reaper import Reaper
from sparring.backend.vllm.settings import ServedModel, VllmSettings, engine_options, patience, refuse_unserved
from sparring.errors import BackendError, ContextFull, SettingError

INSTALLING = 120.0
"""Seconds that vLLM may take to load an adapter or to draw what it is compared by, a restart of the engine included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmStatistics:
    """How a sampler stands: adapters that vLLM may be asked for, requests under way, engines that died."""

    adapters: int
    requests: int
    died: int


class VllmSampler:
    """Draws from adapters on one base, in vLLM. `start` and `close` block; requests may come from any thread."""

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
        options = engine_options(settings, model)
        self._thread = VllmThread(
            lambda: start_engine(options),
            stuck_after=patience(settings, model),
            restarts=settings.restarts,
            started=self._watch,
        )
        self._reaper: Reaper | None = None
        self._parent = parent
        self._files: AdapterFolder | None = None
        self._books = threading.Lock()
        self._requests: Counter[AdapterFile] = Counter()
        self._kept: set[AdapterFile] = set()
        self._retired: set[AdapterFile] = set()

    @property
    def thread(self) -> VllmThread:
        """What runs the engine."""
        return self._thread

    def start(self) -> None:
        """Start vLLM. Raises `SettingError` where it is missing, `BackendError` where it does not start."""
        self._files = AdapterFolder(self._parent)
        self._reaper = Reaper()
        self._watch(())
        try:
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End requests and processes, remove files."""
        self._thread.close()
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
            return VllmStatistics(adapters=len(self._kept), requests=self._requests.total(), died=self._thread.died)

    def check(self, lora: Lora | None) -> None:
        """Raises `UnsupportedError` or `SettingError` for a model that this engine cannot serve."""
        refuse_unserved(lora)
        assert lora is not None
        if lora.rank > self._settings.max_lora_rank:
            raise SettingError(
                f"lora.rank={lora.rank!r}: vLLM was started for ranks up to {self._settings.max_lora_rank}, by the first "
                "model on this base; create the one with the largest rank first"
            )

    # ------------------------------------------------------------------------------------------------ versions

    def install(self, files: Mapping[str, bytes]) -> AdapterFile:
        """Send an adapter in PEFT's files to vLLM; blocks until it is loaded. Raises `BackendError` where it is not."""
        assert self._files is not None
        sent = self._files.write(files)
        with self._books:
            self._kept.add(sent)
        try:
            self._wait("publish", self._thread.submit(lambda engine: engine.load(sent)))
        except BaseException:
            self.retire(sent)
            raise
        return sent

    def draw_now(self, prompt: I32, params: SamplingParams, adapter: AdapterFile) -> SampledSequence:
        """Draw one sequence; blocks until it is there."""
        fields, ids = vllm_params(params, 1), prompt.tolist()
        output = self._wait("publish", self._thread.submit(lambda engine: engine.generate(ids, fields, adapter)))
        return sampled(output, params, 1, version=0)[0]

    def open(self, adapter: AdapterFile, *, version: int, release: Callable[[], None]) -> SamplingClient:
        """A client of an adapter that was sent."""
        return VllmSamplingClient(self, adapter, version=version, release=release)

    def retire(self, adapter: AdapterFile) -> None:
        """Unload an adapter and remove its files, once the last request that names it has ended."""
        with self._books:
            self._retired.add(adapter)
        self._forget_if_idle(adapter)

    # ------------------------------------------------------------------------------------------------ requests

    def request(
        self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, adapter: AdapterFile, version: int
    ) -> Request[list[SampledSequence]]:
        """Check a request and hand it to vLLM. Raises `SettingError` and `ContextFull` as `SamplingClient.sample` says."""
        tokens = checked_tokens(prompt, self._model.vocabulary)
        check_request(tokens, params, n, self._model.context_length)
        return self._ask(
            "sample", tokens, vllm_params(params, n), adapter, lambda output: sampled(output, params, n, version)
        )

    def scores(self, tokens: Sequence[int] | I32, *, adapter: AdapterFile) -> Request[F32]:
        """Check a sequence and let vLLM score it."""
        ids = checked_tokens(tokens, self._model.vocabulary)
        if len(ids) > self._model.context_length:
            raise ContextFull(f"{len(ids)} tokens do not fit into a context of {self._model.context_length}")
        return self._ask("logprobs", ids, SCORING, adapter, lambda output: scored(output, len(ids)))

    def _ask(
        self, name: str, tokens: I32, params: dict[str, Any], adapter: AdapterFile, read: Callable[[Any], Any]
    ) -> Request[Any]:
        ids = tokens.tolist()
        with self._books:
            self._requests[adapter] += 1
        try:
            future = self._thread.submit(lambda engine: engine.generate(ids, params, adapter))
        except BaseException:
            self._ended(adapter)
            raise
        return Request(name, self._post, future, read=read, done=lambda: self._ended(adapter))

    def _ended(self, adapter: AdapterFile) -> None:
        with self._books:
            self._requests[adapter] -= 1
        self._forget_if_idle(adapter)

    def _forget_if_idle(self, adapter: AdapterFile) -> None:
        with self._books:
            if adapter not in self._retired or self._requests[adapter] > 0:
                return
            self._retired.discard(adapter)
            self._kept.discard(adapter)
            del self._requests[adapter]
        try:
            unloading = self._thread.submit(lambda engine: engine.unload(adapter))
        except BackendError:
            return  # it is closed, and with it everything goes
        unloading.add_done_callback(lambda _: self._remove(adapter))

    def _remove(self, adapter: AdapterFile) -> None:
        if self._files is not None:
            self._files.remove(adapter)

    def _wait(self, name: str, future: Future[Any]) -> Any:
        try:
            return future.result(timeout=INSTALLING)
        except TimeoutError as error:
            future.cancel()
            raise BackendError(f"{name}: vLLM did not answer within {INSTALLING:.0f} s") from error
        except Exception as error:
            raise failure(name, error) from error
