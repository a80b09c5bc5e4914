"""How the data of a call are laid out for forward passes: prefix trees, cut into micro-batches.

A **row** is a tree of tokens in depth-first order: what several data begin with stands in it once, and each token sees those
on its way from the root. So the prompt of a group, the turns that forks have in common, the earlier turns of a conversation and
equal beginnings of completions are computed once, keys and values included, and gradients flow into them from every datum. A
datum that shares nothing is a row of its own: plain causal.

Letters: `R` rows, `L` tokens of the longest row, `N` scored tokens of a micro-batch, `U` different ones among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparring.arrays import F32, I32
from sparring.backend.datum import Datum
from sparring.backend.local.shapes import rounded

I64 = NDArray[np.int64]

_BALANCE = 2048
"""Tokens of a row at which attention, which costs the row's length for each token, costs as much as all other products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Data (as indices into the call's list) in the order of their tokens; `shared` says how many of its first tokens each has
    in common with the one before it. `length` is what the row computes."""

    data: tuple[int, ...]
    shared: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a forward pass computes. Padding stands at the end of a row, where nothing real sees it.

    tokens      i64[R, L]
    positions   i64[R, L]   place of each token in its datum
    end         i64[R, L]   where the tokens that see this one end: it is seen by itself and what follows, up to there
    plain       whether no row branches: then attention is causal and nothing else
    """

    tokens: I64
    positions: I64
    end: I64
    plain: bool


def stack(parts: Sequence[Rows]) -> Rows:
    """Rows of several micro-batches under each other, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[1] for part in parts)

    def padded(fields: Sequence[I64], padding: I64) -> I64:
        rows = [np.tile(padding, (len(field), 1)) for field in fields]
        for row, field in zip(rows, fields, strict=True):
            row[:, : field.shape[1]] = field
        return np.concatenate(rows)

    nothing = np.zeros(longest, np.int64)
    return Rows(
        tokens=padded([part.tokens for part in parts], nothing),
        positions=padded([part.positions for part in parts], nothing),
        end=padded([part.end for part in parts], _seen_by_itself(longest)),
        plain=all(part.plain for part in parts),
    )


_Place = tuple[int, I64, I64]
"""A datum, its scored tokens, and the states that predict them, as `MicroBatch.source` counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Data of one model for one forward pass: its rows, and which of the hidden states are scored.

    source      i64[N]      index into the flattened [R * L] of the state that predicts each scored token
    targets     i64[N]      the scored tokens
    q, advantages, weights, temperature   f32[N]
    datum, token  i64[N]    where in the call each scored token stands
    distinct    i64[U]      one of each that differ in state, token or temperature: the rest have the same log-prob
    like        i64[N]      for each scored token the one of `distinct` that it is like
    """

    rows: Rows
    source: I64
    targets: I64
    q: F32
    advantages: F32
    weights: F32
    temperature: F32
    datum: I64
    token: I64
    distinct: I64
    like: I64


def plan(data: Sequence[Datum], *, token_budget: int, longest_tree: int = 1024) -> list[MicroBatch]:
    """Micro-batches that cover every datum once, in an order that depends on the data alone.

    Rows are sorted by length, longest first, so that those of one micro-batch need little padding, up to a length that comes
    up often (`rounded`); R * L stays within `token_budget` unless a single row exceeds it. A row of several data is at most
    `longest_tree` tokens, or its longest datum, because attention over a row costs its length squared.
    """
    rows = _trees(data, min(longest_tree, token_budget))
    rows.sort(key=lambda row: (-row.length, row.data))
    batches: list[list[Row]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * rounded(batches[-1][0].length) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [_lay_out(data, batch) for batch in batches]


def _trees(data: Sequence[Datum], limit: int) -> list[Row]:
    """Rows of data that are neighbours in the order of their tokens, so that what one shares with any other of its row it
    shares with the one before."""
    order = sorted(range(len(data)), key=lambda index: (data[index].tokens.astype(">u4").tobytes(), index))
    rows: list[Row] = []
    before: I32 = np.zeros(0, np.int32)
    for index in order:
        tokens = data[index].tokens
        common = _in_common(before, tokens)
        if rows and _joins(rows[-1].length, common, len(tokens), limit):
            row = rows[-1]
            length = row.length + len(tokens) - common
            rows[-1] = Row(data=(*row.data, index), shared=(*row.shared, common), length=length)
        else:
            rows.append(Row(data=(index,), shared=(0,), length=len(tokens)))
        before = tokens
    return rows


def _in_common(one: I32, other: I32) -> int:
    """How many first tokens two have in common."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter


