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

import torch
from torch import Tensor

from sparring.backend.local.objectives import Objective, Tokens
from sparring.backend.losses import CrossEntropy, Loss
from sparring.backend.totals import BIN, BINS_PER_DECADE, LAST_BIN, NARROWEST


def measures(loss: Loss, lp: Tokens, q: Tokens, result: Objective) -> dict[str, float]:
    """The metrics above, but for the entropy; `lp` are the scored tokens' own log-probs."""
    lp = lp.detach()
    found = {"tokens": float(len(lp)), "loss": result.loss.item(), "nll_sum": -lp.sum().item()}
    if not isinstance(loss, CrossEntropy):
        found |= distances(lp, q)
    found |= _clips(result)
    if result.truncated is not None:
        found["truncated"] = float(result.truncated.sum())
    return found


def value_measures(values: Tokens, returns: Tokens | None = None, result: Objective | None = None) -> dict[str, float]:
    """A critic's metrics above; without returns and what the loss made of them, those of the values alone."""
    v = values.detach().double()
    found = {"tokens": float(len(v)), "value_sum": v.sum().item()}
    if returns is None or result is None:
        return found
    exact = returns.double()
    assert v.ndim == 1 and v.shape == exact.shape, (v.shape, exact.shape)
    sums = {
        "loss": result.loss,
        "return_sum": exact.sum(),
        "return_squared_sum": exact.square().sum(),
        "value_error_squared_sum": (v - exact).square().sum(),
    }
    clips = {f"value_{name}": count for name, count in _clips(result).items()}
    return found | {name: value.item() for name, value in sums.items()} | clips


def _clips(result: Objective) -> dict[str, float]:
    if result.low is None or result.high is None:
        return {}
    low, high = float(result.low.sum()), float(result.high.sum())
    return {"clipped": low + high, "clipped_low": low, "clipped_high": high}


def distances(lp: Tokens, q: Tokens) -> dict[str, float]:
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
    return {name: value.item() for name, value in sums.items()} | histogram(difference)


def histogram(log_ratio: Tokens) -> dict[str, float]:
    """Counts by bin: K = 0 up to `NARROWEST` on either side of 0, then `BINS_PER_DECADE` a decade, the sign being the side."""
    size = torch.log10(log_ratio.abs().clamp_min(NARROWEST) / NARROWEST)
    bins = torch.ceil(size * BINS_PER_DECADE).clamp(max=LAST_BIN).to(torch.int64) * _sign(log_ratio)
    counts = torch.bincount(bins + LAST_BIN, minlength=2 * LAST_BIN + 1).tolist()
    return {f"{BIN}{number - LAST_BIN}": float(count) for number, count in enumerate(counts) if count}


def _sign(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1, 1)
