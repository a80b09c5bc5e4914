"""Weights without a model: a hash chain, for what the scripted backend trains; and its critic and its reference, whose numbers
are drawn from a hash of what they are asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparring.arrays import F32, I32, Bools
from sparring.backend.check_data import check_data, check_values
from sparring.backend.datum import Datum, ValueDatum
from sparring.backend.losses import ClippedValue, Loss
from sparring.backend.pending import PendingResult
from sparring.backend.training import PLAIN, Adam, ForwardOutput, ModelInfo, OptimOutput, ValueOutput
from sparring.errors import BackendError, SettingError, UnsupportedError

T = TypeVar("T")

CONTEXT = 1 << 20


class ScriptedWeights:
    """What is trained: version v + 1 is sha256(v, every example of the step, the optimizer's settings). Operations are done
    when the call returns."""

    def __init__(self, model: str, seed: int) -> None:
        self._model = model
        self._weights = sha256(f"{model}/{seed}".encode()).digest()
        self._gradient = b""
        self._unloaded = False
        self.info = scripted_info(model)

    def optim_step(self, adam: Adam) -> PendingResult[OptimOutput]:
        self.refuse_if_unloaded()
        self._weights = sha256(self._weights + self._gradient + repr(adam).encode()).digest()
        self._gradient = b""
        return done("optim_step", OptimOutput(metrics={"gradient_norm": 0.0}))

    def discard_gradients(self) -> PendingResult[None]:
        self.refuse_if_unloaded()
        self._gradient = b""
        return done("discard_gradients", None)

    def save_state(self, name: str) -> PendingResult[str]:
        self.refuse_if_unloaded()
        folder = Path(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights.json").write_text(json.dumps({"model": self._model, "weights": self._weights.hex()}))
        except OSError as error:
            raise BackendError(f"{name!r} cannot be written ({error}): make room, or give another folder") from error
        return done("save_state", str(folder))

    def load_state(self, path: str, *, optimizer: bool = True) -> PendingResult[None]:
        """The optimizer of this backend has no state: `optimizer` makes no difference."""
        self.refuse_if_unloaded()
        stored = read_stored(path)
        if stored["model"] != self._model:
            raise SettingError(f"checkpoint {path!r} is of model {stored['model']!r}, not {self._model!r}")
        self._weights, self._gradient = bytes.fromhex(stored["weights"]), b""
        return done("load_state", None)

    def unload(self) -> PendingResult[None]:
        self.refuse_if_unloaded()
        self._unloaded = True
        return done("unload", None)

    def digest(self) -> PendingResult[str]:
        self.refuse_if_unloaded()
        return done("digest", self._weights.hex())

    def absorb(self, what: str, arrays: Iterable[NDArray[Any]]) -> None:
        """Add an example to the gradient."""
        digest = sha256(self._gradient + what.encode())
        for array in arrays:
            digest.update(array.tobytes())
        self._gradient = digest.digest()

    def refuse_if_unloaded(self) -> None:
        if self._unloaded:
            raise BackendError(f"model {self._model!r} was unloaded; create one from a state that it saved")


class ScriptedCritic(ScriptedWeights):
    """A `CriticClient`: values between -1 and 1 that depend on its weights and on the context."""

    def __init__(self, model: str, seed: int) -> None:
        super().__init__(f"critic of {model}", seed)

    def forward(self, data: Sequence[ValueDatum], loss: ClippedValue | None = None) -> PendingResult[ValueOutput]:
        self.refuse_if_unloaded()
        check_values(data, loss)
        values = tuple(2 * _drawn(self._weights, datum.tokens, datum.mask) - datum.mask for datum in data)
        metrics = {"loss": 0.0, "tokens": float(sum(int(datum.mask.sum()) for datum in data))}
        return done("forward", ValueOutput(values=values, metrics=metrics))

    def forward_backward(self, data: Sequence[ValueDatum], loss: ClippedValue) -> PendingResult[ValueOutput]:
        output = self.forward(data, loss)
        for datum in data:
            fields = (datum.tokens, datum.mask, datum.weights, datum.returns, datum.old_values)
            self.absorb(repr(loss), [field for field in fields if field is not None])
        return output


class ScriptedReference:
    """A `ReferenceClient`: log-probs between -1 and 0 that depend on its name and on the context."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._unloaded = False
        self.info = scripted_info(model)

    def forward(
        self, data: Sequence[Datum], loss: Loss = PLAIN, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        if self._unloaded:
            raise BackendError(f"reference {self._model!r} was unloaded; open another")
        if entropy:
            raise UnsupportedError("entropy=True: the scripted backend has no distribution")
        check_data(data, loss)
        logprobs = tuple(-_drawn(self._model.encode(), datum.tokens, datum.mask) for datum in data)
        metrics = {"loss": 0.0, "tokens": float(sum(int(datum.mask.sum()) for datum in data))}
        return done("forward", ForwardOutput(logprobs=logprobs, metrics=metrics))

    def unload(self) -> PendingResult[None]:
        self._unloaded = True
        return done("unload", None)


def scripted_info(model: str) -> ModelInfo:
    """A model without parameters."""
    return ModelInfo(
        model=model,
        parameters=0,
        trained_parameters=0,
        context_length=CONTEXT,
        dtype="none",
        fingerprint=sha256(model.encode()).hexdigest(),
    )


def _drawn(key: bytes, tokens: I32, mask: Bools) -> F32:
    """A number from 0 to 1 for each scored token, 0 elsewhere, f32[T]."""
    rng = Random(sha256(key + tokens.tobytes()).digest())
    return np.where(mask, [rng.random() for _ in range(len(tokens))], 0).astype(np.float32)


def read_stored(path: str) -> dict[str, str]:
    """`model` and `weights` of a saved state."""
    try:
        stored = json.loads((Path(path) / "weights.json").read_text())
        return {name: str(stored[name]) for name in ("model", "weights")}
    except OSError as error:
        raise SettingError(f"checkpoint {path!r}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"checkpoint {path!r} is damaged ({error!r}); take an earlier one") from error


def done(name: str, value: T) -> PendingResult[T]:
    """A result that is there."""
    pending: PendingResult[T] = PendingResult(name)
    pending.succeed(value)
    return pending
