"""Keys and values of the sequences that are being drawn: one slot each, in one tensor that grows in steps.

Letters: `N` layers, `R` slots, `H` key-value heads, `L` tokens, `D` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.backend.local.base import BaseModel

STEP = 128
"""By how many tokens the tensor grows, at least."""


class KeyValueCache:
    """Memory of at most `slots` sequences and `max_tokens` = slots in use x tokens of the longest.

    Nothing is allocated before it is needed; `release` gives everything back. A slot's contents beyond what was written are
    finite (zeros or older values), so that masked positions cannot spoil a sum.
    """

    def __init__(
        self, *, layers: int, heads: int, width: int, slots: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._layers, self._heads, self._width = layers, heads, width
        self.slots, self.max_tokens = slots, max_tokens
        self._dtype, self._device = dtype, device
        self._data = self._allocate(0, 0)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

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
    def bytes(self) -> int:
        """How much is allocated now."""
        return self._data.numel() * self._data.element_size()

    @property
    def capacity(self) -> tuple[int, int]:
        """Slots and tokens that are allocated now."""
        return self._data.shape[2], self._data.shape[4]

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether `rows` sequences of up to `tokens` tokens may be held; a single one always may."""
        return rows <= self.slots and (rows <= 1 or rows * tokens <= self.max_tokens)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for the slots below `rows`, of at most `tokens` tokens each; what these hold is kept.

        The tensor stays as it is where it suffices, grows where the bound allows, and else gives up slots or tokens that are
        not needed, so that slots x tokens stays within `max_tokens` (unless one sequence alone is longer).
        """
        have_rows, have_tokens = self.capacity
        if rows <= have_rows and tokens <= have_tokens:
            return
        wide = -(-tokens // STEP) * STEP
        new_tokens = have_tokens if have_tokens >= tokens and rows * have_tokens <= self.max_tokens else wide
        most = max(rows, min(self.slots, self.max_tokens // new_tokens))
        new_rows = min(most, max(rows, have_rows if rows <= have_rows else 2 * have_rows))
        grown = self._allocate(new_rows, new_tokens)
        kept_rows, kept_tokens = min(rows, have_rows), min(new_tokens, have_tokens)
        grown[:, :, :kept_rows, :, :kept_tokens] = self._data[:, :, :kept_rows, :, :kept_tokens]
        self._data = grown
        self._keys, self._values = list(grown[0].unbind(0)), list(grown[1].unbind(0))

    def release(self) -> None:
        """Give the memory back. Nothing that is still needed may be in it."""
        self._data = self._allocate(0, 0)
        self._keys, self._values = [], []

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, [R, H, L, D] each, to be written in place."""
        return self._keys[index], self._values[index]

    def copy(self, source: int, targets: list[int], tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to others, in all layers."""
        if targets:
            part = self._data[:, :, source : source + 1, :, :tokens]
            self._data[:, :, targets, :, :tokens] = part

    def _allocate(self, rows: int, tokens: int) -> Tensor:
        shape = (2, self._layers, rows, self._heads, tokens, self._width)
        return torch.zeros(shape, dtype=self._dtype, device=self._device)
