"""Low-rank adapters whose choice belongs to the call, not to the module (arXiv 2106.09685).

`y = W x + (alpha / rank) * B(A x)`: W is frozen and shared by every adapter of one base; which adapter each row of a batch
goes through is set for the duration of one forward pass by `AdapterCall`. Initialisation and file names are PEFT's, and PEFT
is the reference that outputs and gradients are tested against.

Letters: `B` rows of the call (dimension 0 of what a layer gets), `D` inputs, `O` outputs, `r` rank, `P` adapter parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparring.backend.local.dropout import Dropout
from sparring.backend.local.full import FullModel, FullWeights, installed
from sparring.backend.local.supported import Part, same_input
from sparring.backend.training import Lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One linear layer that adapters may apply to: its module name in the base model, its shape, what it belongs to."""

    name: str
    inputs: int
    outputs: int
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """What a call needs of an adapter, for the i-th target: `a[i]` [r, D], `b[i]` [O, r], both in compute dtype.

    `places[j]` is the i of the base's j-th target (the last is the output layer), None where the adapter leaves that one alone.
    `grad_a` and `grad_b` are fp32 buffers that the backward pass adds to; empty in a snapshot, which nothing can train.
    `dropout` is None in a snapshot too, and where there is none. `joint` has, in a snapshot, for the k targets that read the
    same the A one below the other [k r, D] and the B on a diagonal [O of all, k r], under the number of the first; elsewhere
    it is None.
    """

    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    scale: float
    places: tuple[int | None, ...]
    grad_a: tuple[Tensor, ...] = ()
    grad_b: tuple[Tensor, ...] = ()
    dropout: Dropout | None = None
    joint: Mapping[int, tuple[Tensor, Tensor]] | None = None

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """All that is computed with."""
        return *self.a, *self.b

    @property
    def trains(self) -> bool:
        """Whether a backward pass adds to gradient buffers."""
        return bool(self.grad_a)


def chosen(targets: Sequence[Target], lora: Lora) -> tuple[Target, ...]:
    """The targets that `lora` puts an adapter on, in their order."""
    parts = {"attention": lora.attention, "mlp": lora.mlp, "unembedding": lora.unembedding}
    return tuple(target for target in targets if parts[target.part])


Weights = AdapterWeights | FullWeights
"""What a model trains or samples with, besides the base."""

Segment = tuple[Weights | None, int]
"""Weights (None: the base alone) and how many consecutive rows of the call go through it."""


AdapterSegment = tuple[AdapterWeights | None, int]


def merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The same, with neighbours that have the same adapter as one."""
    found: list[Segment] = []
    for adapter, count in segments:
        if found and found[-1][0] is adapter:
            found[-1] = (adapter, found[-1][1] + count)
        else:
            found.append((adapter, count))
    return tuple(found)


class AdapterCall:
    """The adapters of the forward pass that is running, shared by all layers of one base. Engine thread only.

    `rows([(first, 5), (None, 2)])` sends rows 0-4 through `first` and rows 5-6 through the base alone. A forward pass outside
    of a with-block is a mistake and raises. `parameters` are the base's, where full weights go. `joins` says whether layers
    that read the same are computed as one: where nothing is trained, through the base's own weights and snapshots.
    """

    __slots__ = ("_segments", "joins", "parameters")

    def __init__(self) -> None:
        self._segments: tuple[AdapterSegment, ...] | None = None
        self.joins = False
        self.parameters: tuple[nn.Parameter, ...] = ()

    @property
    def segments(self) -> tuple[AdapterSegment, ...]:
        """The segments of the running pass, in row order."""
        assert self._segments is not None, "a forward pass outside of `with call.rows(...)`: which adapter is not said"
        return self._segments

    @property
    def alone(self) -> AdapterWeights | None:
        """The adapter that all rows of the running pass go through, if that is so."""
        return self.segments[0][0] if len(self.segments) == 1 else None

    @contextmanager
    def rows(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Use these weights inside the block; neighbours with the same ones are merged. Blocks do not nest. Full weights stand
        in the base's own parameters, so that they are alone in a pass."""
        assert self._segments is None, "adapter calls do not nest"
        parts = merged(segments)
        full = [weights for weights, _ in parts if isinstance(weights, FullWeights)]
        assert not full or len(parts) == 1, "full weights share a pass with others"
        self._segments = tuple((None if isinstance(w, FullWeights) else w, count) for w, count in parts)
        snapshots = all(adapter is None or adapter.joint is not None for adapter, _ in self._segments)
        self.joins = snapshots and not full and not torch.is_grad_enabled()
        try:
            with installed(self.parameters, full[0]) if full else nullcontext():
                yield
        finally:
            self._segments, self.joins = None, False

    def spans(self, x: Tensor) -> Iterator[tuple[AdapterWeights, int, int]]:
        """Each adapter and which of the flattened input's tokens are its: from where to where."""
        segments = self.segments
        assert sum(count for _, count in segments) == x.shape[0], (segments, x.shape)
        tokens = x.numel() // (x.shape[0] * x.shape[-1])
        start = 0
        for adapter, count in segments:
            end = start + count * tokens
            if adapter is not None:
                yield adapter, start, end
            start = end


class Adapter:
    """The trained part of a model: A [r, D] and B [O, r] of each target that `lora` chooses, as fp32 masters in one f32[P].

    `weights` are the same numbers in compute dtype, with gradient buffers behind them; `refresh()` after every change of the
    masters casts them once. The layout of the flat buffers is A and B of each target in turn; behind them, in masters and
    gradient, `tail` more numbers that begin as zero, for a value head.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        lora: Lora,
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
        tail: int = 0,
    ) -> None:
        self.tail = tail
        self.targets, self.lora = chosen(targets, lora), lora
        self._all = targets
        seed = seed if lora.seed is None else lora.seed
        number = {target: place for place, target in enumerate(self.targets)}
        places = tuple(number.get(target) for target in targets)
        shapes = [shape for t in self.targets for shape in ((lora.rank, t.inputs), (t.outputs, lora.rank))]
        size = sum(rows * columns for rows, columns in shapes)
        self.master = torch.zeros(size + tail, dtype=torch.float32, device=device)
        self.grad = torch.zeros(size + tail, dtype=torch.float32, device=device)
        self._compute = torch.zeros(size, dtype=dtype, device=device)
        self._shapes = shapes
        self.master_a, self.master_b = self._views(self.master)
        self._initialise(seed)
        a, b = self._views(self._compute)
        grad_a, grad_b = self._views(self.grad)
        scale = lora.alpha / lora.rank
        dropout = Dropout(lora.dropout, seed, device) if lora.dropout else None
        self.weights = AdapterWeights(
            a=a, b=b, scale=scale, places=places, grad_a=grad_a, grad_b=grad_b, dropout=dropout
        )
        self.refresh()

    @property
    def parameters(self) -> int:
        """How many numbers are trained, P."""
        return self.master.numel()

    def refresh(self) -> None:
        """Cast the masters to compute dtype, where the layers read them."""
        self._compute.copy_(self.master[: len(self._compute)])

    def snapshot(self) -> AdapterWeights:
        """An immutable copy in compute dtype, for samplers."""
        a, b = (list(views) for views in self._views(self._compute))
        joint: dict[int, tuple[Tensor, Tensor]] = {}
        for group in same_input([target.name for target in self._all]):
            places = [place for number in group if (place := self.weights.places[number]) is not None]
            if places:
                below, diagonal = torch.cat([a[i] for i in places]), torch.block_diag(*(b[i] for i in places))
                joint[group[0]] = below, diagonal
                self._point(a, b, places, below, diagonal)
        return AdapterWeights(a=tuple(a), b=tuple(b), scale=self.weights.scale, places=self.weights.places, joint=joint)

    def _point(self, a: list[Tensor], b: list[Tensor], places: Sequence[int], below: Tensor, diagonal: Tensor) -> None:
        """Let the matrices at these places be parts of the joint ones: there is one copy of each."""
        rank, start = self.lora.rank, 0
        for at, place in enumerate(places):
            columns, end = slice(at * rank, (at + 1) * rank), start + len(b[place])
            a[place], b[place], start = below[columns], diagonal[start:end, columns], end

    def named(self) -> dict[str, Tensor]:
        """The masters under PEFT's names, as copies on the CPU, in the order of the flat layout."""
        named: dict[str, Tensor] = {}
        for target, a, b in zip(self.targets, self.master_a, self.master_b, strict=True):
            named[f"base_model.model.{target.name}.lora_A.weight"] = a.cpu().contiguous().clone()
            named[f"base_model.model.{target.name}.lora_B.weight"] = b.cpu().contiguous().clone()
        return named

    def _initialise(self, seed: int) -> None:
        """As PEFT does: A uniform by Kaiming with a = sqrt(5), B zero; from a generator of its own, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        for a in self.master_a:
            fresh = torch.empty(a.shape, dtype=torch.float32)
            a.copy_(nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator))

    def _views(self, flat: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The A and the B of every target, as views of a flat buffer, without its tail."""
        parts = flat[: len(self._compute)].split([rows * columns for rows, columns in self._shapes])
        views = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return tuple(views[0::2]), tuple(views[1::2])


Trained = Adapter | FullModel
"""The trained part of a model: masters, gradient, weights in compute dtype, names for files."""
