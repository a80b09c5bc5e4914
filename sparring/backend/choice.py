"""Which backend a run uses, as plain settings; nothing heavy is imported until it is opened."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Literal, Protocol, cast, runtime_checkable

from sparring.backend.scripted import ScriptedBackend, ScriptedReply, babble
from sparring.backend.training import Backend
from sparring.backend.waiting import bound_spinning
from sparring.errors import UnsupportedError


@runtime_checkable
class BackendChoice(Protocol):
    """Settings that open a backend."""

    def open(self, *, deterministic: bool) -> Backend: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The torch engine in this process.

    dtype    "auto": bfloat16 where the processor is fast at it, float32 elsewhere and always under `deterministic`
    device   "auto": CUDA if there is any, the CPU elsewhere and always under `deterministic`; or "cpu", "cuda", "cuda:1"
    threads  None: as many as there are cores
    slots    requests that are decoded at once
    sampler  "torch", in this process, or "vllm", in processes of its own
    max_loras    with vLLM: versions that can be played at once, all policies on one base together
    replicas     with vLLM: engines of one base that share the requests
    prefix_bytes    with torch: memory for keys and values of what contexts begin with, for the next turns of a conversation
    canary          with torch: compare what is drawn with a full pass after each publication, and stop the run where they
                    differ (vLLM is always compared; a deterministic sampler never)
    """

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    threads: int | None = None
    slots: int = 128
    sampler: Literal["torch", "vllm"] = "torch"
    max_loras: int = 8
    replicas: int = 1
    prefix_bytes: int = 2**29
    canary: bool = True

    def open(self, *, deterministic: bool) -> Backend:
        bound_spinning()
        try:
            module = import_module("sparring.backend.local")
        except ModuleNotFoundError as error:
            raise UnsupportedError(f"the local backend needs {error.name!r}: pip install 'sparring[torch]'") from error
        settings = asdict(self)
        return cast(Backend, module.LocalBackend(**settings, deterministic=deterministic))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedModels:
    """The scripted backend: no model at all, weights are a hash of everything trained on. For tests and dry runs.

    reply    (the text of the context, rng) -> the reply; its rng depends on weights, prompt and seed
    """

    reply: ScriptedReply = babble

    def open(self, *, deterministic: bool) -> Backend:
        return ScriptedBackend(self.reply)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModels:
    """Policies that know a few replies and no language, for studies whose answer is known. Models are "table", a row of logits
    for each context, and "network", two layers over hashed pieces of the context (98,600 numbers with two replies). Untrained,
    they find all replies equally likely. They need the extra `torch`.

    replies   all that they can say
    rows      of a table
    features  of a network's first layer, and how many are
    hidden    behind it
    """

    replies: tuple[str, ...]
    rows: int = 2**16
    features: int = 1024
    hidden: int = 96

    def open(self, *, deterministic: bool) -> Backend:
        """Everything they do is deterministic anyway."""
        bound_spinning()
        try:
            module = import_module("sparring.backend.small")
        except ModuleNotFoundError as error:
            raise UnsupportedError(f"small models need {error.name!r}: pip install 'sparring[torch]'") from error
        return cast(Backend, module.SmallBackend(**asdict(self)))
