"""A teacher: a model that is asked how likely it finds what others said, behind any sampling client."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import anyio
import numpy as np

from sparring.arrays import F32
from sparring.backend.check_data import check_data
from sparring.backend.datum import Datum
from sparring.backend.losses import CrossEntropy, Loss
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SamplingClient
from sparring.backend.training import PLAIN, ForwardOutput, ModelInfo
from sparring.errors import BackendError, UnsupportedError


@runtime_checkable
class Teacher(Protocol):
    """Settings that open a sampling client with the policy's own tokens: of another backend, of a server."""

    @property
    def model(self) -> str:
        """What it is called, in `run.json`."""
        ...

    def opened(self) -> AbstractAsyncContextManager[SamplingClient]:
        """The client, for as long as a run goes on."""
        ...


class TeacherReference:
    """A `ReferenceClient` that asks a sampling client: log-probs at temperature 1, all contexts of a call at once."""

    def __init__(self, client: SamplingClient, model: str) -> None:
        self._client, self._unloaded = client, False
        digest = sha256(model.encode()).hexdigest()
        self.info = ModelInfo(
            model=model, parameters=0, trained_parameters=0, context_length=0, dtype="unknown", fingerprint=digest
        )

    def forward(self, data: Sequence[Datum], loss: Loss = PLAIN, *, entropy: bool = False) -> Asked:
        """Asked when it is awaited. Raises `UnsupportedError` for what a sampling client cannot tell."""
        if self._unloaded:
            raise BackendError(f"teacher {self.info.model!r} was unloaded; open another")
        if entropy or not isinstance(loss, CrossEntropy):
            raise UnsupportedError(f"forward({loss!r}, entropy={entropy!r}): a teacher tells log-probs alone")
        check_data(data, loss)
        for datum in data:
            if datum.temperature != 1:
                raise UnsupportedError(
                    f"temperature={datum.temperature!r}: a teacher's log-probs are those at temperature 1; sample at 1"
                )
        return Asked(self._client, data)

    def unload(self) -> PendingResult[None]:
        """Further calls are refused; the client is closed by who opened it."""
        self._unloaded = True
        found: PendingResult[None] = PendingResult("unload")
        found.succeed(None)
        return found


class Asked(Awaitable[ForwardOutput]):
    """The answer to one call."""

    def __init__(self, client: SamplingClient, data: Sequence[Datum]) -> None:
        self._client, self._data = client, data

    def __await__(self) -> Generator[Any, Any, ForwardOutput]:
        return self._answered().__await__()

    async def _answered(self) -> ForwardOutput:
        rows = [np.zeros(len(datum.tokens), np.float32) for datum in self._data]

        async def one(datum: Datum, row: F32) -> None:
            row[datum.mask] = (await self._client.logprobs(datum.tokens))[datum.mask]

        async with anyio.create_task_group() as group:
            for datum, row in zip(self._data, rows, strict=True):
                group.start_soon(one, datum, row)
        loss = -sum(float((datum.weights * row)[datum.mask].sum()) for datum, row in zip(self._data, rows, strict=True))
        tokens = float(sum(int(datum.mask.sum()) for datum in self._data))
        return ForwardOutput(logprobs=tuple(rows), metrics={"loss": loss, "tokens": tokens})
