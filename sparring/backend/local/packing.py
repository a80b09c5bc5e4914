"""How the data of a call are laid out for forward passes: trees that share a prompt, cut into micro-batches.

A **row** is a prefix and the branches that continue it: `[prefix | branch | branch | ...]`. A branch's token sees the prefix
and what precedes it in its own branch, so the prefix is computed once for all of them, keys and values included, and gradients
flow into it from every branch. A datum that shares nothing is a row without a prefix and with one branch: plain causal.

Letters: `R` rows, `L` tokens of the longest row, `N` scored tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.arrays import F32, I32
from sparring.backend.datum import Datum

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Data (as indices into the call's list) whose first `prefix` tokens are equal. `length` is what the row computes."""

    prefix: int
    data: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a forward pass computes. Padding stands at the end of a row, where nothing real sees it.

    tokens      i64[R, L]
    positions   i64[R, L]   place of each token in its datum
    branch      i64[R, L]   0 for a prefix, 1, 2, ... for its branches, -1 for padding
    plain       whether no row has a prefix: then attention is causal and nothing else
    """

    tokens: I64
    positions: I64
    branch: I64
    plain: bool


def stack(parts: Sequence[Rows]) -> Rows:
    """Rows of several micro-batches under each other, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[1] for part in parts)

    def padded(fields: Sequence[I64], value: int) -> I64:
        widths = [((0, 0), (0, longest - field.shape[1])) for field in fields]
        return np.concatenate([np.pad(f, w, constant_values=value) for f, w in zip(fields, widths, strict=True)])

    return Rows(
        tokens=padded([part.tokens for part in parts], 0),
        positions=padded([part.positions for part in parts], 0),
        branch=padded([part.branch for part in parts], -1),
        plain=all(part.plain for part in parts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Data of one model for one forward pass: `rows`' fields, and which of the hidden states are scored.

    source      i64[N]      index into the flattened [R * L] of the state that predicts each scored token
    targets     i64[N]      the scored tokens
    q, advantages, weights, temperature   f32[N]
    datum, token  i64[N]    where in the call each scored token stands
    """

    tokens: I64
    positions: I64
    branch: I64
    plain: bool
    source: I64
    targets: I64
    q: F32
    advantages: F32
    weights: F32
    temperature: F32
    datum: I64
    token: I64

    @property
    def rows(self) -> Rows:
        """What is computed."""
        return Rows(tokens=self.tokens, positions=self.positions, branch=self.branch, plain=self.plain)


def plan(data: Sequence[Datum], *, token_budget: int, longest_tree: int = 1024) -> list[MicroBatch]:
    """Micro-batches that cover every datum once, in an order that depends on the data alone.

    Rows are sorted by length, longest first, so that those of one micro-batch need little padding; R * L stays within
    `token_budget` unless a single row exceeds it. A row with a prefix is at most `longest_tree` tokens,
    because attention over a row costs its length squared.
    """
    limit = min(longest_tree, token_budget)
    rows = _shared_rows(data, limit)
    rows.sort(key=lambda row: (-row.length, row.data))
    batches: list[list[Row]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * batches[-1][0].length <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [_lay_out(data, batch) for batch in batches]


def _single(data: Sequence[Datum], index: int) -> Row:
    return Row(prefix=0, data=(index,), length=len(data[index].tokens))


def _shared_rows(data: Sequence[Datum], limit: int) -> list[Row]:
    """Group data by the tokens before their first scored one; each group becomes rows of at most `limit` tokens."""
    groups: dict[bytes, list[int]] = {}
    for index, datum in enumerate(data):
        prefix = _prompt_length(datum)
        groups.setdefault(np.ascontiguousarray(datum.tokens[:prefix], dtype=np.int32).tobytes(), []).append(index)
    rows: list[Row] = []
    for members in groups.values():
        rows.extend(_cut(data, members, limit))
    return rows


def _prompt_length(datum: Datum) -> int:
    """Tokens before the first scored one; all of them where none is scored."""
    scored = np.flatnonzero(datum.mask)
    return int(scored[0]) if len(scored) else len(datum.tokens)


def _cut(data: Sequence[Datum], members: list[int], limit: int) -> list[Row]:
    """Rows of one group: consecutive members while they fit; a member that stays alone shares nothing."""
    prefix = _prompt_length(data[members[0]])
    rows: list[Row] = []
    current: list[int] = []
    length = prefix
    for index in members:
        own = len(data[index].tokens) - prefix
        if current and length + own > limit:
            rows.append(_row(data, prefix, current, length))
            current, length = [], prefix
        current.append(index)
        length += own
    rows.append(_row(data, prefix, current, length))
    return rows


def _row(data: Sequence[Datum], prefix: int, members: list[int], length: int) -> Row:
    if len(members) == 1:
        return _single(data, members[0])
    return Row(prefix=prefix, data=tuple(members), length=length)


def _lay_out(data: Sequence[Datum], rows: Sequence[Row]) -> MicroBatch:
    longest = max(row.length for row in rows)
    tokens = np.zeros((len(rows), longest), np.int64)
    positions = np.zeros((len(rows), longest), np.int64)
    branch = np.full((len(rows), longest), -1, np.int64)
    places: list[tuple[I64, I64, I64]] = []
    for r, row in enumerate(rows):
        first = data[row.data[0]].tokens[: row.prefix]
        tokens[r, : row.prefix], positions[r, : row.prefix] = first, np.arange(row.prefix)
        branch[r, : row.prefix] = 0
        start = row.prefix
        for number, index in enumerate(row.data, start=1):
            own: I32 = data[index].tokens[row.prefix :]
            end = start + len(own)
            tokens[r, start:end], branch[r, start:end] = own, number
            positions[r, start:end] = np.arange(row.prefix, row.prefix + len(own))
            scored = np.flatnonzero(data[index].mask)
            column = np.where(scored == row.prefix, row.prefix - 1, start + scored - row.prefix - 1)
            places.append((np.full(len(scored), index, np.int64), scored, r * longest + column))
            start = end
    order = [index for row in rows for index in row.data]
    datum, token, source = (np.concatenate([place[i] for place in places]) for i in range(3))
    return MicroBatch(
        tokens=tokens,
        positions=positions,
        branch=branch,
        plain=all(row.prefix == 0 for row in rows),
        source=source,
        targets=_pick([data[i].tokens for i in order], places).astype(np.int64),
        q=_pick([data[i].logprobs for i in order], places),
        advantages=_pick([data[i].advantages for i in order], places),
        weights=_pick([data[i].weights for i in order], places),
        temperature=_pick([np.full(len(data[i].tokens), data[i].temperature, np.float32) for i in order], places),
        datum=datum,
        token=token,
    )


def _pick(fields: Sequence[NDArray[Any]], places: Sequence[tuple[I64, I64, I64]]) -> NDArray[Any]:
    """One field of the data, in the order of `places`, at their scored tokens."""
    return np.concatenate([field[token] for field, (_, token, _) in zip(fields, places, strict=True)])
