"""The critic of the torch engine: a base with an adapter and a value head, or a copy of all its weights with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparring.backend.check_data import check_values
from sparring.backend.datum import ValueDatum
from sparring.backend.local.operations import check_fits
from sparring.backend.local.thread import EngineThread
from sparring.backend.local.trained_client import TrainedClient
from sparring.backend.local.trainer import Trainer
from sparring.backend.local.value_scorer import ValueScorer
from sparring.backend.losses import ClippedValue
from sparring.backend.pending import PendingResult
from sparring.backend.training import ModelInfo, ValueOutput


class TorchCritic(TrainedClient):
    """A `CriticClient`. Metrics are sums, listed in `measures`; `sparring.backend.totals` adds calls up."""

    def __init__(
        self, trainer: Trainer, scorer: ValueScorer, engine: EngineThread, *, info: ModelInfo, states: Path
    ) -> None:
        super().__init__(trainer, engine, info=info, states=states)
        self._scorer = scorer

    def forward(self, data: Sequence[ValueDatum], loss: ClippedValue | None = None) -> PendingResult[ValueOutput]:
        """Values and the loss's metrics; without a loss, values alone. Raises `SettingError` for data that the critic or the
        loss cannot take."""
        self._check(data, loss)
        return self._operations.submit(
            "forward", lambda: self._trainer.forward(self._scorer.work(data, loss, train=False))
        )

    def forward_backward(self, data: Sequence[ValueDatum], loss: ClippedValue) -> PendingResult[ValueOutput]:
        """The same, and adds the gradient of the summed loss to the buffer."""
        self._check(data, loss)
        return self._operations.submit(
            "forward_backward", lambda: self._trainer.forward_backward(self._scorer.work(data, loss, train=True))
        )

    def unload(self) -> PendingResult[None]:
        """Free weights and optimizer; the base stays, for other models."""
        return self._operations.unload(self._unload)

    def _unload(self) -> None:
        del self._trainer, self._scorer  # what could still ask for them is refused, or ran before

    def _check(self, data: Sequence[ValueDatum], loss: ClippedValue | None) -> None:
        self._operations.refuse_if_unloaded()
        check_values(data, loss)
        check_fits(data, self._trainer.base)
