"""The training primitives: what a model can be asked to do, in the order of the calls (after the Tinker API)."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol, TypeVar

from sparring.arrays import F32
from sparring.backend.datum import Datum, ValueDatum
from sparring.backend.losses import ClippedValue, CrossEntropy, Loss
from sparring.backend.renderer import Renderer
from sparring.backend.sampling import SamplingClient
from sparring.errors import SettingError

T_co = TypeVar("T_co", covariant=True)
PLAIN: Loss = CrossEntropy()
"""The loss whose metrics need no sampler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A low-rank adapter: y = Wx + (alpha / rank) * B(A(x)) (arXiv 2106.09685).

    attention, mlp   on every linear layer of these
    unembedding      on the output layer too; where that is tied to the input embedding, the latter stays as it is
    dropout          share of A's inputs that a training pass leaves out, the others scaled up for it; never in sampling, so
                     that trainer and sampler differ: meant for supervised losses
    seed             of A's first values (B begins as zero) and of dropout; None takes the seed of the model
    """

    rank: int = 32
    alpha: float = 32.0
    attention: bool = True
    mlp: bool = True
    unembedding: bool = False
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError(f"lora.rank={self.rank!r}: must be at least 1")
        if not 0 < self.alpha < inf:
            raise SettingError(f"lora.alpha={self.alpha!r}: must be a finite number above 0; 0 would train nothing")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"lora.dropout={self.dropout!r}: must be at least 0 and less than 1 (0.05)")
        if not (self.attention or self.mlp or self.unembedding):
            raise SettingError(f"{self!r}: an adapter on no layer; set attention, mlp or unembedding to True")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """One AdamW step (arXiv 1711.05101). `grad_clip_norm` bounds the norm of the summed gradient; 0 turns it off."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
            value = getattr(self, name)
            if not 0 <= value < inf:
                raise SettingError(f"adam.{name}={value!r}: must be a finite number, at least 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise SettingError(f"adam.{name}={value!r}: must be at least 0 and less than 1")
        if not 0 < self.eps < inf:
            raise SettingError(f"adam.eps={self.eps!r}: must be a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOutput:
    """`logprobs[i]` f32[T_i]: the trainer's log-prob of datum i's tokens, 0 where not scored; `metrics` of the call."""

    logprobs: tuple[F32, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueOutput:
    """`values[i]` f32[T_i]: the critic's value of what precedes each scored token of datum i, 0 where not scored; `metrics` of
    the call."""

    values: tuple[F32, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimOutput:
    """`metrics["gradient_norm"]` is the norm before clipping."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model is, for `run.json`: `fingerprint` is a digest of base weights, tokenizer and template; `architecture` the
    name of its class in transformers; `lora` the adapter, None where all weights are trained or there are none."""

    model: str
    parameters: int
    trained_parameters: int
    context_length: int
    dtype: str
    fingerprint: str
    architecture: str = ""
    lora: Lora | None = None


class Pending(Awaitable[T_co], Protocol[T_co]):
    """The result of a submitted operation. Awaiting it waits; cancelling the waiter cancels nothing.

    A failure that nobody awaited is raised by the next call on the same client.
    """


class TrainingClient(Protocol):
    """One model: frozen base and adapter (or all weights), optimizer, gradient buffer. Operations run in call order.

    Invalid input raises `SettingError` and leaves the model untouched. A failure while computing raises `BackendError`, marks
    the gradient buffer broken, and the next `optim_step` is refused with that cause until `discard_gradients()`.
    """

    @property
    def renderer(self) -> Renderer: ...
    @property
    def info(self) -> ModelInfo: ...
    def forward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> Pending[ForwardOutput]:
        """Log-probs and the loss's metrics, without gradients. `entropy` asks for the exact entropy of the distributions that
        tokens are scored with; refused with `UnsupportedError` where a backend cannot tell it."""
        ...

    def forward_backward(self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False) -> Pending[ForwardOutput]:
        """The same, and adds the gradient of the summed loss to the buffer. Metrics include `loss`."""
        ...

    def optim_step(self, adam: Adam) -> Pending[OptimOutput]:
        """Apply the buffered gradient and empty the buffer. A non-finite gradient raises `NonFinite` and changes nothing."""
        ...

    def discard_gradients(self) -> Pending[None]: ...
    def save_state(self, name: str) -> Pending[str]:
        """Write weights and optimizer to a folder, whole or not at all. `name` is an absolute path, or a name below the
        backend's own folder."""
        ...

    def load_state(self, path: str, *, optimizer: bool = True) -> Pending[None]:
        """Take weights and optimizer from a folder that `save_state` wrote; gradients are dropped. Without `optimizer`, the
        next step is an optimizer's first. A folder that is damaged or does not fit raises `SettingError`, changes nothing."""
        ...

    def export(self, folder: str, form: Literal["adapter", "merged"] = "adapter") -> Pending[str]:
        """Write the weights for others to load: an adapter folder of PEFT, or a whole model of transformers with the adapter
        merged in. `folder` is an absolute path or a name below the backend's own folder, and must not be there yet."""
        ...

    def unload(self) -> Pending[None]:
        """Free weights and optimizer, after the calls so far. Samplers that are open go on; the model's own calls raise
        `BackendError` from now on."""
        ...

    def digest(self) -> Pending[str]:
        """Hex sha256 over trained weights and optimizer state: equal digests continue equally."""
        ...

    def publish(self, version: int) -> Pending[None]:
        """Install the current weights under `version` on every sampler replica. Versions never go back."""
        ...

    async def sampler(
        self, kind: Literal["snapshot", "inflight"] = "snapshot", *, version: int | None = None
    ) -> SamplingClient:
        """A client of the published `version`, or, without one, of the weights as they are after the calls so far.

        One in flight follows what is published: requests under way go on with the new weights, and once `publish` is done no
        token is started with older ones. It takes no `version`. Raises `SettingError` before anything was published,
        `UnsupportedError` where `Capabilities.kinds` has it not.
        """
        ...


class CriticClient(Protocol):
    """A model that tells values: a base, an adapter on it (or all weights), and a value head v = w . h + b in place of the
    output layer, h the hidden state that would predict the scored token; with an optimizer and a gradient buffer of its own.
    The head begins as zero, and so do the values.

    Order of operations, refusals and failures are those of `TrainingClient`, and so is what the methods without a docstring do.
    """

    @property
    def info(self) -> ModelInfo: ...
    def forward(self, data: Sequence[ValueDatum], loss: ClippedValue | None = None) -> Pending[ValueOutput]:
        """Values and the loss's metrics, without gradients. Without a loss, values alone: data need no returns."""
        ...

    def forward_backward(self, data: Sequence[ValueDatum], loss: ClippedValue) -> Pending[ValueOutput]:
        """The same, and adds the gradient of the summed loss to the buffer. Metrics include `loss`."""
        ...

    def optim_step(self, adam: Adam) -> Pending[OptimOutput]: ...
    def discard_gradients(self) -> Pending[None]: ...
    def save_state(self, name: str) -> Pending[str]: ...
    def load_state(self, path: str, *, optimizer: bool = True) -> Pending[None]:
        """As with `TrainingClient`; a policy's folder is refused, as is a critic's by a policy."""
        ...

    def unload(self) -> Pending[None]: ...
    def digest(self) -> Pending[str]: ...


class ReferenceClient(Protocol):
    """A base as it is, without an adapter: what a policy began as, or another model to compare it with."""

    @property
    def info(self) -> ModelInfo: ...
    def forward(self, data: Sequence[Datum], loss: Loss = PLAIN, *, entropy: bool = False) -> Pending[ForwardOutput]:
        """As `TrainingClient.forward`: log-probs, at each datum's temperature, and the loss's metrics."""
        ...

    def unload(self) -> Pending[None]:
        """The client's own calls raise `BackendError` from now on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do, so that a run is refused at start rather than something ignored later. `versions` is how many, of
    all its models together, can be sampled from at once; None for as many as there are."""

    losses: frozenset[type]
    kinds: frozenset[str] = frozenset({"snapshot"})
    deterministic: bool = False
    stop_strings: bool = True
    logprobs: bool = True
    critics: bool = False
    references: bool = False
    versions: int | None = None


class Backend(Protocol):
    """Where models live. An asynchronous context manager; leaving it ends every thread and process it started."""

    async def __aenter__(self) -> "Backend": ...
    async def __aexit__(self, *exc: object) -> None: ...
    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> TrainingClient:
        """Load `model` (a folder, a hub name, or a name that the backend documents) and give it a fresh adapter; without
        `lora`, all weights are trained."""
        ...

    async def create_from_state(self, path: str, *, model: str | None = None, optimizer: bool = True) -> TrainingClient:
        """The model that `save_state` wrote, on the base that it names, or on `model` where the same base lies elsewhere now.
        Without `optimizer`, with its weights alone."""
        ...

    async def create_critic(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> CriticClient:
        """A critic on `model`, which it shares with policies on the same; without `lora`, all weights of a copy are trained.
        Raises `UnsupportedError` where a backend has no critics."""
        ...

    async def reference(self, model: str) -> ReferenceClient:
        """`model` as it is. Raises `UnsupportedError` where a backend has no references."""
        ...

    def capabilities(self) -> Capabilities: ...
    def statistics(self) -> Mapping[str, float]:
        """How its queues stand, by name; may be asked for at any time, and takes none."""
        ...
