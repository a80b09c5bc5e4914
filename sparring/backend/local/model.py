"""The training client of the torch engine: checks what it is given, submits operations, hands out samplers.

Every method that computes returns at once; the engine thread runs the operations in the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import anyio

from sparring.arrays import I32
from sparring.backend.check_data import check_data
from sparring.backend.datum import Datum
from sparring.backend.local.checkpoint import State, read_state, state_folder, write_state
from sparring.backend.local.export import export_adapter, export_merged
from sparring.backend.local.snapshots import Snapshot, TakeSnapshot
from sparring.backend.local.thread import EngineThread
from sparring.backend.local.trainer import Share, Trainer
from sparring.backend.local.versions import Versions
from sparring.backend.losses import Loss
from sparring.backend.pending import PendingResult, Unawaited
from sparring.backend.renderer import Renderer
from sparring.backend.sampling import SamplingClient
from sparring.backend.training import Adam, ForwardOutput, ModelInfo, OptimOutput
from sparring.errors import BackendError, SettingError, UnsupportedError

T = TypeVar("T")


class TorchModel:
    """A `TrainingClient`: one adapter on a base that it may share with other models of the same backend.

    Metrics of `forward` and `forward_backward` are sums, listed in `measures`; `sparring.backend.totals` adds calls up.
    """

    def __init__(
        self,
        trainer: Trainer,
        engine: EngineThread,
        *,
        renderer: Renderer,
        info: ModelInfo,
        take_snapshot: TakeSnapshot,
        states: Path,
    ) -> None:
        self._trainer, self._engine = trainer, engine
        self._renderer, self._info = renderer, info
        self._take_snapshot, self._states = take_snapshot, states
        self._versions = Versions()
        self._published = -1
        self._unloaded = False
        self._unawaited = Unawaited()

    @property
    def renderer(self) -> Renderer:
        """From the model's own chat template."""
        return self._renderer

    @property
    def info(self) -> ModelInfo:
        """What the model is, for `run.json`."""
        return self._info

    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> PendingResult[ForwardOutput]:
        """Log-probs and the loss's metrics, with the exact entropy where `entropy` asks for it. Raises `SettingError` for data
        that the model or the loss cannot take."""
        self._check_data(data, loss)
        return self._submit("forward", lambda: self._trainer.forward(data, loss, entropy=entropy))

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        """The same, and adds the gradient of the summed loss to the buffer."""
        self._check_data(data, loss)
        return self._submit("forward_backward", lambda: self._trainer.forward_backward(data, loss, entropy=entropy))

    def share(self, data: Sequence[Datum], loss: Loss) -> Share:
        """This model's part of a call that several make together: see `LocalBackend.forward_backward`."""
        self._check_data(data, loss)
        self._unawaited.check()
        return Share(self._trainer, data, loss)

    def follow(self, pending: PendingResult[T]) -> PendingResult[T]:
        """Let a failure of an operation that others submitted too be raised by this model's next call, if nobody awaits it."""
        return self._unawaited.track(pending)

    def optim_step(self, adam: Adam) -> PendingResult[OptimOutput]:
        """Apply the buffered gradient and empty the buffer. A non-finite gradient raises `NonFinite` and changes nothing."""
        return self._submit("optim_step", lambda: self._trainer.optim_step(adam))

    def discard_gradients(self) -> PendingResult[None]:
        """Empty the gradient buffer, and with it what made it broken."""
        self._refuse_if_unloaded()
        return self._submit("discard_gradients", self._trainer.discard_gradients)

    def save_state(self, name: str) -> PendingResult[str]:
        """Write weights and optimizer to a folder; the result is its absolute path. See `checkpoint` for the files."""
        folder = state_folder(name, self._states)
        return self._submit("save_state", lambda: self._save(folder))

    def load_state(self, path: str, *, optimizer: bool = True) -> PendingResult[None]:
        """Take weights and optimizer from a folder that `save_state` wrote; gradients are dropped. Without `optimizer` also
        from an adapter folder of PEFT. A folder that does not fit raises `SettingError` and changes nothing."""
        folder = state_folder(path, self._states)
        return self._submit("load_state", lambda: self._load(folder, optimizer=optimizer))

    def export(self, folder: str, form: Literal["adapter", "merged"] = "adapter") -> PendingResult[str]:
        """Write an adapter folder of PEFT, or a merged folder of transformers; the result is its path. See `export`."""
        if form not in ("adapter", "merged"):
            raise SettingError(f"form={form!r}: must be 'adapter' or 'merged'")
        path = state_folder(folder, self._states.with_name("exports"))
        return self._submit("export", lambda: self._export(path, merge=form == "merged"))

    def unload(self) -> PendingResult[None]:
        """Free adapter, optimizer and the published weights that nobody samples from; the base stays, for other models."""
        pending = self._submit("unload", self._unload)
        self._unloaded = True
        return pending

    def digest(self) -> PendingResult[str]:
        """Hex sha256 over trained weights and optimizer state."""
        self._refuse_if_unloaded()
        return self._submit("digest", self._trainer.digest)

    def publish(self, version: int) -> PendingResult[None]:
        """Install the weights as they are after the calls so far under `version`, which must be above every earlier one."""
        if version <= self._published:
            raise SettingError(f"version={version!r}: {self._published} is published, and versions never go back")
        pending = self._submit("publish", lambda: self._versions.publish(version, self._take_snapshot(self._trainer)))
        self._published = version
        return pending

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        """A client of the published `version`; without one, of the weights after the calls so far, numbered by the optimizer
        steps that made them."""
        if kind != "snapshot":
            raise UnsupportedError(f"kind={kind!r}: this backend samples from snapshots only")
        taken: list[tuple[int, Snapshot]] = []
        opening = self._submit("sampler", lambda: taken.append(self._take(version)))
        try:
            await opening
        except anyio.get_cancelled_exc_class():
            opening.retrieved = True  # nobody waits for it any more, so nobody has to hear that it failed
            self._release(version, taken)
            raise
        number, snapshot = taken[0]
        return snapshot.open(version=number, release=lambda: self._release(version, taken))

    def _take(self, version: int | None) -> tuple[int, Snapshot]:
        """A published version, or what the weights are now, under the number of steps that made them."""
        if version is None:
            return self._trainer.steps, self._take_snapshot(self._trainer)
        return version, self._versions.take(version)

    def _release(self, version: int | None, taken: Sequence[tuple[int, Snapshot]]) -> None:
        """A client was closed, or its opening was cancelled, perhaps before anything was taken."""

        def let_go() -> None:
            for number, snapshot in taken:
                if version is None:
                    snapshot.free()
                else:
                    self._versions.release(number)

        if not self._engine.closed:
            self._engine.submit(let_go, "release")

    def _submit(self, name: str, run: Callable[[], T]) -> PendingResult[T]:
        self._refuse_if_unloaded()
        self._unawaited.check()
        return self._unawaited.track(self._engine.submit(run, name))

    def _save(self, folder: Path) -> str:
        trainer = self._trainer
        state = State(master=trainer.adapter.master, mean=trainer.mean, square=trainer.square, steps=trainer.steps)
        base = trainer.base
        write_state(folder, trainer.adapter, state, base_name=self._info.model, fingerprint=base.fingerprint)
        return str(folder)

    def _load(self, folder: Path, *, optimizer: bool) -> None:
        fingerprint = self._trainer.base.fingerprint
        state = read_state(folder, self._trainer.adapter, fingerprint=fingerprint, optimizer=optimizer)
        self._trainer.restore(state.master, state.mean, state.square, state.steps)

    def _export(self, folder: Path, *, merge: bool) -> str:
        if merge:
            export_merged(folder, self._trainer.base, self._trainer.adapter)
        else:
            export_adapter(folder, self._trainer.adapter, base_name=self._info.model)
        return str(folder)

    def _unload(self) -> None:
        del self._trainer  # what could still ask for it is refused, or ran before
        self._versions.close()

    def _refuse_if_unloaded(self) -> None:
        if self._unloaded:
            raise BackendError(f"model {self._info.model!r} was unloaded; create one from a state that it saved")

    def _check_data(self, data: Sequence[Datum], loss: Loss) -> None:
        self._refuse_if_unloaded()
        check_data(data, loss)
        base = self._trainer.base
        for index, datum in enumerate(data):
            if len(datum.tokens) > base.context_length:
                raise SettingError(
                    f"datum {index} has {len(datum.tokens)} tokens; the model's context holds {base.context_length}"
                )
            self._check_ids(datum.tokens, f"datum {index} holds token")
            if datum.soft_targets is not None:
                self._check_ids(datum.soft_targets.tokens[datum.mask], f"datum {index} has soft target")

    def _check_ids(self, tokens: I32, where: str) -> None:
        most = self._trainer.base.vocabulary - 1
        bad = tokens[(tokens < 0) | (tokens > most)]
        if len(bad):
            raise SettingError(f"{where} {int(bad[0])!r}; this model's are 0 to {most}")
