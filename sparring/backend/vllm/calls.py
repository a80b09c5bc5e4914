"""What asks vLLM: one engine, and what is asked of it. Imported when an engine is started, never before; only `transfer`, which
runs inside vLLM, imports vLLM too."""

# vLLM is not where types are checked: what comes from it is Any.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportUnknownParameterType=false

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any
from uuid import uuid4

from psutil import NoSuchProcess, Process, wait_procs
from vllm import SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from sparring.backend.vllm.engine import EngineDied
from sparring.backend.vllm.files import WEIGHTS, WeightsFile
from sparring.backend.vllm.turns import Turns
from sparring.errors import BackendError

_NAME = "EngineCore"


class AsyncEngine(ABC):
    """vLLM's `AsyncLLM` and the processes that it started. Made and used on one asyncio loop; see `Engine`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        before = {process.pid for process in multiprocessing.active_children()}
        self._made: AsyncLLM | None = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
        started = [p for p in multiprocessing.active_children() if p.pid not in before and p.name.startswith(_NAME)]
        self._processes = [Process(process.pid) for process in started]

    @property
    def processes(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._family())

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
    async def load(self, weights: WeightsFile) -> None: ...
    @abstractmethod
    async def unload(self, weights: WeightsFile) -> None: ...

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
        _kill(self._family())

    def shut(self) -> None:
        if self._made is None:
            return
        family = self._family()
        self._made.shutdown(timeout=5.0)
        _kill(family)
        multiprocessing.active_children()  # takes note of those that ended
        self._made.engine_core.resources.ctx.destroy(linger=0)
        self._made = None  # shut once more when freed, at the interpreter's end, it would fail
        gc.collect()

    def _family(self) -> list[Process]:
        """The processes and all that they started."""
        found = list(self._processes)
        for process in self._processes:
            try:
                found += process.children(recursive=True)
            except NoSuchProcess:
                continue
        return found


class AdapterEngine(AsyncEngine):
    """Versions are adapters, any number of them in one batch."""

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any:
        return await self._generate(tokens, params, _request(weights))

    async def load(self, weights: WeightsFile) -> None:
        await self._call(self._llm.add_lora(_request(weights)))

    async def unload(self, weights: WeightsFile) -> None:
        await self._call(self._llm.remove_lora(weights.number))


class WholeEngine(AsyncEngine):
    """Versions are all weights, of which vLLM holds one set: they take turns."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._turns = Turns(self._replace)

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any:
        async with self._turns.of(weights):
            output = await self._generate(tokens, params, None)
        drawn = {span.version for one in output.outputs for span in one.weight_versions}
        if drawn != {weights.name}:
            raise BackendError(f"vLLM drew with weights {sorted(drawn)!r} what was asked of {weights.name!r}")
        return output

    async def load(self, weights: WeightsFile) -> None:
        """They come when it is their turn."""

    async def unload(self, weights: WeightsFile) -> None:
        """What is installed is replaced by what comes next."""

    async def _replace(self, weights: WeightsFile) -> None:
        """Install weights where nothing is drawn; what is cached of others goes. An engine that does not take them is ended,
        since nobody knows what it holds then. Raises `BackendError`."""
        update = WeightTransferUpdateRequest(update_info={"path": str(weights.folder / WEIGHTS)})
        try:
            await self._call(self._llm.pause_generation(mode="keep", clear_cache=True))
            await self._call(self._llm.start_weight_update())
            await self._call(self._llm.update_weights(update))
            await self._call(self._llm.finish_weight_update(weight_version=weights.name))
            await self._call(self._llm.resume_generation())
        except EngineDied:
            raise
        except Exception as error:
            self.kill()
            raise BackendError(f"vLLM did not take the weights: {error}; its own messages are above") from error


def start_engine(options: Mapping[str, Any]) -> AsyncEngine:
    """An engine for adapters, where `options` say so, or for all weights."""
    return AdapterEngine(options) if options["enable_lora"] else WholeEngine(options)


def _request(weights: WeightsFile) -> LoRARequest:
    return LoRARequest(lora_name=weights.name, lora_int_id=weights.number, lora_path=str(weights.folder))


def _kill(processes: Sequence[Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except NoSuchProcess:
            continue
    wait_procs(processes, timeout=10)
