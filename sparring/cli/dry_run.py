"""What a step would train on, without a model: one group of the run, played by a script, token by token.

The group is the run's first; its conversations, trajectories, comparisons and advantages are made by the same code as in
training. The tokens are the model's own where its tokenizer needs no download, else bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

import anyio
import numpy as np

from sparring.agents import Agent, Frozen, League, Lineup, PolicyAgent, Sampling
from sparring.agents.stand_in import scripted_reply
from sparring.arrays import F32, I32
from sparring.backend import Datum, Renderer, SampledSequence, SamplingParams, reply_tokens
from sparring.backend.bytes_renderer import ByteRenderer
from sparring.environments import gold_reply, task_digest
from sparring.errors import UnsupportedError
from sparring.learner.checked import schedule_of
from sparring.learner.described import task_at
from sparring.learner.measured import Measured
from sparring.learner.run import Episodes, Run
from sparring.learner.step import decide
from sparring.learner.updates import Laid, updates
from sparring.rollout import Batch, Trajectory, Unit, trajectories
from sparring.rollout.episode import Episode, EpisodePlan, run_episode
from sparring.rollout.events import Acted, Affected, Ended, Planned
from sparring.rollout.play import agent_of

_CONTEXT = 1 << 20
_BUNDLED = "smollm2-135m-instruct"
"""The model that comes as a package, `sparring.backend.models.SMOLLM2`."""


def dry_run(run: Run) -> str:
    """The first group of the run, as text."""
    renderers = {policy: renderer_of(settings.model) for policy, settings in run.named_policies.items()}
    return anyio.run(_first_group, run, renderers)


async def _first_group(run: Run, renderers: Mapping[str, Renderer]) -> str:
    """Waits for the group's episodes, which a script plays."""
    schedule = schedule_of(run)
    number, lineup = schedule.combination(0)
    source, index = run.sources[number], schedule.task_index(number, 0)
    task = task_at(source, index, source.environment.name)
    seats = dict(schedule.sources[number].lineups[lineup])
    group = _Group(run=run, source=source, task=task, lineup=source.lineups[lineup], seats=seats, renderers=renderers)
    played = [await group.episode(member) for member in range(run.group_size)]
    lines = [f"the first group of {run.name!r}: task {index} of {source.environment.name}, {task!r}", ""]
    for policy in dict.fromkeys(seats.values()):
        lines += _told(run, policy, renderers[policy], played)
    faults = [f"episode {ended.member} failed ({ended.fault}): {ended.detail}" for _, ended in played if ended.fault]
    return "\n".join([*lines, *faults])


def renderer_of(model: str) -> Renderer:
    """The model's own renderer where that needs no download, else bytes. Loads torch only for the first."""
    if model != _BUNDLED and not Path(model).expanduser().is_dir():
        return ByteRenderer()
    try:
        found: Renderer | None = import_module("sparring.backend.at_hand").renderer_at_hand(model)
    except ModuleNotFoundError:
        return ByteRenderer()
    return ByteRenderer() if found is None else found


# ---------------------------------------------------------------------------------------------------------------- playing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One task and who plays it. `seats` are those that are trained, {seat: policy}."""

    run: Run
    source: Episodes
    task: object
    lineup: Lineup
    seats: dict[str, str]
    renderers: Mapping[str, Renderer]

    async def episode(self, member: int) -> tuple[list[Trajectory], Ended]:
        """Play one of them; returns its trajectories and how it ended."""
        plan = EpisodePlan(
            environment=self.source.environment,
            task=self.task,
            task_digest=task_digest(self.task),
            agents=self._agents(),
            trained=frozenset(self.seats),
            seed=self.run.seed,
            group=0,
            member=member,
            deadline=self.run.episode_deadline,
        )
        acted: list[Acted] = []

        async def keep(event: Acted | Affected) -> None:
            if isinstance(event, Acted):
                acted.append(event)

        ended, _ = await run_episode(Episode(plan, keep), plan)
        return trajectories(acted, ended, self.seats), ended

    def _agents(self) -> dict[str, Agent]:
        policies = self.run.named_policies
        players = self.lineup.resolved(self.source.environment.seats, tuple(policies))
        agents: dict[str, Agent] = {}
        for seat, player in players.items():
            if not isinstance(player, str | Frozen | League):
                agents[seat] = agent_of(seat, player)
                continue
            policy = player if isinstance(player, str) else player.policy
            renderer = self.renderers[policy] if policy else ByteRenderer()
            sampling = policies[policy].sampling if policy else Sampling()
            gold = gold_reply(self.source.environment, self.task)
            agents[seat] = PolicyAgent(ScriptClient(renderer, gold), renderer, sampling, _CONTEXT)
        return agents


