"""What the clients of everything that is trained have in common: optimizer, states, unloading.

Every method that computes returns at once; the engine thread runs the operations in the order of the calls.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from sparring.backend.local.checkpoint import State, read_state, state_folder, write_state
from sparring.backend.local.operations import Operations
from sparring.backend.local.thread import EngineThread
from sparring.backend.local.trainer import Trainer
from sparring.backend.pending import PendingResult
from sparring.backend.training import Adam, ModelInfo, OptimOutput

T = TypeVar("T")


class TrainedClient:
    """A trainer on the engine thread; what it is asked to compute, subclasses say."""

    def __init__(self, trainer: Trainer, engine: EngineThread, *, info: ModelInfo, states: Path) -> None:
        self._trainer, self._engine = trainer, engine
        self._info, self._states = info, states
        self._operations = Operations(engine, info.model)

    @property
    def info(self) -> ModelInfo:
        """What the model is, for `run.json`."""
        return self._info

    def optim_step(self, adam: Adam) -> PendingResult[OptimOutput]:
        """Apply the buffered gradient and empty the buffer. A non-finite gradient raises `NonFinite` and changes nothing."""
        return self._operations.submit("optim_step", lambda: self._trainer.optim_step(adam))

    def discard_gradients(self) -> PendingResult[None]:
        """Empty the gradient buffer, and with it what made it broken."""
        self._operations.refuse_if_unloaded()
        return self._operations.submit("discard_gradients", self._trainer.discard_gradients)

    def save_state(self, name: str) -> PendingResult[str]:
        """Write weights and optimizer to a folder; the result is its absolute path. See `checkpoint` for the files."""
        folder = state_folder(name, self._states)
        return self._operations.submit("save_state", lambda: self._save(folder))

    def load_state(self, path: str, *, optimizer: bool = True) -> PendingResult[None]:
        """Take weights and optimizer from a folder that `save_state` wrote; gradients are dropped. Without `optimizer`, a
        policy takes an adapter folder of PEFT too. A folder that does not fit raises `SettingError` and changes nothing."""
        folder = state_folder(path, self._states)
        return self._operations.submit("load_state", lambda: self._load(folder, optimizer=optimizer))

    def digest(self) -> PendingResult[str]:
        """Hex sha256 over trained weights and optimizer state."""
        self._operations.refuse_if_unloaded()
        return self._operations.submit("digest", self._trainer.digest)

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
