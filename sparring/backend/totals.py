"""Metrics of several calls of a `TrainingClient`, added up and turned into rates."""

from collections.abc import Iterable, Mapping


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
    ratio_mean     1 when trainer and sampler agree
    ess            effective sample size as a share of the tokens, (sum r)^2 / (N sum r^2), in (0, 1]
    kl_k1, kl      estimates of KL(sampler || trainer) in nats per token; `kl` is k3, which is never negative
    clip_fraction  share of the tokens that clipping left without a gradient
    """
    tokens = totals.get("tokens", 0.0)
    if tokens == 0:
        return {}
    names = {
        "entropy": "nll_sum",
        "ratio_mean": "ratio_sum",
        "kl_k1": "kl_k1_sum",
        "kl": "kl_k3_sum",
        "clip_fraction": "clipped",
    }
    found = {name: totals[source] / tokens for name, source in names.items() if source in totals}
    if totals.get("ratio_squared_sum", 0.0) > 0:
        found["ess"] = totals["ratio_sum"] ** 2 / (tokens * totals["ratio_squared_sum"])
    return found
