"""Attention over cached keys and values, plugged into transformers' models for one forward pass at a time.

Letters: `B` rows of the pass, `S` slots that are read, `H` key-value heads, `G` query heads of each, `T` tokens of the pass,
`W` cached tokens that are looked at, `D` head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from sparring.backend.local.base import BaseModel
from sparring.backend.local.cache import KeyValueCache
from sparring.backend.local.lora import Segment
from sparring.backend.local.plugged import attend, plugged, refuse_unknown

_NAME = "sparring_slots"


@dataclass(frozen=True, slots=True)
class View:
    """The first `width` cached tokens, with a bias (0 or minus infinity) added to the scores: [S * H or 1, G * T or 1, W].

    `bias` has one for each window that layers have. `rows` are the rows of the pass whose result is taken from this view;
    None takes all.
    """

    width: int
    bias: Mapping[int | None, Tensor]
    rows: Tensor | None = None


def decoding_view(base: BaseModel, lengths: Tensor, width: int, rows: Tensor | None = None) -> View:
    """For one new token in each of S rows: it sees itself and the `lengths` i64[S] tokens before it."""
    place = torch.arange(width, device=base.device)
    heads = base.config.num_key_value_heads

    def bias(window: int | None) -> Tensor:
        unseen = place > lengths[:, None]
        if window is not None:
            unseen |= place <= lengths[:, None] - window
        scores = torch.zeros(unseen.shape, dtype=base.dtype, device=base.device).masked_fill_(unseen, -torch.inf)
        return scores.repeat_interleave(heads, dim=0)[:, None]

    return View(width, {window: bias(window) for window in base.windows}, rows)


def prompt_view(base: BaseModel, start: int, tokens: int) -> View:
    """For `tokens` new tokens behind `start` others, in any number of rows: each sees itself and what is before it."""
    groups = base.config.num_attention_heads // base.config.num_key_value_heads

    def bias(window: int | None) -> Tensor:
        seen = torch.ones((tokens, start + tokens), dtype=torch.bool, device=base.device).tril_(start)
        if window is not None:
            seen.triu_(start - window + 1)
        scores = torch.zeros(seen.shape, dtype=base.dtype, device=base.device).masked_fill_(~seen, -torch.inf)
        return scores.repeat(groups, 1)[None]

    return View(start + tokens, {window: bias(window) for window in base.windows})


@dataclass(slots=True)
class Pass:
    """What attention needs to know of one forward pass.

    slots     i64[n]   the slots that the first n rows of the pass are written to; rows after them are padding
    start     where the tokens of the pass go: one place for all rows (T tokens each), or i64[n] places (one token each)
    read      i64[S]   the slots that are read; None: the slots below S, in order, without copying them
    place     i64[S]   the row of the pass that belongs to each slot read; None: the same order
    back      i64[B]   for each row of the pass its place among the slots read; None: the same order
    views     what is looked at, by which rows
    layers    how many layers have attended
    """

    cache: KeyValueCache
    slots: Tensor
    start: int | Tensor
    views: Sequence[View]
    reads: int
    read: Tensor | None = None
    place: Tensor | None = None
    back: Tensor | None = None
    layers: int = 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        """Write key and value [B, H, T, D], attend with query [B, G * H, T, D]; the result is [B, T, G * H, D]."""
        self.layers += 1
        keys, values = self.cache.layer(layer)
        self._write(keys, values, key, value)
        if self.place is not None:
            query = query.index_select(0, self.place)
        out: Tensor | None = None
        for view in self.views:
            seen_keys, seen_values = (self._read(cached)[:, :, : view.width] for cached in (keys, values))
            seen = attend(query, seen_keys, seen_values, view.bias[window], scaling).transpose(1, 2)
            if view.rows is None:
                out = seen
            else:
                out = torch.zeros_like(seen) if out is None else out
                out[view.rows] = seen[view.rows]
        assert out is not None
        return out if self.back is None else out.index_select(0, self.back)

    def _write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
        count = self.slots.shape[0]
        if self.place is None:
            key, value = key[:count], value[:count]
        else:
            key, value = key.index_select(0, self.place[:count]), value.index_select(0, self.place[:count])
        if isinstance(self.start, int):
            span = slice(self.start, self.start + key.shape[2])
            keys[self.slots, :, span] = key
            values[self.slots, :, span] = value
        else:
            keys[self.slots, :, self.start] = key[:, :, 0]
            values[self.slots, :, self.start] = value[:, :, 0]

    def _read(self, cached: Tensor) -> Tensor:
        """The slots that are looked at, [S, H, L, D]."""
        return cached[: self.reads] if self.read is None else cached.index_select(0, self.read)


def _slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sparring_pass: Pass,
    scaling: float,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call, in the form it prescribes."""
    refuse_unknown(unknown)
    index = module.layer_idx
    assert isinstance(index, int)
    out = sparring_pass.attend(index, query, key, value, scaling=scaling, window=sliding_window)
    return out.contiguous(), None


AttentionInterface.register(_NAME, _slot_attention)


def forward(base: BaseModel, tokens: Tensor, positions: Tensor, segments: Sequence[Segment], given: Pass) -> Tensor:
    """Hidden states [B, T, D] of tokens i64[B, T] at positions i64[B, T], through the adapters of `segments`."""
    with base.call.rows(segments), plugged(base.config, _NAME):
        # A mask of four dimensions keeps transformers from making one of its own; attention uses the pass instead.
        output = base.body(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=tokens.new_zeros((1, 1, 1, 1)),
            use_cache=False,
            sparring_pass=given,
        )
    assert given.layers == base.config.num_hidden_layers, (given.layers, base.config.num_hidden_layers)
    hidden = output.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden
