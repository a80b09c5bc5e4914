"""What a critic's calls want of a pass: values of the states before scored tokens, and a loss's gradient by value."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from sparring.backend.datum import Datum, ValueDatum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.call import Call, not_finite, nothing_yet, planned
from sparring.backend.local.lora import Trained
from sparring.backend.local.measures import Sums, value_measures
from sparring.backend.local.objectives import clipped_value, with_slopes
from sparring.backend.local.packing import MicroBatch
from sparring.backend.local.passes import Graded, Score, Wanted, Work
from sparring.backend.local.scored import places_of
from sparring.backend.local.value_head import ValueHead
from sparring.backend.losses import ClippedValue
from sparring.backend.training import ValueOutput
from sparring.errors import NonFinite


class ValueScorer:
    """Values under what a critic has trained so far. Its calls run on the engine thread."""

    def __init__(self, base: BaseModel, trained: Trained, *, token_budget: int) -> None:
        self._device, self._weights, self._token_budget = base.device, trained.weights, token_budget
        self._head = ValueHead(trained)

    def work(self, data: Sequence[ValueDatum], loss: ClippedValue | None, *, train: bool) -> Work[ValueOutput]:
        """A call, for `Passes`. Without a loss, values alone."""
        laid_out = [_laid_out(datum) for datum in data]
        moving = [train and bool(np.any(datum.weights[datum.mask])) for datum in data]
        call = Call(laid_out, nothing_yet(laid_out))
        return Work(weights=self._weights, wanted=self._wanted(call, loss, moving))

    def _wanted(
        self, call: Call, loss: ClippedValue | None, moving: Sequence[bool]
    ) -> Generator[Wanted, None, ValueOutput]:
        for batch, moved in planned(call.data, moving, token_budget=self._token_budget):
            yield Wanted(batch=batch, train=moved, score=self._scoring(call, loss, batch, train=moved))
        return ValueOutput(values=tuple(call.found), metrics=call.metrics)

    def _scoring(self, call: Call, loss: ClippedValue | None, batch: MicroBatch, *, train: bool) -> Score:
        """What is done with a micro-batch's hidden states."""

        def scoring(hidden: Tensor) -> Graded:
            source, _, like = places_of(batch, self._device)
            states = hidden.flatten(0, 1).index_select(0, source)
            values = self._head.values(states)
            each = values[like]
            slopes, sums = self._slopes(loss, batch, each)

            def settle() -> None:
                call.keep(batch, each, "values")
                _assert_finite(slopes, batch)
                call.count(sums.fetched())

            if not train or not len(source):
                return Graded(settle=settle)
            summed = torch.zeros_like(values).index_add_(0, like, slopes)
            return Graded(settle=settle, slope=(states, self._head.backward(states, summed)))

        return scoring

    def _slopes(self, loss: ClippedValue | None, batch: MicroBatch, values: Tensor) -> tuple[Tensor, Sums]:
        """d loss / d value, f32[N], and the metrics. In float64, where the square of no fp32 number overflows."""
        if loss is None:
            return torch.zeros_like(values), value_measures(values)
        old, returns, weights = (
            torch.from_numpy(field).to(self._device).double() for field in (batch.q, batch.advantages, batch.weights)
        )
        result, exact = with_slopes(
            lambda leaf: clipped_value(leaf, old, returns, weights, clip=loss.clip), values.double()
        )
        return exact.float(), value_measures(values, returns, result)


def _assert_finite(slopes: Tensor, batch: MicroBatch) -> None:
    """Raises `NonFinite` naming the data whose gradients cannot be used."""
    if data := not_finite(batch, slopes.cpu().numpy()):
        raise NonFinite(
            f"the gradient of data {data} is not finite: weight times (value - return) has no place in fp32; scale returns"
        )


def _laid_out(datum: ValueDatum) -> Datum:
    """A policy's datum of the same tokens, for `plan`, which lays out three more numbers for each: here the old value (where
    the log-prob stands), the return (where the advantage stands) and the weight."""
    zeros = np.zeros(len(datum.tokens), np.float32)
    return Datum(
        tokens=datum.tokens,
        mask=datum.mask,
        logprobs=zeros if datum.old_values is None else datum.old_values,
        advantages=zeros if datum.returns is None else datum.returns,
        weights=datum.weights,
    )
