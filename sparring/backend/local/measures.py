"""The metrics of one call: sums and counts over its `N` scored tokens, so that calls are added up by adding.

`sparring.backend.totals` turns totals into rates. Distances are between trainer and sampler, `r = exp(lp - q)`, whatever the
loss measures its own ratio against; cross-entropy, whose data need no sampler, has none.

tokens               N
loss                 the loss itself
nll_sum              sum of -lp: a one-sample estimate of the entropy (of the cross-entropy, for data not sampled here)
entropy_sum          sum of the exact entropies of the distributions that tokens were scored with, where asked for, and
entropy_tokens       how many those are
ratio_sum            sum of r, and
ratio_squared_sum    sum of r^2: the effective sample size is ratio_sum^2 / ratio_squared_sum
log_ratio_bin/K      how many tokens' log r fall into bin K; see `sparring.backend.totals`. Only bins that are not empty
kl_k1_sum            sum of q - lp,
kl_k2_sum            sum of (log r)^2 / 2, and
kl_k3_sum            sum of (r - 1) - log r: estimates of KL(sampler || trainer) (http://joschu.net/blog/kl-approx.html)
clipped_low          how many tokens have their ratio at the lower bound (PPO, GSPO: no gradient; CISPO) or are masked (DPPO),
clipped_high         the same for the upper bound, and
clipped              the sum of both
truncated            how many tokens have their importance weight at its cap

Of a critic's call, whatever the tokens' weights in the loss:

tokens, loss         as above; without a loss, there are `tokens` and `value_sum` alone
value_sum            sum of the values v,
return_sum           of the returns R,
return_squared_sum   of R^2, and
value_error_squared_sum   of (v - R)^2
value_clipped_low    how many values are held at v_old - clip, without a gradient,
value_clipped_high   at v_old + clip, and
value_clipped        the sum of both
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparring.backend.local.objectives import Objective, Tokens
from sparring.backend.losses import CrossEntropy, Loss
from sparring.backend.totals import BIN, BINS_PER_DECADE, LAST_BIN, NARROWEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Metrics whose values may still be computed, on a device that works by itself: scalars by name, and counts of the bins."""

    tokens: int
    scalars: Mapping[str, Tensor]
    bins: Tensor | None = None

    def fetched(self) -> dict[str, float]:
        """The numbers, in one transfer; waits for the device. Of the bins, those that are not empty."""
        parts = [torch.stack([one.detach().double() for one in self.scalars.values()])] if self.scalars else []
        if self.bins is not None:
            parts.append(self.bins.double())
        values: list[float] = torch.cat(parts).tolist() if parts else []
        counts = values[len(self.scalars) :]
        return (
            {"tokens": float(self.tokens)}
            | dict(zip(self.scalars, values[: len(self.scalars)], strict=True))
            | {f"{BIN}{number - LAST_BIN}": count for number, count in enumerate(counts) if count}
        )


def measures(loss: Loss, lp: Tokens, q: Tokens, result: Objective) -> Sums:
    """The metrics above, but for the entropy; `lp` are the scored tokens' own log-probs."""
    lp = lp.detach()
    scalars = {"loss": result.loss, "nll_sum": -lp.sum()} | _clips(result)
    if result.truncated is not None:
        scalars["truncated"] = result.truncated.sum()
    if isinstance(loss, CrossEntropy):
        return Sums(tokens=len(lp), scalars=scalars)
    found = distances(lp, q)
    return Sums(tokens=len(lp), scalars=scalars | dict(found.scalars), bins=found.bins)


def value_measures(values: Tokens, returns: Tokens | None = None, result: Objective | None = None) -> Sums:
    """A critic's metrics above; without returns and what the loss made of them, those of the values alone."""
    v = values.detach().double()
    scalars = {"value_sum": v.sum()}
    if returns is None or result is None:
        return Sums(tokens=len(v), scalars=scalars)
    exact = returns.double()
    assert v.ndim == 1 and v.shape == exact.shape, (v.shape, exact.shape)
    scalars |= {
        "loss": result.loss,
        "return_sum": exact.sum(),
        "return_squared_sum": exact.square().sum(),
        "value_error_squared_sum": (v - exact).square().sum(),
    }
    return Sums(tokens=len(v), scalars=scalars | {f"value_{name}": count for name, count in _clips(result).items()})


def _clips(result: Objective) -> dict[str, Tensor]:
    if result.low is None or result.high is None:
        return {}
    low, high = result.low.sum(), result.high.sum()
    return {"clipped": low + high, "clipped_low": low, "clipped_high": high}


def distances(lp: Tokens, q: Tokens) -> Sums:
    """How far the trainer is from the sampler."""
    assert lp.ndim == 1 and lp.shape == q.shape, (lp.shape, q.shape)
    difference = lp - q
    ratio = torch.exp(difference)
    sums = {
        "ratio_sum": ratio.sum(),
        "ratio_squared_sum": ratio.square().sum(),
        "kl_k1_sum": -difference.sum(),
        "kl_k2_sum": difference.square().sum() / 2,
        "kl_k3_sum": (torch.expm1(difference) - difference).sum(),
    }
    return Sums(tokens=len(lp), scalars=sums, bins=histogram(difference))


def histogram(log_ratio: Tokens) -> Tensor:
    """Counts by bin K, K = -`LAST_BIN` first: 0 up to `NARROWEST` on either side of 0, then `BINS_PER_DECADE` a decade, the
    sign being the side. What is no number counts as 0; `Call.keep` refuses it."""
    size = torch.log10(log_ratio.abs().clamp_min(NARROWEST) / NARROWEST).nan_to_num_(nan=0.0)
    bins = torch.ceil(size * BINS_PER_DECADE).clamp(max=LAST_BIN).to(torch.int64) * _sign(log_ratio)
    counts = torch.zeros(2 * LAST_BIN + 1, dtype=torch.int64, device=log_ratio.device)
    return counts.index_add_(0, bins + LAST_BIN, torch.ones_like(bins))


def _sign(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1, 1)
