"""A base model served by vLLM: versions go in as files, sampling clients come out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from sparring.arrays import F32, I32
from sparring.backend.check_request import check_request, checked_options, checked_tokens
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm.asked import Post, Request
from sparring.backend.vllm.client import VllmSamplingClient
from sparring.backend.vllm.convert import SCORING, Source, sampled, scored, vllm_params
from sparring.backend.vllm.engine import Engine, start_vllm
from sparring.backend.vllm.files import WeightsFile, WeightsFolder
from sparring.backend.vllm.following import Followed
from sparring.backend.vllm.reaper import Reaper
from sparring.backend.vllm.replicas import Replicas
from sparring.backend.vllm.routing import blocks
from sparring.backend.vllm.settings import (
    ServedModel,
    VllmSettings,
    block_size,
    engine_options,
    patience,
    refuse_unserved,
)
from sparring.errors import BackendError, ContextFull, SettingError, SparringError

INSTALLING = 240.0
"""Seconds that vLLM may take to load a version and to draw what it is compared by, a restart of the engine included."""

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
    """How a sampler stands.

    versions  versions that vLLM may be asked for
    requests  requests under way
    drawn     tokens drawn for requests that vLLM has answered
    drawing   tokens drawn so far for those under way; it moves as long as vLLM draws, and not where an engine is stuck
    died      how often an engine was found dead or stuck
    replicas  engines that requests go to
    left      engines that left
    """

    versions: int
    requests: int
    drawn: int
    drawing: int
    died: int
    replicas: int
    left: int


class StartEngine(Protocol):
    """Starts an engine; see `start_vllm`."""

    def __call__(self, options: Mapping[str, Any], *, within: float, mark: str) -> Engine: ...


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
        start_engine: StartEngine = start_vllm,
    ) -> None:
        self._model, self._post, self._settings = model, post, settings
        self._block = block_size(model)
        self._mark = uuid4().hex
        start = partial(start_engine, within=settings.start_within, mark=self._mark)
        self._replicas = Replicas(
            [partial(start, engine_options(settings, model, replica=i)) for i in range(settings.replicas)],
            stuck_after=patience(settings, model),
            restarts=settings.restarts,
            start_within=settings.start_within,
            remembered=max(1, settings.cache_tokens // self._block),
            started=self._watch,
        )
        self._reaper: Reaper | None = None
        self._parent = parent
        self._patience = INSTALLING if settings.max_lora_rank is not None else DRAINING
        self._files: WeightsFolder | None = None
        self._books = threading.Lock()
        self._holds: Counter[Source] = Counter()
        self._requests = self._drawn = 0
        self._kept: set[WeightsFile] = set()
        self._retired: set[Source] = set()

    @property
    def replicas(self) -> Replicas:
        """What runs the engines."""
        return self._replicas

    def start(self) -> None:
        """Start vLLM. Raises `SettingError` where it is missing, `BackendError` where it does not start."""
        self._files = WeightsFolder(self._parent)
        self._reaper = Reaper(self._mark)
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
            versions, requests, drawn = len(self._kept), self._requests, self._drawn
        engines = self._replicas
        return VllmStatistics(
            versions=versions,
            requests=requests,
            drawn=drawn,
            drawing=engines.drawing,
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

    def install(
        self, files: Mapping[str, bytes], probe: Probe, *, version: int, source: Followed | None = None
    ) -> WeightsFile:
        """Send a version's files to every engine, and have a sequence drawn with it there; what follows `source` goes on with
        it, and is drawn from too. Blocks until that is done. Raises `BackendError` where no engine takes it; nothing that
        follows is drawn any more then. See `Replicas` for where some do."""
        assert self._files is not None
        sent = self._files.write(files, version=version)
        with self._books:
            self._kept.add(sent)
        try:
            if source is None or self._settings.max_lora_rank is not None:
                self._install(sent, probe)
            if source is not None:
                self._move(source, sent, probe)
        except BaseException as error:
            if source is not None and isinstance(error, SparringError):
                source.failed = error
            self.retire(sent)
            raise
        return sent

    def follow(self, weights: WeightsFile) -> Followed:
        """Have every engine begin to follow a model, with these weights; blocks until that is done."""
        assert self._files is not None
        name, number = self._files.reserve()
        whole = self._settings.max_lora_rank is None
        source = Followed(name=name, number=number, folder=self._files.path, whole=whole, now=weights)
        self._hold(weights)
        try:
            self._replicas.install(lambda engine: engine.move(source, weights), _anything, within=self._patience)
        except BaseException:
            self.retire(source)
            raise
        return source

    def open(self, source: Source, *, release: Callable[[], None]) -> SamplingClient:
        """A client of a version that was sent, or of a model that is followed."""
        return VllmSamplingClient(self, source, release=release)

    def retire(self, source: Source) -> None:
        """Unload a version and remove its files, or follow a model no more, once the last request that names it has ended."""
        with self._books:
            self._retired.add(source)
        self._forget_if_idle(source)

    def _install(self, sent: WeightsFile, probe: Probe) -> None:
        fields, ids = vllm_params(probe.params, 1), probe.prompt.tolist()

        async def load_and_draw(engine: Engine) -> Any:
            await engine.load(sent)
            return await engine.generate(ids, fields, sent)

        def check(output: Any) -> None:
            probe.check(sampled(output, probe.params, 1, sent)[0])

        self._replicas.install(load_and_draw, check, within=self._patience)

    def _move(self, source: Followed, sent: WeightsFile, probe: Probe) -> None:
        fields, ids = vllm_params(probe.params, 1), probe.prompt.tolist()

        async def move_and_draw(engine: Engine) -> Any:
            await engine.move(source, sent)
            return await engine.follow(ids, fields, source)

        def check(output: Any) -> None:
            (sample,) = sampled(output, probe.params, 1, source)
            if sample.versions != ((sent.version, len(sample.tokens)),):
                raise BackendError(f"vLLM stamped {sample.versions!r} what it drew with version {sent.version}")
            probe.check(sample)

        self._replicas.install(move_and_draw, check, within=self._patience)
        self._hold(sent)
        before, source.now = source.now, sent
        self._let_go(before)

    # ------------------------------------------------------------------------------------------------ requests

    def request(
        self, prompt: Sequence[int] | I32, params: SamplingParams, n: int, *, source: Source
    ) -> Request[list[SampledSequence]]:
        """Check a request and hand it to vLLM. Raises `SettingError` and `ContextFull` as `SamplingClient.sample` says."""
        tokens = checked_tokens(prompt, self._model.vocabulary)
        check_request(tokens, params, n, self._model.context_length)

        def read(output: Any) -> list[SampledSequence]:
            _refuse_failed(source)
            return sampled(output, params, n, source)

        _refuse_failed(source)
        return self._ask("sample", tokens, vllm_params(params, n), source, read)

    def scores(self, tokens: Sequence[int] | I32, *, source: Source) -> Request[F32]:
        """Check a sequence and let vLLM score it, with one version from its beginning to its end."""
        ids = checked_tokens(tokens, self._model.vocabulary)
        if len(ids) > self._model.context_length:
            raise ContextFull(f"{len(ids)} tokens do not fit into a context of {self._model.context_length}")
        return self._ask("logprobs", ids, SCORING, _standing(source), lambda output: scored(output, len(ids)))

    def options(
        self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32], *, source: Source
    ) -> list[Request[float]]:
        """Check options and let vLLM score each, all with the same version."""
        start, checked = checked_options(prompt, options, self._model.vocabulary, self._model.context_length)
        weights = _standing(source)

        def ask(option: I32) -> Request[float]:
            ids = np.concatenate([start, option])
            return self._ask(
                "options", ids, SCORING, weights, lambda output: float(scored(output, len(ids))[len(start) :].sum())
            )

        return [ask(option) for option in checked]

    def _ask(
        self, name: str, tokens: I32, params: dict[str, Any], source: Source, read: Callable[[Any], Any]
    ) -> Request[Any]:
        ids, chain = tokens.tolist(), blocks(tokens, _cached_as(source), self._block)

        async def ask(engine: Engine) -> Any:
            if isinstance(source, Followed):
                output = await engine.follow(ids, params, source)
            else:
                output = await engine.generate(ids, params, source)
            with self._books:
                self._drawn += sum(len(one.token_ids) for one in output.outputs)
            return output

        def done() -> None:
            with self._books:
                self._requests -= 1
            self._let_go(source)

        self._hold(source)
        with self._books:
            self._requests += 1
        try:
            future = self._replicas.submit(ask, chain=chain, work=params.get("n", 1))
        except BaseException:
            done()
            raise
        return Request(name, self._post, future, read=read, done=done)

    # ------------------------------------------------------------------------------------------------ who needs what

    def _hold(self, source: Source) -> None:
        """It stays until it is let go as often as it was held, retired or not."""
        with self._books:
            self._holds[source] += 1

    def _let_go(self, source: Source) -> None:
        with self._books:
            self._holds[source] -= 1
        self._forget_if_idle(source)

    def _forget_if_idle(self, source: Source) -> None:
        with self._books:
            if source not in self._retired or self._holds[source] > 0:
                return
            self._retired.discard(source)
            del self._holds[source]
            if isinstance(source, WeightsFile):
                self._kept.discard(source)
        self._replicas.everywhere(lambda engine: engine.unload(source), then=lambda: self._remove(source))

    def _remove(self, source: Source) -> None:
        if isinstance(source, Followed):
            source.forget()
            self._let_go(source.now)
        elif (files := self._files) is not None:
            files.remove(source)


def _cached_as(source: Source) -> str:
    """Under which name vLLM keeps keys and values."""
    return source.name if isinstance(source, WeightsFile) else f"{source.name} {source.now.name}"


def _standing(source: Source) -> WeightsFile:
    """The version that it is now."""
    return source.now if isinstance(source, Followed) else source


def _refuse_failed(source: Source) -> None:
    if isinstance(source, Followed) and source.failed is not None:
        raise BackendError(f"what follows the model is drawn no more: {source.failed}") from source.failed


def _anything(answer: None) -> None:
    """Every answer will do."""
