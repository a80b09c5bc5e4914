"""A base in vLLM with scripted engines in its place: when a version's files come and go, what its requests are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SampledSequence, SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm import Probe, ServedModel, VllmSampler, VllmSettings
from sparring.backend.vllm.engine import Engine
from sparring.errors import BackendError, SettingError
from tests.backend.scripted_engine import Output, Scripted, completion

FILES = {"model.safetensors": b"weights"}
PARAMS = SamplingParams(max_tokens=2)


class Told:
    """Nobody waits on an event loop: what they would be told, in order."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.errors: list[BaseException] = []

    def succeed(self, pending: PendingResult[Any], value: Any) -> None:
        self.values.append(value)

    def fail(self, pending: PendingResult[Any], error: BaseException) -> None:
        self.errors.append(error)


def two_tokens(prompt: Sequence[int]) -> Output:
    return Output([completion(0, [5, 6], [-1.0, -2.0])])


@contextmanager
def served(
    tmp_path: Path, *engines: Scripted, rank: int | None = None, replicas: int | None = None, told: Told | None = None
) -> Iterator[VllmSampler]:
    """A sampler whose engines are these: each a replica, or the first few of them, the others in place of those that die."""
    waiting, count = list(engines), replicas or len(engines)
    started: list[Mapping[str, Any]] = []

    def start_engine(options: Mapping[str, Any], *, within: float, mark: str) -> Engine:
        assert within == 600 and len(mark) == 32
        started.append(options)
        return waiting.pop(0)

    model = ServedModel(
        folder=tmp_path,
        adapted=("q_proj",),
        context_length=256,
        vocabulary=100,
        dtype="float32",
        on_cpu=False,
        token_bytes=64,
        gpus=2,
    )
    settings = VllmSettings(max_loras=2, max_lora_rank=rank, slots=4, replicas=count)
    sampler = VllmSampler(model, told or Told(), settings, parent=tmp_path, start_engine=start_engine)
    sampler.start()
    try:
        assert [options.get("device_ids") for options in started] == ([None] if count == 1 else [[0], [1], [0]][:count])
        yield sampler
    finally:
        sampler.close()
    assert list(tmp_path.iterdir()) == []
    assert all(engine.was_shut for engine in engines)


def probe(check: Callable[[SampledSequence], None] = lambda sample: None) -> Probe:
    return Probe(prompt=np.array([1, 2, 3], np.int32), params=PARAMS, check=check)


def scripted(**script: Any) -> Scripted:
    return Scripted(answer=two_tokens, **script)


def settle(sampler: VllmSampler) -> None:
    """Everything that was asked before has been answered."""
    for thread in sampler.replicas.threads:
        thread.submit(lambda engine: engine.answer()).result(60)


def test_a_version_is_with_every_engine_until_its_last_request_has_ended(tmp_path: Path) -> None:
    engines = [scripted(hangs=9), scripted(hangs=9), scripted(hangs=9)]
    seen: list[list[int]] = []
    with served(tmp_path, *engines) as sampler:
        sent = sampler.install(FILES, probe(lambda sample: seen.append(sample.tokens.tolist())), version=0)
        assert seen == [[5, 6]] * 3 and [engine.loaded for engine in engines] == [{sent.number}] * 3
        assert {path.name: path.read_bytes() for path in sent.folder.iterdir()} == FILES
        request = sampler.request([9, 9], PARAMS, 1, source=sent)
        sampler.retire(sent)
        settle(sampler)
        assert sent.folder.is_dir() and [engine.loaded for engine in engines] == [{sent.number}] * 3
        assert (sampler.statistics().versions, sampler.statistics().requests) == (1, 1)
        request.cancel()
        settle(sampler)
        assert [engine.loaded for engine in engines] == [set()] * 3 and not sent.folder.exists()
        assert (sampler.statistics().versions, sampler.statistics().requests) == (0, 0)


def test_a_version_that_none_takes_is_gone_and_one_that_some_take_stays(tmp_path: Path) -> None:
    def drifted(sample: SampledSequence) -> None:
        raise BackendError("sampler and trainer drifted apart")

    with served(tmp_path, scripted(refuses=3), scripted(), scripted()) as sampler:
        first = sampler.install(FILES, probe(), version=0)
        with pytest.raises(BackendError, match="drifted apart"):
            sampler.install(FILES, probe(drifted), version=1)
        settle(sampler)
        assert [path.name for path in first.folder.parent.iterdir() if path.is_dir()] == [first.name]
        third = sampler.install(FILES, probe(), version=2)
        told = sampler.statistics()
        assert (told.versions, told.replicas, told.left, told.died) == (2, 2, 1, 0)
        assert third.folder.is_dir()


def test_an_answer_to_a_probe_that_cannot_be_read_is_a_failure_too(tmp_path: Path) -> None:
    broken = Scripted(answer=lambda prompt: Output([completion(0, [5], [float("nan")])]))
    with served(tmp_path, broken) as sampler, pytest.raises(BackendError, match="not finite"):
        sampler.install(FILES, probe(), version=0)


def test_ranks_above_that_of_the_first_model_are_refused(tmp_path: Path) -> None:
    with served(tmp_path, scripted(), rank=8) as sampler:
        sampler.check(Lora(rank=8))
        with pytest.raises(SettingError, match=r"rank=16.*up to 8"):
            sampler.check(Lora(rank=16))
    with served(tmp_path, scripted()) as sampler:
        sampler.check(None)


def test_tokens_are_counted_when_they_are_answered_and_before(tmp_path: Path) -> None:
    """A run in which vLLM does nothing but draw is not still."""
    engine = scripted(waits=9)
    with served(tmp_path, engine) as sampler:
        sent = sampler.install(FILES, probe(), version=0)
        assert (sampler.statistics().drawn, sampler.statistics().drawing) == (0, 0)
        sampler.request([9, 9], PARAMS, 1, source=sent)
        engine.drawing = 1
        assert (sampler.statistics().drawn, sampler.statistics().drawing) == (0, 1)
        sampler.replicas.threads[0].submit(engine.go_on).result(60)
        settle(sampler)
        engine.drawing = 0
        assert (sampler.statistics().drawn, sampler.statistics().drawing) == (2, 0)
    assert sampler.statistics().drawing == 0
