"""Forward and backward passes over one base, for one call or for the calls of several models at once.

A call is a series of micro-batches, each of which says what to do with its hidden states. Calls that run together put their
next micro-batches side by side into one pass, as long as the token budget allows, and each gets its own rows back.

Letters: `R` rows, `L` tokens of the longest row, `D` hidden, `N` scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sparring.backend.local.base import BaseModel
from sparring.backend.local.full import FullWeights
from sparring.backend.local.lora import Weights
from sparring.backend.local.packing import MicroBatch, Rows, stack
from sparring.errors import SparringError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What was made of a micro-batch's hidden states: states [N, C] that were computed from them, and the loss's gradient with
    respect to these; None where there is none.

    `settle` takes what is wanted of it to the host, and raises what is wrong with it. That waits for the device, so it is
    called when the backward pass is under way; gradients of numbers that cannot be used then are in the buffer, which is broken
    either way.
    """

    settle: Callable[[], None]
    slope: tuple[Tensor, Tensor] | None = None


Score = Callable[[Tensor], Graded]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A micro-batch that waits for its pass. `score` takes the hidden states [R, L, D]; there is a slope where `train`."""

    batch: MicroBatch
    train: bool
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Generic[T]):
    """One model's call: what it computes with (None: the base alone), its micro-batches, each asked for when the one before it
    is scored, and in the end the result. `before` is told before each pass whether that trains."""

    weights: Weights | None
    wanted: Generator[Wanted, None, T]
    before: Callable[[bool], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Passes over one base, each within `token_budget` unless a row exceeds it; `between` is called between two of them."""

    base: BaseModel
    token_budget: int
    between: Callable[[], None]

    def run(self, works: Sequence[Work[T]]) -> list[T | SparringError]:
        """Each call's result, or what it failed with while it was scored: that fails no other. Other failures are raised."""
        return _run(works, self)

    def result(self, work: Work[T]) -> T:
        """One call's result; raises what it failed with."""
        (result,) = _run([work], self)
        if isinstance(result, SparringError):
            raise result
        return result


def _run(works: Sequence[Work[T]], passes: Passes) -> list[T | SparringError]:
    results: dict[int, T | SparringError] = {}
    waiting: dict[int, Wanted] = {}

    def advance(index: int) -> None:
        waiting.pop(index, None)
        try:
            waiting[index] = next(works[index].wanted)
        except StopIteration as stop:
            results[index] = stop.value
        except SparringError as error:
            results[index] = error

    for index in range(len(works)):
        advance(index)
    while waiting:
        chosen = _side_by_side(works, waiting, passes.token_budget)
        results |= _pass(works, {index: waiting[index] for index in chosen}, passes.base)
        for index in chosen:
            if index in results:
                del waiting[index]
            else:
                advance(index)
        if waiting:
            passes.between()
    return [results[index] for index in range(len(works))]


def _side_by_side(works: Sequence[Work[Any]], waiting: dict[int, Wanted], token_budget: int) -> list[int]:
    """Which of the waiting go into the next pass: the first, and others that fit beside it. Full weights go alone."""
    first = min(waiting)
    chosen, rows, longest = [first], *waiting[first].batch.rows.tokens.shape
    if isinstance(works[first].weights, FullWeights):
        return chosen
    for index in sorted(waiting.keys() - {first}):
        more, length = waiting[index].batch.rows.tokens.shape
        fits = (rows + more) * max(longest, length) <= token_budget
        alone = isinstance(works[index].weights, FullWeights) or waiting[index].train != waiting[first].train
        if fits and not alone:
            chosen, rows, longest = [*chosen, index], rows + more, max(longest, length)
    return chosen


def _pass(works: Sequence[Work[Any]], chosen: dict[int, Wanted], base: BaseModel) -> dict[int, SparringError]:
    """One pass; returns the failures."""
    train = next(iter(chosen.values())).train
    parts: list[Rows] = [wanted.batch.rows for wanted in chosen.values()]
    segments = [(works[index].weights, len(wanted.batch.rows.tokens)) for index, wanted in chosen.items()]
    failed: dict[int, SparringError] = {}
    graded: dict[int, Graded] = {}
    for index in chosen:
        works[index].before(train)
    with torch.set_grad_enabled(train), base.call.rows(segments):
        hidden = base.hidden_states(stack(parts), train=train)
        start = 0
        for index, wanted in chosen.items():
            rows, length = wanted.batch.rows.tokens.shape
            try:
                graded[index] = wanted.score(hidden[start : start + rows, :length])
            except SparringError as error:
                failed[index] = error
            start += rows
        _backward([one.slope for one in graded.values() if one.slope is not None])
    for index, one in graded.items():
        try:
            one.settle()
        except SparringError as error:
            failed[index] = error
    return failed


def _backward(slopes: Sequence[tuple[Tensor, Tensor]]) -> None:
    if slopes:
        torch.autograd.backward([states for states, _ in slopes], [gradient for _, gradient in slopes])
