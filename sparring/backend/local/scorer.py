"""What a policy's calls want of a pass: log-probs of the scored tokens, and a loss's gradient with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparring.arrays import F32
from sparring.backend.datum import Datum
from sparring.backend.local.base import BaseModel
from sparring.backend.local.call import Call, chosen, not_finite, nothing_yet, planned
from sparring.backend.local.custom import decide, slopes_at
from sparring.backend.local.head import HeadInput, TokenScores, score
from sparring.backend.local.lora import AdapterWeights, Weights
from sparring.backend.local.measures import Sums, measures
from sparring.backend.local.objectives import moves, objective, with_slopes
from sparring.backend.local.packing import MicroBatch
from sparring.backend.local.passes import Graded, Score, Wanted, Work
from sparring.backend.local.readout import Readout
from sparring.backend.local.scored import places_of, scored_tokens, targets_of
from sparring.backend.losses import Custom, Loss
from sparring.backend.training import ForwardOutput
from sparring.errors import NonFinite, SettingError


class Sloped(NamedTuple):
    """d loss / d value, f32[N], of a micro-batch that is scored, and the metrics of its loss, if it has its own."""

    slopes: Tensor
    sums: Sums | None = None


SlopesOf = Callable[[MicroBatch, TokenScores], Sloped]


class Scorer:
    """Log-probs under these weights (None: the base alone). Its calls run on the engine thread."""

    def __init__(self, base: BaseModel, weights: Weights | None, *, token_budget: int) -> None:
        self._base, self._weights, self._token_budget = base, weights, token_budget
        self._readout = Readout(base.head, weights)

    def work(
        self, data: Sequence[Datum], loss: Loss, *, train: bool, entropy: bool = False, among: int = 1
    ) -> Work[ForwardOutput]:
        """A call, for `Passes`; its micro-batches take the token budget's share of one `among` so many calls."""
        budget = max(1, self._token_budget // among)
        call = Call(data, nothing_yet(data), entropy)
        return Work(weights=self._weights, wanted=self._wanted(call, loss, train=train, budget=budget))

    def _wanted(self, call: Call, loss: Loss, *, train: bool, budget: int) -> Generator[Wanted, None, ForwardOutput]:
        self._readout.refresh()
        moving = [train and moves(loss, datum) for datum in call.data]
        batches = planned(call.data, moving, token_budget=budget)
        if isinstance(loss, Custom):
            yield from self._custom(call, loss, batches, budget)
        else:
            yield from self._each(call, batches, lambda batch, output: self._slopes(call, loss, batch, output))
        return ForwardOutput(logprobs=tuple(call.found), metrics=call.metrics)

    def _custom(
        self, call: Call, loss: Custom, batches: Sequence[tuple[MicroBatch, bool]], budget: int
    ) -> Iterator[Wanted]:
        """One pass where all data are in one micro-batch; else one for the log-probs and one for the gradient."""
        slopes: list[F32] = []

        def call_it() -> None:
            decided = decide(loss, call.data, call.found)
            call.count(decided.metrics)
            slopes.extend(decided.slopes)

        def at_once(batch: MicroBatch, output: TokenScores) -> Sloped:
            call.keep(batch, output.logprobs, "log-probs")
            call_it()
            return sloped(batch, output)

        def sloped(batch: MicroBatch, output: TokenScores) -> Sloped:
            return Sloped(slopes_at(slopes, batch).to(output.values.device))

        if len(batches) == 1:
            yield from self._each(call, batches, at_once)
            return
        train = any(moved for _, moved in batches)
        dropout = self._weights.dropout if isinstance(self._weights, AdapterWeights) else None
        if train and dropout is not None:
            raise SettingError(
                f"a custom loss over {len(batches)} micro-batches with lora.dropout={dropout.rate!r}: its two passes would "
                "leave out different inputs; set dropout=0, or raise token_budget so that the call is one micro-batch"
            )
        unmoved = [(batch, False) for batch, _ in batches]
        yield from self._each(call, unmoved, lambda _, output: Sloped(torch.zeros_like(output.values)))
        call_it()
        moving = [train and bool(slope.any()) for slope in slopes]
        again = replace(call, entropy=False, found=[lp.copy() for lp in call.found], metrics={})
        moved = [(batch, True) for batch in chosen(call.data, moving, wanted=True, token_budget=budget)]
        yield from self._each(again, moved, sloped)

    def _each(self, call: Call, batches: Sequence[tuple[MicroBatch, bool]], slopes_of: SlopesOf) -> Iterator[Wanted]:
        """Micro-batches to score, those that are marked with gradients."""
        for batch, moved in batches:
            yield Wanted(batch=batch, train=moved, score=self._scoring(call, batch, slopes_of, train=moved))

    def _scoring(self, call: Call, batch: MicroBatch, slopes_of: SlopesOf, *, train: bool) -> Score:
        """What is done with a micro-batch's hidden states."""

        def scoring(hidden: Tensor) -> Graded:
            device = self._base.device
            source, distinct, like = places_of(batch, device)
            states = self._readout.states(hidden.flatten(0, 1).index_select(0, source))
            targets = targets_of(call.data, batch, device)
            given = HeadInput(
                hidden=states.detach(),
                targets=targets.tokens[distinct],
                weights=targets.weights[distinct],
                temperature=torch.from_numpy(batch.temperature).to(device)[distinct],
                tempered=bool((batch.temperature != 1).any()),
            )
            output = score(self._readout.matrix, given, gradient=train, entropy=call.entropy)
            each = output.at(like)
            slopes, sums = slopes_of(batch, each)
            entropy = None if each.entropy is None else each.entropy.sum()

            def settle() -> None:
                call.keep(batch, each.logprobs, "log-probs")
                _assert_finite(slopes, batch, call.found)
                if entropy is not None:
                    call.count({"entropy_sum": entropy.item(), "entropy_tokens": float(len(batch.targets))})
                if sums is not None:
                    call.count(sums.fetched())

            if output.gradient is None or not len(source):
                return Graded(settle=settle)
            summed = torch.zeros_like(output.values).index_add_(0, like, slopes)
            scale = given.weights * (summed / given.temperature)[:, None]
            self._readout.add_gradient(given.hidden, given.targets, scale, given.temperature)
            return Graded(settle=settle, slope=(states, output.gradient.mul_(summed[:, None])))

        return scoring

    def _slopes(self, call: Call, loss: Loss, batch: MicroBatch, output: TokenScores) -> Sloped:
        """By autograd through the loss."""
        scored = scored_tokens(call.data, batch, loss, self._base.device)
        result, slopes = with_slopes(lambda values: objective(loss, values, scored), output.values)
        return Sloped(slopes, measures(loss, output.logprobs, scored.q, result))


def _assert_finite(slopes: Tensor, batch: MicroBatch, logprobs: Sequence[F32]) -> None:
    """Raises `NonFinite` naming the data whose gradients cannot be used."""
    values = slopes.cpu().numpy()
    if data := not_finite(batch, values):
        bad = ~np.isfinite(values)
        places = zip(batch.datum[bad], batch.token[bad], batch.q[bad], strict=True)
        furthest = max(float(logprobs[datum][token] - q) for datum, token, q in places)
        raise NonFinite(
            f"the gradient of data {data} is not finite: the trainer finds their tokens up to exp({furthest:.0f}) times "
            "as likely as the sampler did; were these the sampler's log-probs?"
        )
