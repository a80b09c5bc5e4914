"""Which inputs of an adapter's layers a training pass leaves out (LoRA's dropout, as PEFT has it)."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor


class Dropout:
    """Masks that are a function of the seed, the optimizer step, the number of the micro-batch in it, and the order of the
    layers: the same call draws the same ones, whatever else the engine computes. Engine thread only.

    Off until `begin`: samplers and calls without gradients leave nothing out. A token that several data share in a pass is
    computed once, and so has one mask for all of them.
    """

    __slots__ = ("_generator", "_on", "_rate", "_seed")

    def __init__(self, rate: float, seed: int, device: torch.device) -> None:
        self._rate, self._seed, self._on = rate, seed, False
        self._generator = torch.Generator(device)

    @property
    def rate(self) -> float:
        """The share of the inputs that is left out."""
        return self._rate

    def begin(self, step: int, micro_batch: int) -> None:
        """The masks of the next pass are those of this micro-batch."""
        name = f"dropout/{self._seed}/{step}/{micro_batch}".encode()
        self._generator.manual_seed(int.from_bytes(sha256(name).digest()[:7], "big"))
        self._on = True

    def end(self) -> None:
        """Leave nothing out from now on."""
        self._on = False

    def mask(self, x: Tensor) -> Tensor | None:
        """What to multiply x with, in its shape and type: 0, or 1 / (1 - rate). None where nothing is left out."""
        if not self._on:
            return None
        kept = torch.empty(x.shape, dtype=torch.float32, device=x.device).bernoulli_(
            1 - self._rate, generator=self._generator
        )
        return kept.div_(1 - self._rate).to(x.dtype)
