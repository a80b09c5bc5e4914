"""What asks vLLM: one engine, and what is asked of it. Imported when an engine is started, never before; only `transfer`, which
runs inside vLLM, imports vLLM too."""

# vLLM is not where types are checked: what comes from it is Any.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUnknownParameterType=false

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from sparring.backend.vllm.errors import EngineDied
from sparring.backend.vllm.files import WEIGHTS, WeightsFile
from sparring.backend.vllm.following import Followed, label, version_in
from sparring.backend.vllm.processes import begun, computed, family, kill, started_within
from sparring.backend.vllm.turns import Turns
from sparring.errors import BackendError

_NAME = "EngineCore"


class AsyncEngine(ABC):
    """vLLM's `AsyncLLM` and the processes that it started. Made and used on one asyncio loop; see `Engine`."""

    def __init__(self, options: Mapping[str, Any], within: float) -> None:
        before = frozenset(child.pid for child in multiprocessing.active_children() if child.pid is not None)
        try:
            with started_within(within, lambda: begun(_NAME, besides=before)):
                self._made: AsyncLLM | None = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        except BaseException as error:
            _free(error)
            raise
        self._processes = begun(_NAME, besides=before)
        self._followed: dict[int, WeightsFile] = {}

    @property
    def processes(self) -> tuple[int, ...]:
        return tuple(process.pid for process in family(self._processes))

    @property
    def computed(self) -> float:
        return computed(family(self._processes))

    @property
    def drawing(self) -> int:
        made = self._made
        if made is None:
            return 0
        states = list(made.output_processor.request_states.values())  # at once: it is read on any thread
        return sum(state.detokenizer.num_output_tokens() for state in states)

    @property
    def _llm(self) -> AsyncLLM:
        if self._made is None:
            raise EngineDied
        return self._made

    @property
    def dead(self) -> bool:
        return self._made is None or bool(self._made.errored)

    async def warm_up(self) -> None:
        await self._generate([0], {"max_tokens": 2, "seed": 0, "logprobs": 0}, None)

    @abstractmethod
    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any: ...
    @abstractmethod
    async def follow(self, tokens: Sequence[int], params: Mapping[str, Any], source: Followed) -> Any: ...
    @abstractmethod
    async def load(self, weights: WeightsFile) -> None: ...
    @abstractmethod
    async def move(self, source: Followed, weights: WeightsFile) -> None: ...
    @abstractmethod
    async def unload(self, weights: WeightsFile | Followed) -> None: ...

    async def _generate(self, tokens: Sequence[int], params: Mapping[str, Any], request: LoRARequest | None) -> Any:
        given = SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = {"prompt_token_ids": list(tokens)}
        output: Any = None
        try:
            async for part in self._llm.generate(prompt, given, uuid4().hex, lora_request=request):
                output = part
        except EngineDeadError as error:
            raise EngineDied from error
        return output

    def _behind(self, source: Followed, weights: WeightsFile) -> bool:
        """Whether this engine has older weights of the source, or none."""
        known = self._followed.get(source.number)
        return known is None or known.number < weights.number

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Nothing is drawn inside, and nothing is cached any more; what is under way goes on after it, its context computed
        anew. Where the block fails the engine is ended, since nobody knows what it holds then. Raises `BackendError`."""
        try:
            await self._call(self._llm.pause_generation(mode="keep", clear_cache=True))
            yield
            await self._call(self._llm.resume_generation())
        except EngineDied:
            raise
        except Exception as error:
            self.kill()
            raise BackendError(f"vLLM did not take the weights: {error}; its own messages are above") from error

    async def answer(self) -> None:
        await self._call(self._llm.is_paused())

    async def _call(self, call: Coroutine[Any, Any, Any]) -> None:
        """Await a call that vLLM would leave unanswered for ever if the engine died meanwhile; the task that hands out what the
        engine says ends then."""
        asked = asyncio.ensure_future(call)
        try:
            await asyncio.wait({asked, self._llm.output_handler}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise EngineDied
            await asked
        except EngineDeadError as error:
            raise EngineDied from error
        finally:
            asked.cancel()

    def kill(self) -> None:
        kill(family(self._processes))

    def shut(self) -> None:
        if self._made is None:
            return
        there = family(self._processes)
        self._made.shutdown(timeout=5.0)
        kill(there)
        multiprocessing.active_children()  # takes note of those that ended
        self._made.engine_core.resources.ctx.destroy(linger=0)
        self._made = None  # shut once more when freed, at the interpreter's end, it would fail
        gc.collect()


def _free(error: BaseException | None) -> None:
    """A vLLM that does not start leaves its zmq context open, with two threads, and only the frames of what it raised hold it:
    closed now, not when something else happens to be collected, which would warn of it then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()


