"""Keys and values of the sequences that are being drawn: one slot each, in two tensors that grow in steps.

Keys are kept transposed: that is how the product with a query reads them fastest.

Letters: `N` layers, `R` slots, `H` key-value heads, `L` tokens, `D` head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.backend.local.base import BaseModel

STEP = 128
"""By how many tokens the tensors grow, at least."""


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
        self._all_keys, self._all_values = self._allocate(0, 0)
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
        return 2 * self._all_keys.numel() * self._all_keys.element_size()

    @property
    def capacity(self) -> tuple[int, int]:
        """Slots and tokens that are allocated now."""
        return self._all_keys.shape[1], self._all_keys.shape[4]

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether `rows` sequences of up to `tokens` tokens may be held; a single one always may."""
        return rows <= self.slots and (rows <= 1 or rows * _whole(tokens) <= self.max_tokens)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for the slots below `rows`, of at most `tokens` tokens each; what these hold is kept.

        The tensors stay as they are where they suffice, grow where the bound allows, and else give up slots or tokens that are
        not needed, so that slots x tokens stays within `max_tokens` (unless one sequence alone is longer).
        """
        have_rows, have_tokens = self.capacity
        if rows <= have_rows and tokens <= have_tokens:
            return
        wide = _whole(tokens)
        new_tokens = have_tokens if have_tokens >= tokens and rows * have_tokens <= self.max_tokens else wide
        most = max(rows, min(self.slots, self.max_tokens // new_tokens))
        new_rows = min(most, max(rows, have_rows if rows <= have_rows else 2 * have_rows))
        keys, values = self._allocate(new_rows, new_tokens)
        kept_rows, kept_tokens = min(rows, have_rows), min(new_tokens, have_tokens)
        keys[:, :kept_rows, :, :, :kept_tokens] = self._all_keys[:, :kept_rows, :, :, :kept_tokens]
        values[:, :kept_rows, :, :kept_tokens] = self._all_values[:, :kept_rows, :, :kept_tokens]
        self._set(keys, values)

    def release(self) -> None:
        """Give the memory back. Nothing that is still needed may be in it."""
        self._set(*self._allocate(0, 0))

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys [R, H, D, L] and values [R, H, L, D] of one layer, to be written in place."""
        return self._by_layer[index]

    def copy(self, source: int, targets: list[int], tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to others, in all layers."""
        if targets:
            self._all_keys[:, targets, :, :, :tokens] = self._all_keys[:, source : source + 1, :, :, :tokens]
            self._all_values[:, targets, :, :tokens] = self._all_values[:, source : source + 1, :, :tokens]

    def read(self, slot: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """A copy of keys [N, H, D, L] and values [N, H, L, D] of some tokens of one slot."""
        return self._all_keys[:, slot, :, :, start:end].clone(), self._all_values[:, slot, :, start:end].clone()

    def write(self, slot: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put back what `read` gave, into any slot."""
        self._all_keys[:, slot, :, :, start : start + keys.shape[-1]] = keys
        self._all_values[:, slot, :, start : start + keys.shape[-1]] = values

    def _allocate(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self._dtype, device=self._device)

        outer = (self._layers, rows, self._heads)
        return zeros(*outer, self._width, tokens), zeros(*outer, tokens, self._width)

    def _set(self, keys: Tensor, values: Tensor) -> None:
        self._all_keys, self._all_values = keys, values
        self._by_layer = list(zip(keys.unbind(0), values.unbind(0), strict=True))


def _whole(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
