"""The training client of the torch engine: checks what it is given, submits operations, hands out samplers.

Every method that computes returns at once; the engine thread runs the operations in the order of the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import anyio

from sparring.backend.check_data import check_data
from sparring.backend.datum import Datum
from sparring.backend.local.checkpoint import state_folder
from sparring.backend.local.export import export_adapter, export_merged
from sparring.backend.local.operations import check_fits
from sparring.backend.local.scorer import Scorer
from sparring.backend.local.snapshots import Outlet, Snapshot
from sparring.backend.local.thread import EngineThread
from sparring.backend.local.trained_client import TrainedClient
from sparring.backend.local.trainer import Share, Trainer
from sparring.backend.local.versions import Versions
from sparring.backend.losses import Loss
from sparring.backend.pending import PendingResult
from sparring.backend.renderer import Renderer
from sparring.backend.sampling import SamplingClient
from sparring.backend.training import ForwardOutput, ModelInfo
from sparring.errors import SettingError

T = TypeVar("T")


class TorchModel(TrainedClient):
    """A `TrainingClient`: one adapter on a base that it may share with other models of the same backend.

    Metrics of `forward` and `forward_backward` are sums, listed in `measures`; `sparring.backend.totals` adds calls up.
    """

    def __init__(
        self,
        trainer: Trainer,
        scorer: Scorer,
        engine: EngineThread,
        *,
        renderer: Renderer,
        info: ModelInfo,
        outlet: Outlet,
        states: Path,
    ) -> None:
        super().__init__(trainer, engine, info=info, states=states)
        self._scorer, self._renderer = scorer, renderer
        self._outlet, self._versions = outlet, Versions()
        self._published = -1

    @property
    def renderer(self) -> Renderer:
        """From the model's own chat template."""
        return self._renderer

    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> PendingResult[ForwardOutput]:
        """Log-probs and the loss's metrics, with the exact entropy where `entropy` asks for it. Raises `SettingError` for data
        that the model or the loss cannot take."""
        self._check_data(data, loss)
        return self._operations.submit(
            "forward", lambda: self._trainer.forward(self._scorer.work(data, loss, train=False, entropy=entropy))
        )

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        """The same, and adds the gradient of the summed loss to the buffer."""
        self._check_data(data, loss)
        return self._operations.submit(
            "forward_backward",
            lambda: self._trainer.forward_backward(self._scorer.work(data, loss, train=True, entropy=entropy)),
        )

    def share(self, data: Sequence[Datum], loss: Loss, *, among: int) -> Share[ForwardOutput]:
        """This model's part of a call that so many make together: see `LocalBackend.forward_backward`."""
        self._check_data(data, loss)
        self._operations.check()
        return Share(self._trainer, self._scorer.work(data, loss, train=True, among=among))

    def follow(self, pending: PendingResult[T]) -> PendingResult[T]:
        """Let a failure of an operation that others submitted too be raised by this model's next call, if nobody awaits it."""
        return self._operations.follow(pending)

    def export(self, folder: str, form: Literal["adapter", "merged"] = "adapter") -> PendingResult[str]:
        """Write an adapter folder of PEFT, or a merged folder of transformers; the result is its path. See `export`."""
        if form not in ("adapter", "merged"):
            raise SettingError(f"form={form!r}: must be 'adapter' or 'merged'")
        path = state_folder(folder, self._states.with_name("exports"))
        return self._operations.submit("export", lambda: self._export(path, merge=form == "merged"))

    def unload(self) -> PendingResult[None]:
        """Free adapter, optimizer and the published weights that nobody samples from; the base stays, for other models."""
        return self._operations.unload(self._unload)

    def publish(self, version: int) -> PendingResult[None]:
        """Install the weights as they are after the calls so far under `version`, which must be above every earlier one."""
        if version <= self._published:
            raise SettingError(f"version={version!r}: {self._published} is published, and versions never go back")
        pending = self._operations.submit("publish", lambda: self._publish(version))
        self._published = version
        return pending

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        """A client of the published `version`; without one, of the weights after the calls so far, numbered by the optimizer
        steps that made them. An `inflight` one follows what is published."""
        if kind == "inflight":
            return await self._follow(version)
        if kind != "snapshot":
            raise SettingError(f"kind={kind!r}: must be 'snapshot' or 'inflight'")
        taken: list[Snapshot] = []
        opening = self._operations.submit("sampler", lambda: taken.append(self._take(version)))
        try:
            await opening
        except anyio.get_cancelled_exc_class():
            opening.retrieved = True  # nobody waits for it any more, so nobody has to hear that it failed
            self._release(version, taken)
            raise
        return taken[0].open(release=lambda: self._release(version, taken))

    def _publish(self, version: int) -> None:
        self._versions.publish(version, self._outlet.publish(self._trainer, version))

    async def _follow(self, version: int | None) -> SamplingClient:
        if version is not None:
            raise SettingError(
                f"version={version!r} with kind='inflight': it follows the newest; leave one of them out"
            )
        opened: list[SamplingClient] = []

        def let_go() -> None:
            if opened:
                self._outlet.unfollow()

        def release() -> None:
            if not self._engine.closed:
                self._engine.submit(let_go, "release")

        opening = self._operations.submit("sampler", lambda: opened.append(self._outlet.follow(release=release)))
        try:
            await opening
        except anyio.get_cancelled_exc_class():
            opening.retrieved = True  # as in `sampler`
            release()
            raise
        return opened[0]

    def _take(self, version: int | None) -> Snapshot:
        """A published version, or what the weights are now, under the number of steps that made them."""
        if version is None:
            return self._outlet.take(self._trainer, self._trainer.steps)
        return self._versions.take(version)

    def _release(self, version: int | None, taken: Sequence[Snapshot]) -> None:
        """A client was closed, or its opening was cancelled, perhaps before anything was taken."""

        def let_go() -> None:
            for snapshot in taken:
                if version is None:
                    snapshot.free()
                else:
                    self._versions.release(version)

        if not self._engine.closed:
            self._engine.submit(let_go, "release")

    def _export(self, folder: Path, *, merge: bool) -> str:
        if merge:
            export_merged(folder, self._trainer.base, self._trainer.adapter)
        else:
            export_adapter(folder, self._trainer.adapter, base_name=self._info.model)
        return str(folder)

    def _unload(self) -> None:
        del self._trainer, self._scorer  # what could still ask for them is refused, or ran before
        self._versions.close()

    def _check_data(self, data: Sequence[Datum], loss: Loss) -> None:
        self._operations.refuse_if_unloaded()
        check_data(data, loss)
        check_fits(data, self._trainer.base)
