"""How many versions a run may play at once, held against what its backend can sample from before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparring import Policy, grpo, rae
from sparring.backend import Capabilities, ScriptedBackend
from sparring.errors import SettingError
from sparring.learner.checked import check_capabilities, versions_at_once
from sparring.learner.run import Run
from tests.learner.worlds import duel_run


class Few(ScriptedBackend):
    """Samples from so many versions."""

    def __init__(self, versions: int | None) -> None:
        super().__init__()
        self._versions = versions

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), versions=self._versions)


def same_base(run: Run) -> Run:
    return replace(run, policies={"alice": Policy("one", grpo(deviation=True)), "bob": Policy("one", rae())})


def test_the_newest_the_next_the_evaluated_and_the_frozen_one_count(tmp_path: Path) -> None:
    """Of alice 1 + 1 + 1, of bob, whose version 0 is an opponent in held-out play, one more; k more of each; with weights in
    flight one more of each."""
    assert versions_at_once(duel_run(tmp_path)) == 4
    assert versions_at_once(duel_run(tmp_path, k=3)) == 7
    assert versions_at_once(same_base(duel_run(tmp_path, k=3))) == 13
    assert versions_at_once(replace(duel_run(tmp_path), held_out=None)) == 2
    inflight = replace(duel_run(tmp_path, k=3, deterministic=False), weights="inflight")
    assert (versions_at_once(inflight), versions_at_once(same_base(inflight))) == (8, 15)


def test_a_run_that_needs_more_than_there_can_be_is_refused_with_the_number(tmp_path: Path) -> None:
    run = duel_run(tmp_path, k=2)
    for enough in (6, 7, None):
        check_capabilities(run, Few(enough))
    with pytest.raises(SettingError, match=r"max_loras=5: this run plays up to 6 versions at once; set it to 6"):
        check_capabilities(run, Few(5))
