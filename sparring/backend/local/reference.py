"""The reference of the torch engine: a base as it is, which adapters that are trained on it never touch."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.backend.check_data import check_data
from sparring.backend.datum import Datum
from sparring.backend.local.operations import Operations, check_fits
from sparring.backend.local.passes import Passes
from sparring.backend.local.scorer import Scorer
from sparring.backend.local.thread import EngineThread
from sparring.backend.losses import Loss
from sparring.backend.pending import PendingResult
from sparring.backend.training import PLAIN, ForwardOutput, ModelInfo


class TorchReference:
    """A `ReferenceClient`. It needs no memory besides the base's, which others on the same folder share."""

    def __init__(self, passes: Passes, engine: EngineThread, *, info: ModelInfo) -> None:
        self._passes, self._info = passes, info
        self._scorer = Scorer(passes.base, None, token_budget=passes.token_budget)
        self._operations = Operations(engine, info.model)

    @property
    def info(self) -> ModelInfo:
        """What the model is; nothing of it is trained."""
        return self._info

    def forward(
        self, data: Sequence[Datum], loss: Loss = PLAIN, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        """Log-probs and the loss's metrics, as of a policy that was never trained."""
        self._operations.refuse_if_unloaded()
        check_data(data, loss)
        check_fits(data, self._passes.base)
        return self._operations.submit(
            "forward", lambda: self._passes.result(self._scorer.work(data, loss, train=False, entropy=entropy))
        )

    def unload(self) -> PendingResult[None]:
        """Refuse further calls. The base stays, for other models."""
        return self._operations.unload(lambda: None)
