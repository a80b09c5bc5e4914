"""The part of the report that tells how asynchrony went: where units and tokens went, how old they were, how far trainer and
sampler were apart, whom drops hit, and whether the event loop was free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.learner.accounts import Accounts, Ages
from sparring.learner.chart import Series, histogram, line_chart
from sparring.learner.history import History, figures
from sparring.learner.pieces import section, table
from sparring.learner.run_statistics import PREFIX
from sparring.learner.take import ESS_BY_STALENESS
from sparring.rollout.bias import Fate, Tally
from sparring.rollout.ledger import REASONS, Count, DropReason

_RATIO = "Ratio of trainer to sampler, 1 % to 99 %"


def asynchrony(told: History, found: Accounts) -> str:
    """The sections, one after the other."""
    charts = [*_ages("Age of trained tokens", found.fresh), *_ages("Age of tokens used again", found.again)]
    charts += [chart for policy in told.policies for chart in _ratios(told, policy)]
    charts.append(_loop(told))
    return "".join(
        (
            section("Ledger", _ledger(found)),
            section(
                "Age, ratios and lag", f"<div class=grid>{''.join(f'<figure>{one}</figure>' for one in charts)}</div>"
            ),
            section("Trained and dropped", _bias(found.bias)),
        )
    )


def _ledger(found: Accounts) -> str:
    said = "<p>Units, with their action tokens; a unit that is played in two seats counts in both.</p>"
    reasons: list[DropReason] = [reason for reason in REASONS if any(row.dropped[reason].units for row in found.ledger)]
    again = any(row.retried.units for row in found.ledger)
    frozen = any(row.frozen.units for row in found.ledger)
    heads = ["policy", "seat", "dispatched", "trained", "buffered", "in flight"]
    heads += [f"dropped ({reason})" for reason in reasons]
    reused = any(row.reused.units or row.expired.units for row in found.ledger)
    rows: list[tuple[str, ...]] = []
    for row in found.ledger:
        counts = [
            row.dispatched,
            row.trained,
            row.buffered,
            row.in_flight,
            *(row.dropped[reason] for reason in reasons),
        ]
        counts += [row.reused, row.expired] if reused else []
        counts += [row.retried] if again else []
        counts += [row.frozen] if frozen else []
        rows.append((row.policy, row.seat, *map(_count, counts)))
    heads += ["used again", "too old for it"] if reused else []
    heads += ["failed attempts, played again"] if again else []
    heads += ["played frozen"] if frozen else []
    return said + table(tuple(heads), rows)


def _count(count: Count) -> str:
    return f"{count.units} ({count.tokens})" if count.tokens else str(count.units)


def _ages(title: str, ages: Ages) -> list[str]:
    several = len(ages) > 1
    return [
        histogram(f"{title}{f', {policy}' if several else ''}", counts, axis="versions")
        for policy, counts in ages.items()
    ]


def _ratios(told: History, policy: str) -> list[str]:
    """Quantiles of the ratio, and the effective sample size of the tokens of each age."""
    steps = told.of(policy)
    of = f", {policy}" if len(told.policies) > 1 else ""
    ratios = [Series(label=name, points=figures(steps, "engine", f"ratio_{name}")) for name in ("p01", "p50", "p99")]
    ages = sorted({name for step in steps for name in step.engine if name.startswith(ESS_BY_STALENESS)})
    ess = [
        Series(label=f"age {name.removeprefix(ESS_BY_STALENESS)}", points=figures(steps, "engine", name))
        for name in ages
    ]
    by_age = line_chart(f"Effective sample size by age{of}", ess, y=(0.0, 1.0))
    return [line_chart(f"{_RATIO}{of}", ratios), by_age]


def _loop(told: History) -> str:
    """Lag over all steps so far, in milliseconds."""
    steps = told.of(told.policies[0]) if told.policies else ()
    series = [
        Series(
            label=label,
            points=[(x, 1000 * y) for x, y in figures(steps, "timing", f"{PREFIX}loop/lag_{name}")],
            thin=name == "max",
        )
        for label, name in (("p50", "p50"), ("p99", "p99"), ("longest", "max"))
    ]
    return line_chart("Event-loop lag so far, ms", series, y=(0.0, None))


def _bias(bias: Mapping[tuple[str, str, Fate], Tally]) -> str:
    if all(fate == "trained" for _, _, fate in bias):
        return "<p>Nothing was dropped.</p>"
    said = (
        "<p>What is dropped is not dropped at random: deadlines and ages take long replies, filters take easy and hard "
        "tasks.</p>"
    )
    rows: list[tuple[str, ...]] = []
    for (policy, seat, fate), tally in bias.items():
        reward = "-" if tally.mean_reward is None else f"{tally.mean_reward:.3g}"
        length = f"{tally.mean_length:.1f}"
        rows.append((policy, seat, fate, str(tally.count), str(len(tally.tasks)), length, reward))
    heads = ("policy", "seat", "what", "episodes", "tasks", "mean length", "mean reward")
    return said + table(heads, rows) + _lengths(bias)


def _lengths(bias: Mapping[tuple[str, str, Fate], Tally]) -> str:
    """The share of each row's parts by length, in powers of two."""
    bins = sorted({length for tally in bias.values() for length in tally.lengths})
    heads = [f"{low} to {2 * low - 1}" if low > 1 else str(low) for low in bins]
    rows: list[Sequence[str]] = [
        (policy, seat, fate, *(f"{100 * tally.lengths[low] / tally.count:.0f} %" for low in bins))
        for (policy, seat, fate), tally in bias.items()
    ]
    return f"<h3>Share by length, in action tokens</h3>{table(('policy', 'seat', 'what', *heads), rows)}"