class ScriptClient:
    """A `SamplingClient` without weights: it samples what a script says, in the renderer's tokens."""

    version = 0

    def __init__(self, renderer: Renderer, gold: str | None) -> None:
        self._renderer = renderer
        self._gold = gold

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        asked = self._renderer.text(prompt)
        return [
            self._drawn(scripted_reply(asked, Random(f"{params.seed}/{index}"), self._gold), params)
            for index in range(n)
        ]

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        raise UnsupportedError("logprobs(): a script has no distribution")

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        raise UnsupportedError("options(): a script has no distribution")

    async def aclose(self) -> None:
        """Nothing is held."""

    def _drawn(self, text: str, params: SamplingParams) -> SampledSequence:
        tokens = reply_tokens(self._renderer, text)
        cut = tokens[: params.max_tokens]
        return SampledSequence(
            tokens=cut,
            logprobs=np.zeros(len(cut), np.float32),
            stop="stop" if len(cut) == len(tokens) else "length",
            versions=((0, len(cut)),),
        )


# ---------------------------------------------------------------------------------------------------------------- showing


def _told(run: Run, policy: str, renderer: Renderer, played: Sequence[tuple[list[Trajectory], Ended]]) -> Iterator[str]:
    mine = tuple(one for made, _ in played for one in made if one.policy == policy)
    yield f"policy {policy}, tokens of {_tokens_of(run, policy, renderer)}"
    if not mine:
        yield "  no trajectory: nobody spoke whose words are trained on, or nothing was judged"
        return
    unit = Unit(policy=policy, group=0, source=0, trajectories=mine, episodes=tuple(ended for _, ended in played))
    planned = Planned(policy=policy, step=0, groups=[0])
    batch = Batch(planned=planned, units=(unit,))
    algorithm = run.named_policies[policy].algorithm
    names = [source.environment.name for source in run.sources]
    tokens = tuple(np.zeros(one.action_tokens, np.float32) for one in mine)
    decided = decide(batch, algorithm.credit, {}, names, measured=Measured(reference=tokens, values=tokens))
    (update,) = updates(batch, [Laid(advantages=row) for row in decided.values], algorithm.normalization)
    divisor = algorithm.normalization.divisor
    yield f"  advantages: {algorithm.advantages.name}; weight: 1 / {divisor} (here the update is this group alone)"
    if algorithm.critic is not None or algorithm.kl is not None:
        yield "  no model is asked here: a critic's values, and log-probs under policy and reference, count as 0"
    data, shown = iter(update.data), np.zeros(0, np.int32)
    for trajectory in mine:
        name = f"{trajectory.seat}/{trajectory.fork}" if trajectory.fork else trajectory.seat
        said = f"reward {trajectory.reward:g}, {trajectory.action_tokens} action tokens"
        yield f"\n  episode {trajectory.episode}, seat {name}: {said}"
        for _ in trajectory.contexts:
            datum = next(data)
            yield from table(datum, renderer, shown)
            shown = datum.tokens[: int(np.argmax(datum.mask))]
    if not any(datum.advantages.any() for datum in update.data):
        yield "\n  every advantage is 0: the rewards that are compared are equal"


def _tokens_of(run: Run, policy: str, renderer: Renderer) -> str:
    model = run.named_policies[policy].model
    if isinstance(renderer, ByteRenderer):
        return f"the bytes renderer (the tokenizer of {model!r} is not at hand without a download or the torch extra)"
    return repr(model)


def table(datum: Datum, renderer: Renderer, before: I32) -> Iterator[str]:
    """A context as rows; its start is left out where it equals `before`, what was shown last."""
    yield "    place  token   action  advantage     weight  text"
    same = len(before) if len(before) and np.array_equal(datum.tokens[: len(before)], before) else 0
    if same:
        yield f"    0 to {same - 1}: the same prompt as above"
    for place in range(same, len(datum.tokens)):
        token = int(datum.tokens[place])
        text = renderer.text([token])
        yield f"    {place:>5}  {token:>5}   {_credit(datum, place)}  {repr(text) if text else '(special)'}"


def _credit(datum: Datum, place: int) -> str:
    """Whether a token is an action; if so, its advantage (before the division) and its weight."""
    if not datum.mask[place]:
        return f"{'-':>6}  {'':>9}  {'':>9}"
    weight = float(datum.weights[place])
    return f"{'yes':>6}  {float(datum.advantages[place]) / weight:>+9.4f}  {weight:>9.3e}"