class AdapterEngine(AsyncEngine):
    """Versions are adapters, any number of them in one batch; a model that is followed is one that is read anew."""

    def __init__(self, options: Mapping[str, Any], within: float) -> None:
        super().__init__(options, within)
        self._grouped = "worker_extension_cls" in options
        self._name = uuid4().hex
        self._moving = asyncio.Lock()
        self._moves: set[asyncio.Task[None]] = set()

    async def warm_up(self) -> None:
        if self._grouped:
            await self._call(self._llm.collective_rpc("group_adapters"))
        await super().warm_up()

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any:
        return await self._generate(tokens, params, _request(weights.name, weights.number, weights.folder))

    async def follow(self, tokens: Sequence[int], params: Mapping[str, Any], source: Followed) -> Any:
        await self.move(source, source.now)
        return await self._generate(tokens, params, _request(source.name, source.number, source.link(self._name)))

    async def load(self, weights: WeightsFile) -> None:
        await self._call(self._llm.add_lora(_request(weights.name, weights.number, weights.folder)))

    async def move(self, source: Followed, weights: WeightsFile) -> None:
        if self._behind(source, weights):
            moving = asyncio.create_task(self._reload(source, weights))
            self._moves.add(moving)
            moving.add_done_callback(self._moves.discard)
            await asyncio.shield(moving)  # whoever waits may be cancelled; a pause comes to its end

    async def unload(self, weights: WeightsFile | Followed) -> None:
        self._followed.pop(weights.number, None)
        await self._call(self._llm.remove_lora(weights.number))

    async def _reload(self, source: Followed, weights: WeightsFile) -> None:
        async with self._moving:
            if not self._behind(source, weights):
                return
            async with self._paused():
                source.point(self._name, weights)
                request = _request(source.name, source.number, source.link(self._name), load_inplace=True)
                await self._call(self._llm.add_lora(request))
                self._followed[source.number] = weights
                versions = {number: followed.version for number, followed in self._followed.items()}
                await self._call(self._llm.update_weight_version(label(versions)))


class WholeEngine(AsyncEngine):
    """Versions are all weights, of which vLLM holds one set: they take turns. What follows a model goes on in the middle."""

    def __init__(self, options: Mapping[str, Any], within: float) -> None:
        super().__init__(options, within)
        self._turns = Turns(self._replace)

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any:
        async with self._turns.of(lambda: weights):
            output = await self._generate(tokens, params, None)
        for span in (span for one in output.outputs for span in one.weight_versions):
            version_in(span.version, weights.number)
        return output

    async def follow(self, tokens: Sequence[int], params: Mapping[str, Any], source: Followed) -> Any:
        if self._behind(source, source.now):
            self._followed[source.number] = source.now
        async with self._turns.of(lambda: self._followed[source.number], follower=source.number):
            return await self._generate(tokens, params, None)

    async def load(self, weights: WeightsFile) -> None:
        """They come when it is their turn."""

    async def move(self, source: Followed, weights: WeightsFile) -> None:
        if self._behind(source, weights):
            self._followed[source.number] = weights
            await self._turns.move(lambda: self._followed[source.number], follower=source.number)

    async def unload(self, weights: WeightsFile | Followed) -> None:
        """What is installed is replaced by what comes next."""
        self._followed.pop(weights.number, None)

    async def _replace(self, weights: WeightsFile) -> None:
        """Install weights, where nothing is drawn but what goes on with them."""
        update = WeightTransferUpdateRequest(update_info={"path": str(weights.folder / WEIGHTS)})
        async with self._paused():
            await self._call(self._llm.start_weight_update())
            await self._call(self._llm.update_weights(update))
            version = label({weights.number: weights.version})
            await self._call(self._llm.finish_weight_update(weight_version=version))


def start_engine(options: Mapping[str, Any], *, within: float) -> AsyncEngine:
    """An engine for adapters, where `options` say so, or for all weights. Raises `EngineStuck` where it takes longer
    than `within` seconds."""
    return AdapterEngine(options, within) if options["enable_lora"] else WholeEngine(options, within)


def _request(name: str, number: int, path: Path, *, load_inplace: bool = False) -> LoRARequest:
    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(path), load_inplace=load_inplace)
