"""Which backend a run uses, as plain settings; nothing heavy is imported until it is opened."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, cast

from sparring.backend.scripted import ScriptedBackend
from sparring.backend.training import Backend
from sparring.errors import UnsupportedError


class BackendChoice(Protocol):
    """Settings that open a backend."""

    def open(self, *, deterministic: bool) -> Backend: ...
    def described(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The torch engine in this process.

    dtype    "auto": bfloat16 where the processor is fast at it, float32 elsewhere and always under `deterministic`
    threads  None: as many as there are cores
    slots    requests that are decoded at once
    """

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    threads: int | None = None
    slots: int = 64

    def open(self, *, deterministic: bool) -> Backend:
        try:
            module = import_module("sparring.backend.local")
        except ModuleNotFoundError as error:
            raise UnsupportedError(f"the local backend needs {error.name!r}: pip install 'sparring[torch]'") from error
        settings = asdict(self)
        return cast(Backend, module.LocalBackend(**settings, deterministic=deterministic))

    def described(self) -> dict[str, Any]:
        return {"backend": "local", **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedModels:
    """The scripted backend: no model at all, weights are a hash of everything trained on. For tests and dry runs."""

    def open(self, *, deterministic: bool) -> Backend:
        return ScriptedBackend()

    def described(self) -> dict[str, Any]:
        return {"backend": "scripted"}
