"""What the report tells of asynchrony is what happened: ledger, ages, effective sample size by age, and whom drops hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest

from sparring import Reuse, grpo
from sparring.backend import Datum, ForwardOutput, Loss
from sparring.backend.pending import PendingResult
from sparring.backend.scripted import ScriptedModel, babble
from sparring.learner.accounts import accounts
from sparring.learner.algorithm import EqualRewards
from sparring.learner.chart import histogram
from sparring.learner.history import history
from sparring.learner.report import page
from sparring.learner.run import Policy
from sparring.learner.take import take_step
from sparring.learner.taught import Taught
from sparring.rollout import Batch, Coordinator, Schedule
from sparring.rollout.events import Acted, AnyEvent, Ended, Opened, Planned, Stepped
from tests.learner.moods import run_of, sometimes, trained
from tests.learner.sets import prepare
from tests.learner.story import run as story_run
from tests.learner.story import story
from tests.learner.test_report import Page
from tests.learner.worlds import duel_run


def folded(events: Sequence[AnyEvent], until: type[AnyEvent]) -> Coordinator:
    """The state right after the last event of that kind."""
    opened = events[0]
    assert isinstance(opened, Opened)
    state = Coordinator(msgspec.convert(opened.run["schedule"], Schedule))
    last = max(index for index, event in enumerate(events) if isinstance(event, until))
    for event in events[1 : last + 1]:
        state.apply(event)
    return state


def test_nothing_is_told_of_a_run_that_never_began() -> None:
    assert accounts([]) is None
    with pytest.raises(AssertionError, match="came before the run's settings"):
        accounts(story(2)[1:])


async def test_ages_are_those_of_every_trained_token(tmp_path: Path) -> None:
    """Counted once more from the replies and the plans alone."""
    run = replace(duel_run(tmp_path, k=2, steps=5), reuse=Reuse(units=1, max_uses=2, max_age=4))
    events = await trained(run)
    found = accounts(events)
    assert found is not None
    made: dict[tuple[int, str], Counter[int]] = {}
    for event in events:
        if isinstance(event, Acted) and event.sample is not None:
            policy = {"first": "alice", "second": "bob"}[event.seat]
            for version, count in event.sample.versions:
                made.setdefault((event.group, policy), Counter())[version] += count
    fresh: dict[str, Counter[int]] = {}
    again: dict[str, Counter[int]] = {}
    for event in events:
        if isinstance(event, Planned):
            for counts, groups in ((fresh, event.groups), (again, event.reused)):
                for group in groups:
                    for version, count in made[group, event.policy].items():
                        counts.setdefault(event.policy, Counter())[event.step - version] += count
    assert found.fresh == fresh and found.again == again
    assert all(max(ages) <= 2 for ages in found.fresh.values()) and max(found.fresh["alice"]) > 0
    assert max(found.again["alice"]) > 0
    assert {row.policy: row.reused.units > 0 for row in found.ledger} == {"alice": True, "bob": True}


async def test_the_page_tells_where_every_unit_went(tmp_path: Path) -> None:
    run = run_of(tmp_path, sometimes("raises"), group_size=3, policies=Policy("m", grpo(filters=[EqualRewards()])))
    events = await trained(run)
    found = accounts(events)
    assert found is not None
    (row,) = found.ledger
    text = Page(page(history(events), found)).text
    fates = {fate: tally for (_, _, fate), tally in found.bias.items()}
    assert {"trained", "fault"} <= fates.keys()
    failed = [event for event in events if isinstance(event, Ended) and event.fault]
    assert fates["fault"].count == len(failed)
    assert (
        f"policy only {row.dispatched.units} ({row.dispatched.tokens}) {row.trained.units} ({row.trained.tokens})"
        in text
    )
    for fate, tally in fates.items():
        assert f"policy only {fate} {tally.count} {len(tally.tasks)} {tally.mean_length:.1f}" in text
    assert "Share by length" in text and "used again" not in text


def test_a_run_that_dropped_nothing_says_so() -> None:
    events = story(2)
    text = Page(page(history(events), accounts(events))).text
    assert "Nothing was dropped." in text and "Share by length" not in text
    assert "policy solver 4 (144) 4 (144) 0 0" in text, "four groups of eight replies of 1 to 8 tokens"


def test_what_a_run_measured_is_drawn() -> None:
    events = list(story(12, policies=("alice", "bob")))
    for index, event in enumerate(events):
        if isinstance(event, Stepped):
            more = {
                "ratio_p01": 0.9,
                "ratio_p50": 1.0,
                "ratio_p99": 1.1,
                "ess/staleness_0": 0.99,
                "ess/staleness_1": 0.9,
            }
            events[index] = msgspec.structs.replace(event, engine=event.engine | more)
    source = page(history(events), accounts(events))
    for policy in ("alice", "bob"):
        for title in (
            "Age of trained tokens",
            "Ratio of trainer to sampler, 1 % to 99 %",
            "Effective sample size by age",
        ):
            assert f'aria-label="{title}, {policy}"' in source
    assert "age 1 at 3: 0.9" in source and "p99 at 12: 1.1" in source
    assert "Event-loop lag so far, ms" in source


# -------------------------------------------------------------------------------------------- effective sample size by age


class Shifted(ScriptedModel):
    """A trainer whose log-probs lie apart from the sampler's, by `shift` times the token's number."""

    def __init__(self, shift: float) -> None:
        super().__init__("none", 0, babble)
        self._shift = shift

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, entropy: bool = False
    ) -> PendingResult[ForwardOutput]:
        super().forward_backward(data, loss, entropy=entropy)
        pending: PendingResult[ForwardOutput] = PendingResult("shifted")
        places = [np.arange(len(datum.tokens), dtype=np.float32) * datum.mask for datum in data]
        logprobs = tuple(
            (datum.logprobs + self._shift * place).astype(np.float32) for datum, place in zip(data, places, strict=True)
        )
        pending.succeed(ForwardOutput(logprobs=logprobs, metrics={"loss": 0.0}))
        return pending


@pytest.fixture(scope="module")
def batch() -> Batch:
    """The last batch of a story: the first group's tokens of age 0, the second's of age 1; replies of 1 to 8 tokens."""
    return folded(story(2), Planned).batches["policy"]


async def stepped(batch: Batch, shift: float) -> dict[str, float]:
    return dict((await take_step(story_run(2), "policy", batch, {}, Taught(model=Shifted(shift)))).engine)


async def test_the_effective_sample_size_of_each_age_has_its_closed_form(batch: Batch) -> None:
    engine = await stepped(batch, 0.25)
    ratios = [exp(0.25 * place) for count in range(1, 9) for place in range(3, 3 + count)]
    expected = sum(ratios) ** 2 / (len(ratios) * sum(ratio**2 for ratio in ratios))
    assert expected < 0.8
    assert engine["ess/staleness_0"] == pytest.approx(expected, rel=1e-6)
    assert engine["ess/staleness_1"] == pytest.approx(expected, rel=1e-6), (
        "both groups have replies of the same lengths"
    )
    assert not any(name.startswith("ess/staleness_2") for name in engine)


async def test_trainer_and_sampler_that_agree_lose_nothing(batch: Batch) -> None:
    assert {(await stepped(batch, 0.0))[f"ess/staleness_{age}"] for age in (0, 1)} == {1.0}


async def test_what_is_not_finite_has_no_sample_size(batch: Batch) -> None:
    assert not [name for name in await stepped(batch, 1e6) if name.startswith("ess/")]


def test_the_ages_of_a_batch_are_in_the_order_of_its_examples(batch: Batch) -> None:
    """What the figures by age rest on: one example for each context, in the order of the units."""
    data = prepare(batch, grpo(), {}, ["sums"]).data
    contexts = [context for unit in batch.units for one in unit.trajectories for context in one.contexts]
    assert len(data) == len(contexts) == 16
    assert all(datum.tokens is context.tokens for datum, context in zip(data, contexts, strict=True))


# ------------------------------------------------------------------------------------------------------------ histograms


def test_bars_are_as_high_as_their_share() -> None:
    svg = histogram("ages", {0: 3, 2: 1}, axis="versions")
    bars = [node for node in ET.fromstring(svg).iter() if node.tag.endswith("rect")]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)
    assert "0 versions: 75.0%, 3" in svg and "2 versions: 25.0%, 1" in svg
    assert float(bars[0].attrib["x"]) < float(bars[1].attrib["x"])


def test_nothing_counted_says_so() -> None:
    assert "not measured" in histogram("ages", {}, axis="versions")