def _joins(row: int, common: int, tokens: int, limit: int) -> bool:
    """Whether a datum that shares its first tokens with a row costs no more there than in a row of its own."""
    length = row + tokens - common
    return common > 0 and length <= max(limit, tokens) and _cost(length) - _cost(row) <= _cost(tokens)


def _cost(length: int) -> float:
    """Of a row, in tokens."""
    return length * (1 + length / _BALANCE)


def _seen_by_itself(length: int) -> I64:
    return np.arange(1, length + 1)


def _lay_out(data: Sequence[Datum], rows: Sequence[Row]) -> MicroBatch:
    longest = rounded(max(row.length for row in rows))
    tokens = np.zeros((len(rows), longest), np.int64)
    positions = np.zeros((len(rows), longest), np.int64)
    end = np.tile(_seen_by_itself(longest), (len(rows), 1))
    plain = True
    places: list[_Place] = []
    for r, row in enumerate(rows):
        path, length = np.zeros(0, np.int64), 0  # where the tokens of a datum stand in the row; what is laid out so far
        for index, common in zip(row.data, row.shared, strict=True):
            own: I32 = data[index].tokens[common:]
            plain = plain and common == len(path)
            end[r, path[common:]] = length
            fresh = np.arange(length, length + len(own))
            tokens[r, fresh], positions[r, fresh] = own, np.arange(common, common + len(own))
            path, length = np.concatenate([path[:common], fresh]), length + len(own)
            scored = np.flatnonzero(data[index].mask)
            places.append((index, scored, r * longest + path[scored - 1]))
        end[r, path] = length
    return _scored(data, Rows(tokens=tokens, positions=positions, end=end, plain=plain), places)


def _scored(data: Sequence[Datum], rows: Rows, places: Sequence[_Place]) -> MicroBatch:
    def pick(field: Callable[[Datum], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([field(data[index])[token] for index, token, _ in places])

    token, source = (np.concatenate([place[i] for place in places]) for i in (1, 2))
    datum = np.repeat([index for index, _, _ in places], [len(token) for _, token, _ in places])
    targets = pick(lambda one: one.tokens).astype(np.int64)
    temperature = pick(lambda one: np.full(len(one.tokens), one.temperature, np.float32))
    soft = pick(lambda one: np.full(len(one.tokens), one.soft_targets is not None))
    distinct, like = _distinct(source, targets, temperature.view(np.int32), np.where(soft, datum + 1, 0))
    return MicroBatch(
        rows=rows,
        source=source,
        targets=targets,
        q=pick(lambda one: one.logprobs),
        advantages=pick(lambda one: one.advantages),
        weights=pick(lambda one: one.weights),
        temperature=temperature,
        datum=datum,
        token=token,
        distinct=distinct,
        like=like,
    )


def _distinct(*fields: NDArray[np.integer[Any]]) -> tuple[I64, I64]:
    """The first index of each combination of what the fields, [N] each and not negative, hold, and for each index which
    combination it is. By sorting numbers, which is less work than sorting rows."""
    key = np.zeros(len(fields[0]), np.int64)
    for field in fields:
        values = field.astype(np.int64)
        if len(values) and values.max() != values.min():
            _, key = np.unique(key * (int(values.max()) + 1) + values, return_inverse=True)
    _, first, like = np.unique(key, return_index=True, return_inverse=True)
    return first, like
