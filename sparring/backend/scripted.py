"""A backend without a model: weights are a hash chain, so that any lost, doubled or reordered example changes the final
digest.

Version v + 1 is sha256(v, every example of the step, the optimizer's settings); a reply is a function of weights,
prompt and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from math import log
from random import Random
from typing import Any, Literal, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray

from sparring.arrays import F32, I32
from sparring.backend.bytes_renderer import END, VOCABULARY, ByteRenderer
from sparring.backend.check_data import check_data
from sparring.backend.check_request import checked_options
from sparring.backend.datum import Datum
from sparring.backend.losses import LOSSES, Loss
from sparring.backend.pending import PendingResult
from sparring.backend.renderer import Renderer
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams, runs
from sparring.backend.scripted_weights import (
    CONTEXT,
    ScriptedCritic,
    ScriptedReference,
    ScriptedWeights,
    done,
    read_stored,
)
from sparring.backend.training import (
    Capabilities,
    ForwardOutput,
    Lora,
)
from sparring.errors import BackendError, ContextFull, SettingError, UnsupportedError

T = TypeVar("T")
ScriptedReply = Callable[[str, Random], str]
"""(the text of the context, a generator) -> the reply."""


def babble(prompt: str, rng: Random) -> str:
    """One to eight letters."""
    return "".join(rng.choices("abcdefgh", k=rng.randint(1, 8)))


class ScriptedBackend:
    """Models that need no memory and no time. `reply(prompt text, rng)` makes the replies; its rng depends on weights,
    prompt, seed."""

    def __init__(self, reply: ScriptedReply = babble) -> None:
        self._reply = reply

    async def __aenter__(self) -> ScriptedBackend:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing to end."""

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedModel:
        return ScriptedModel(model, seed, self._reply)

    async def create_from_state(self, path: str, *, model: str | None = None, optimizer: bool = True) -> ScriptedModel:
        created = ScriptedModel(read_stored(path)["model"] if model is None else model, 0, self._reply)
        await created.load_state(path, optimizer=optimizer)
        return created

    async def create_critic(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> ScriptedCritic:
        return ScriptedCritic(model, seed)

    async def reference(self, model: str) -> ScriptedReference:
        return ScriptedReference(model)

    def capabilities(self) -> Capabilities:
        kinds = frozenset({"snapshot", "inflight"})
        return Capabilities(
            losses=frozenset(LOSSES), kinds=kinds, deterministic=True, logprobs=False, critics=True, references=True
        )

    def statistics(self) -> Mapping[str, float]:
        """It has no queues: what is asked for is done at once."""
        return {}


class ScriptedModel(ScriptedWeights):
    """A `TrainingClient` whose operations are done when the call returns."""

    def __init__(self, model: str, seed: int, reply: ScriptedReply) -> None:
        super().__init__(model, seed)
        self._reply = reply
        self._published: dict[int, bytes] = {}
        self.renderer: Renderer = ByteRenderer()

    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> PendingResult[ForwardOutput]:
        if entropy:
            raise UnsupportedError("entropy=True: the scripted backend has no distribution")
        self.refuse_if_unloaded()
        check_data(data, loss)
        tokens = sum(int(np.count_nonzero(datum.mask)) for datum in data)
        metrics = {"loss": 0.0, "tokens": float(tokens)}
        return done("forward", ForwardOutput(logprobs=tuple(datum.logprobs for datum in data), metrics=metrics))

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        output = self.forward(data, loss, entropy=entropy)
        for datum in data:
            arrays = (datum.tokens, datum.mask, datum.logprobs, datum.advantages, *_optional(datum))
            self.absorb(repr(loss) + repr(datum.temperature), arrays)
        return output

    def export(self, folder: str, form: Literal["adapter", "merged"] = "adapter") -> PendingResult[str]:
        raise UnsupportedError(f"export({folder!r}): the scripted backend has no weights to export")

    def publish(self, version: int) -> PendingResult[None]:
        self.refuse_if_unloaded()
        if self._published and version < max(self._published):
            raise SettingError(f"publish({version!r}) after version {max(self._published)}: versions never go back")
        self._published[version] = self._weights
        return done("publish", None)

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        self.refuse_if_unloaded()
        if kind == "inflight":
            if version is not None or not self._published:
                raise SettingError(
                    f"sampler({kind!r}, version={version!r}): it follows what is published, from the first on"
                )
            return ScriptedFollower(self._newest)
        if version is None:
            return ScriptedSampler(self._weights, max(self._published, default=0), self._reply)
        if version not in self._published:
            raise SettingError(f"sampler(version={version!r}): published are {sorted(self._published)}")
        return ScriptedSampler(self._published[version], version, self._reply)

    def _newest(self) -> ScriptedSampler:
        version = max(self._published)
        return ScriptedSampler(self._published[version], version, self._reply)


class ScriptedSampler:
    """A `SamplingClient` over one link of the chain."""

    def __init__(self, weights: bytes, version: int, reply: ScriptedReply) -> None:
        self._weights = weights
        self._reply = reply
        self._closed = False
        self.version = version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        ids = _checked(prompt, params, closed=self._closed)
        await anyio.lowlevel.checkpoint()
        return [self.draw(ids, params, index) for index in range(n)]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        raise UnsupportedError("logprobs(): the scripted backend has no distribution")

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        """A function of weights, prompt and option."""
        if self._closed:
            raise BackendError("options() on a sampling client that was closed")
        ids, checked = checked_options(prompt, options, VOCABULARY, CONTEXT)
        await anyio.lowlevel.checkpoint()
        rngs = [Random(sha256(self._weights + ids.tobytes() + b"/" + option.tobytes()).digest()) for option in checked]
        return np.array([log(1 - rng.random()) for rng in rngs], np.float32)

    async def aclose(self) -> None:
        self._closed = True

    def draw(self, ids: I32, params: SamplingParams, index: int) -> SampledSequence:
        """The `index`-th sequence of a request."""
        rng = Random(sha256(self._weights + ids.tobytes() + f"{params.seed}/{index}".encode()).digest())
        text = self._reply(ByteRenderer().text(ids), rng)
        if not isinstance(text, str):
            raise SettingError(f"the scripted reply {text!r}: must be text")
        stopped = _up_to_stop(text, params.stop)
        whole = [*text.encode(), END] if stopped is None else [*stopped.encode()]
        tokens = np.array(whole[: params.max_tokens], np.int32)
        logprobs = np.array([-rng.random() for _ in range(len(tokens))], np.float32)
        top_tokens, top_logprobs = _top(tokens, logprobs, params.top_logprobs)
        return SampledSequence(
            tokens=tokens,
            logprobs=logprobs,
            stop="stop" if len(tokens) == len(whole) else "length",
            versions=((self.version, len(tokens)),),
            top_tokens=top_tokens,
            top_logprobs=top_logprobs,
        )


class ScriptedFollower:
    """A `SamplingClient` that goes on with the newest link of the chain: tokens come one after the other, and from a
    publication on they are those of the reply that the new weights make, which also says where it ends."""

    def __init__(self, newest: Callable[[], ScriptedSampler]) -> None:
        self._newest = newest
        self._closed = False

    @property
    def version(self) -> int:
        return self._newest().version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        ids = _checked(prompt, params, closed=self._closed)
        return [await self._grown(ids, params, index) for index in range(n)]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        return await self._newest().logprobs(tokens)

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        if self._closed:
            raise BackendError("options() on a sampling client that was closed")
        return await self._newest().options(prompt, options)

    async def aclose(self) -> None:
        self._closed = True

    async def _grown(self, ids: I32, params: SamplingParams, index: int) -> SampledSequence:
        drawn = self._newest().draw(ids, params, index)
        taken: list[tuple[int, float, int]] = []
        ended = False
        while not ended:
            await anyio.lowlevel.checkpoint()
            if self.version != drawn.versions[0][0]:
                drawn = self._newest().draw(ids, params, index)
            place = min(len(taken), len(drawn.tokens) - 1)
            taken.append((int(drawn.tokens[place]), float(drawn.logprobs[place]), drawn.versions[0][0]))
            ended = place == len(drawn.tokens) - 1
        tokens, logprobs, versions = (np.array(column) for column in zip(*taken, strict=True))
        said, likely = tokens.astype(np.int32), logprobs.astype(np.float32)
        top_tokens, top_logprobs = _top(said, likely, params.top_logprobs)
        return SampledSequence(
            tokens=said,
            logprobs=likely,
            stop=drawn.stop,
            versions=runs(versions.tolist()),
            top_tokens=top_tokens,
            top_logprobs=top_logprobs,
        )


def _checked(prompt: Sequence[int] | I32, params: SamplingParams, *, closed: bool) -> I32:
    """The prompt as i32[T], where it can be continued."""
    if closed:
        raise BackendError("sample() on a sampling client that was closed")
    ids = np.asarray(prompt, np.int32)
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= VOCABULARY:
        raise SettingError(f"prompt of {len(ids)} tokens: at least one, with ids from 0 to {VOCABULARY - 1}")
    if len(ids) + params.max_tokens > CONTEXT:
        raise ContextFull(f"{len(ids)} tokens and up to {params.max_tokens} more exceed the context of {CONTEXT}")
    return ids


def _top(tokens: I32, logprobs: F32, count: int) -> tuple[I32, F32] | tuple[None, None]:
    """What was drawn is the likeliest, and the tokens after it are less and less likely; [T, k]."""
    if count == 0:
        return None, None
    later = np.arange(count, dtype=np.int32)
    return (tokens[:, None] + later) % VOCABULARY, logprobs[:, None] - later.astype(np.float32)


def _optional(datum: Datum) -> Iterator[NDArray[Any]]:
    """The optional arrays that are there, each after its name."""
    soft = datum.soft_targets
    fields = {
        "proximal_logprobs": datum.proximal_logprobs,
        "reference_logprobs": datum.reference_logprobs,
        "clip_low": datum.clip_low,
        "clip_high": datum.clip_high,
        "soft tokens": None if soft is None else soft.tokens,
        "soft weights": None if soft is None else soft.weights,
    }
    for name, array in fields.items():
        if array is not None:
            yield np.frombuffer(name.encode(), np.uint8)
            yield array


def _up_to_stop(text: str, stop: Sequence[str]) -> str | None:
    """The text up to the end of whichever stop string is complete first; None where there is none."""
    ends = [found + len(one) for one in stop if (found := text.find(one)) >= 0]
    return text[: min(ends)] if ends else None
