"""A policy that collapses goes back to an earlier checkpoint: when, to which, and what is kept for that.

It is decided before the step is journaled, and journaled with it: a process that ends has either made both or neither. Whoever
goes on from the journal takes the checkpoint again that the step names, so that these are kept as long as the run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import anyio.to_thread
import msgspec

from sparring.errors import Collapsed, ReplayDiverged
from sparring.learner.folder import RunFolder
from sparring.learner.gauges import Tripped, counted
from sparring.learner.run import Run
from sparring.learner.taught import Taught
from sparring.rollout import Coordinator
from sparring.rollout.events import Stepped
from sparring.rollout.fell_back import Broken, FellBack

_REMEDY = (
    "look at the newest episodes, then lower the learning rate or start from an earlier checkpoint; "
    "to go on all the same, change gauges"
)


class FallBacks:
    """What the run's gauges make of each step."""

    def __init__(self, run: Run, coordinator: Coordinator, folder: RunFolder) -> None:
        self._run, self._coordinator, self._folder = run, coordinator, folder

    async def after(self, stepped: Stepped, models: Taught) -> tuple[Stepped, Collapsed | None]:
        """The step as it is to be journaled, and why the run is to stop once it is. Where it says that the policy falls back,
        its models have. Waits for the models and for the disk."""
        policy = stepped.policy
        fallen, bound = self._coordinator.fell_back[policy], self._coordinator.schedule.bounds[policy]
        if fallen and bound.oldest(stepped.step) < fallen[-1][0]:  # versions that were given up may have played in it
            return stepped, None
        broken, tripped = counted(self._run.gauges, stepped, self._coordinator.broken[policy])
        if tripped is None:
            return msgspec.structs.replace(stepped, broken=broken), None
        if len(fallen) >= tripped.gauge.fall_back:
            before = f"; it fell back {len(fallen)} time{'s' * (len(fallen) > 1)} before" if fallen else ""
            return _collapsed(stepped, broken, tripped, before)
        to = await anyio.to_thread.run_sync(self._version, policy, tripped.since)
        if to is None:
            none = f"; it cannot fall back: no checkpoint is older than what played in step {tripped.since}"
            return _collapsed(stepped, broken, tripped, none)
        await models.load(self._folder.checkpoint(policy, to))
        digest, critic = await models.model.digest(), await models.critic_digest()
        fell_back = FellBack(to=to, why=tripped.why, digest=digest, critic=critic)
        return msgspec.structs.replace(stepped, fell_back=fell_back), None

    def _version(self, policy: str, since: int) -> int | None:
        """`fall_back_version` of those that lie in the folder, which version 0 does not always."""
        there = self._folder.checkpoints(policy)
        if not self._folder.checkpoint(policy, 0).is_dir():
            there.discard(0)
        return fall_back_version(self._coordinator, policy, since, there)


def _collapsed(
    stepped: Stepped, broken: Mapping[str, Broken], tripped: Tripped, more: str
) -> tuple[Stepped, Collapsed]:
    """Whoever goes on all the same is stopped again by as many steps; since when a bound is broken is not forgotten."""
    anew = {bounds: Broken(since=one.since, values=[]) for bounds, one in broken.items()}
    collapsed = Collapsed(f"step {stepped.step} of {stepped.policy!r}: {tripped.why}{more}: {_REMEDY}")
    return msgspec.structs.replace(stepped, broken=anew), collapsed


def fall_back_version(coordinator: Coordinator, policy: str, since: int, there: Collection[int]) -> int | None:
    """The version to go back to where a bound is broken since this step: the newest checkpoint that is `there` and older than
    all that played in it. A policy that fell back goes to none from before, but to the one that it went to; None where there
    is none."""
    fallen = coordinator.fell_back[policy]
    begun, last = fallen[-1] if fallen else (0, None)
    oldest = coordinator.schedule.bounds[policy].oldest(since)
    known = coordinator.checkpoints[policy].intersection(there)
    return max((version for version in known if begun <= version < oldest), default=last)


def may_fall_back(run: Run, coordinator: Coordinator, policy: str) -> bool:
    """Whether one of the policy's next steps may have it fall back."""
    fallen = len(coordinator.fell_back[policy])
    gauges = [one for one in run.gauges if one.fall_back > fallen and one.policy in (None, policy)]
    return bool(gauges) and not coordinator.budget.done(policy)


def oldest_for_fall_back(run: Run, coordinator: Coordinator, policy: str) -> int:
    """The version from which on checkpoints are kept as one of the policy's next steps may have it go back to them."""
    newest = coordinator.budget.version(policy)
    if not may_fall_back(run, coordinator, policy):
        return newest
    since = min((broken.since for broken in coordinator.broken[policy].values()), default=newest)
    to = fall_back_version(coordinator, policy, since, coordinator.checkpoints[policy])
    return coordinator.schedule.bounds[policy].oldest(since) if to is None else to


async def fall_back_again(folder: RunFolder, stepped: Stepped, models: Taught) -> None:
    """As it was journaled with a step that is done again; nothing where it was not. Raises `ReplayDiverged` where the
    checkpoint is not the one any more."""
    fell_back = stepped.fell_back
    if fell_back is None:
        return
    path = folder.checkpoint(stepped.policy, fell_back.to)
    await models.load(path)
    if (await models.model.digest(), await models.critic_digest()) != (fell_back.digest, fell_back.critic):
        raise ReplayDiverged(
            f"{str(path)!r}, to which {stepped.policy!r} fell back after step {stepped.step}, holds other weights than it did "
            f"then: bring it back, or start the run anew under another name"
        )
