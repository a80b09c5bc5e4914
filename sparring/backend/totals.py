"""Metrics of several calls of a `TrainingClient`, added up and turned into rates."""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import ceil, exp, log10, sqrt

BIN = "log_ratio_bin/"
NARROWEST, BINS_PER_DECADE, LAST_BIN = 1e-5, 16, 104
"""Log-ratios are counted in bins of equal width on a logarithmic scale, the same in every call, so that counts add up. Bin 0
holds |log r| <= 1e-5, bin K the log-ratios up to 1e-5 * 10^(K / 16), bin -K their negatives; the last ones all beyond 31.6."""

_PER_TOKEN = {
    "entropy": "nll_sum",
    "ratio_mean": "ratio_sum",
    "kl_k1": "kl_k1_sum",
    "kl_k2": "kl_k2_sum",
    "kl": "kl_k3_sum",
    "clip_fraction": "clipped",
    "clip_fraction_low": "clipped_low",
    "clip_fraction_high": "clipped_high",
    "truncated_fraction": "truncated",
    "value_mean": "value_sum",
    "return_mean": "return_sum",
    "value_clip_fraction": "value_clipped",
    "value_clip_fraction_low": "value_clipped_low",
    "value_clip_fraction_high": "value_clipped_high",
}
"""Rate -> the sum that it divides by the tokens."""


def add_up(calls: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The totals of several calls' metrics: each is a sum or a count, so totals are sums; a missing one counts as 0."""
    totals: dict[str, float] = {}
    for metrics in calls:
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def rates(totals: Mapping[str, float]) -> dict[str, float]:
    """What a person reads, from totals over `tokens` scored tokens; only those whose sums are there.

    entropy        nats per token, estimated from the sampled tokens
    entropy_exact  nats per token, of the distributions themselves; where it was asked for
    ratio_mean     1 when trainer and sampler agree
    ratio_p01, ratio_p50, ratio_p99   quantiles of the ratio; |log r| is right to about 8 %
    ess            effective sample size as a share of the tokens, (sum r)^2 / (N sum r^2), in (0, 1]
    kl_k1, kl_k2, kl   estimates of KL(sampler || trainer) in nats per token; `kl` is k3, which is never negative
    clip_fraction  share of the tokens that the loss clipped (PPO, GSPO, DPPO: left without a gradient), and
    clip_fraction_low, clip_fraction_high   by side
    truncated_fraction   share of the tokens whose importance weight met its cap

    Of a critic:

    value_mean, return_mean   per token
    value_error         root of the mean squared difference between value and return
    explained_variance  1 - Var(R - v) / Var(R): 1 for values that tell returns, 0 for values that are all alike; not there
                        where the returns are all alike
    value_clip_fraction, value_clip_fraction_low, value_clip_fraction_high   share of the values that the loss clipped
    """
    tokens = totals.get("tokens", 0.0)
    if tokens == 0:
        return {}
    found = {name: totals[source] / tokens for name, source in _PER_TOKEN.items() if source in totals}
    if totals.get("ratio_squared_sum", 0.0) > 0:
        found["ess"] = totals["ratio_sum"] ** 2 / (tokens * totals["ratio_squared_sum"])
    if totals.get("entropy_tokens", 0.0) > 0:
        found["entropy_exact"] = totals["entropy_sum"] / totals["entropy_tokens"]
    if "value_error_squared_sum" in totals:
        found |= _value_rates(totals, tokens)
    counts = {int(name.removeprefix(BIN)): count for name, count in totals.items() if name.startswith(BIN)}
    if counts:
        found |= {f"ratio_p{share:02d}": exp(quantile(counts, share / 100)) for share in (1, 50, 99)}
    return found


def _value_rates(totals: Mapping[str, float], tokens: float) -> dict[str, float]:
    squared, mean = totals["value_error_squared_sum"] / tokens, totals["return_sum"] / tokens
    bias = totals["value_sum"] / tokens - mean
    spread, all_of_it = totals["return_squared_sum"] / tokens - mean**2, totals["return_squared_sum"] / tokens
    found = {"value_error": sqrt(squared)}
    if spread > 1e-12 * all_of_it:  # less is rounding of the two that were subtracted
        found["explained_variance"] = 1 - (squared - bias**2) / spread
    return found


def bin_of(value: float) -> int:
    """The bin of a value that is not negative."""
    return min(LAST_BIN, max(0, ceil(log10(max(value, NARROWEST) / NARROWEST) * BINS_PER_DECADE)))


def quantile(counts: Mapping[int, float], share: float) -> float:
    """The value (a log-ratio) that `share` of those counted in `counts`, {bin: how many}, do not exceed, as the middle of
    its bin."""
    wanted, order = share * sum(counts.values()), sorted(counts)
    upto = accumulate(counts[number] for number in order)
    number = next(number for number, seen in zip(order, upto, strict=True) if seen >= wanted)
    size = NARROWEST * 10 ** ((abs(number) - 0.5) / BINS_PER_DECADE)
    return 0.0 if number == 0 else size if number > 0 else -size
