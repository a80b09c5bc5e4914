"""How old what a policy is trained on may be: the run's bound, or its own."""

from __future__ import annotations

from dataclasses import replace

from sparring.learner.run import Policy, Run
from sparring.rollout import Bound


def bounds(run: Run) -> dict[str, Bound]:
    """Of each policy."""
    return {name: _bound(run.bound, policy) for name, policy in run.named_policies.items()}


def most_staleness(run: Run) -> int:
    """The largest of all policies and steps."""
    return max(bound.most_staleness for bound in bounds(run).values())


def _bound(of_run: Bound, policy: Policy) -> Bound:
    own = policy.max_staleness
    return of_run if own is None else replace(of_run, max_staleness=own, final_staleness=None)
