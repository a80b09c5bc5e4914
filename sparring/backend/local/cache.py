"""Keys and values of the sequences that are being drawn: one slot each, in one tensor that grows in steps.

Letters: `N` layers, `R` slots, `H` key-value heads, `L` tokens, `D` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.backend.local.base import BaseModel

STEP = 32
"""By how many tokens it grows, at least. As many as decoding looks at more at a time: all that is there is looked at then, and
products take it as it lies, without copying a part of it first, which costs them half as much again."""


class KeyValueCache:
    """Memory of at most `slots` sequences and `max_tokens` = slots in use x tokens of the longest.

    Nothing is allocated before it is needed; `release` gives everything back. A slot's contents beyond what was written are
    finite (zeros or older values), so that masked positions cannot spoil a sum.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        width: int,
        slots: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._layers, self._heads, self._width = layers, heads, width
        self.slots, self.max_tokens = slots, max_tokens
        self._dtype, self._device = dtype, device
        self._all = self._allocate(0, 0)
        self._by_layer: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, base: BaseModel, *, slots: int, max_tokens: int) -> KeyValueCache:
        """For the keys and values of a model."""
        settings = base.config.to_dict()  # not every kind of model has every field
        heads = settings["num_attention_heads"]
        return cls(
            layers=settings["num_hidden_layers"],
            heads=settings.get("num_key_value_heads") or heads,
            width=settings.get("head_dim") or settings["hidden_size"] // heads,
            slots=slots,
            max_tokens=max_tokens,
            dtype=base.dtype,
            device=base.device,
        )

    @property
    def bytes_per_token(self) -> int:
        """What one token of one sequence takes."""
        return 2 * self._layers * self._heads * self._width * self._dtype.itemsize

    @property
    def bytes(self) -> int:
        """How much is allocated now."""
        return self._all.numel() * self._all.element_size()

    @property
    def capacity(self) -> tuple[int, int]:
        """Slots and tokens that are allocated now."""
        return self._all.shape[2], self._all.shape[4]

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether `rows` sequences of up to `tokens` tokens may be held; a single one always may."""
        return rows <= self.slots and (rows <= 1 or rows * _whole(tokens) <= self.max_tokens)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for the slots below `rows`, of at most `tokens` tokens each; what these hold is kept.

        The tensor stays as it is where it suffices, grows where the bound allows, and else gives up slots or tokens that are
        not needed, so that slots x tokens stays within `max_tokens` (unless one sequence alone is longer).
        """
        have_rows, have_tokens = self.capacity
        if rows <= have_rows and tokens <= have_tokens:
            return
        wide = _whole(tokens)
        new_tokens = have_tokens if have_tokens >= tokens and rows * have_tokens <= self.max_tokens else wide
        most = max(rows, min(self.slots, self.max_tokens // new_tokens))
        new_rows = min(most, max(rows, have_rows if rows <= have_rows else 2 * have_rows))
        new = self._allocate(new_rows, new_tokens)
        kept_rows, kept_tokens = min(rows, have_rows), min(new_tokens, have_tokens)
        new[:, :, :kept_rows, :, :kept_tokens] = self._all[:, :, :kept_rows, :, :kept_tokens]
        self._set(new)

    def release(self) -> None:
        """Give the memory back. Nothing that is still needed may be in it."""
        self._set(self._allocate(0, 0))

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values [R, H, L, D] of one layer, to be written in place."""
        return self._by_layer[index]

    def copy(self, source: int, targets: list[int], tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to others, in all layers."""
        if targets:
            self._all[:, :, targets, :, :tokens] = self._all[:, :, source : source + 1, :, :tokens]

    def read(self, slot: int, start: int, end: int) -> Tensor:
        """A copy of keys and values [N, 2, H, L, D] of some tokens of one slot."""
        return self._all[:, :, slot, :, start:end].clone()

    def write(self, slot: int, start: int, kept: Tensor) -> None:
        """Put back what `read` gave, into any slot."""
        self._all[:, :, slot, :, start : start + kept.shape[3]] = kept

    def _allocate(self, rows: int, tokens: int) -> Tensor:
        shape = (self._layers, 2, rows, self._heads, tokens, self._width)
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _set(self, tensor: Tensor) -> None:
        self._all = tensor
        self._by_layer = [(keys, values) for keys, values in tensor.unbind(0)]


def _whole(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
