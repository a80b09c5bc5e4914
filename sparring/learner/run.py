"""A run as a value: what is trained on, who learns and how. Everything that decides the result is a field of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from sparring.agents import Lineup, Sampling
from sparring.backend import Adam, BackendChoice, Local, Lora
from sparring.environments import Environment, Tasks, size
from sparring.errors import SettingError, UnsupportedError
from sparring.learner.algorithm import Algorithm
from sparring.learner.gauges import Gauge, check_gauges
from sparring.learner.kinds import finite, folder_name, whole
from sparring.learner.pacing import Pace, Pacing, check_pacing, most_outstanding
from sparring.learner.presets import grpo
from sparring.learner.rates import LearningRateSchedule, rate_factor
from sparring.learner.reuse import Reuse, check_reuse
from sparring.rollout import Bound, Curriculum, Faults, Phase
from sparring.rollout.phases import check_phases

DEFAULT_POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Episodes:
    """Tasks played in an environment by a line-up; several line-ups alternate from group to group. For training: a
    `curriculum` draws tasks by how often they are solved, else each pass over them has an order of its own. For held-out
    episodes: `seen` allows tasks that are trained on, `greedy` plays at temperature 0. `faults`: what becomes of episodes that
    fail."""

    environment: Environment[Any]
    tasks: Tasks[Any]
    lineup: Lineup | Sequence[Lineup] = Lineup()
    seen: bool = field(default=False, kw_only=True)
    greedy: bool = field(default=False, kw_only=True)
    curriculum: Curriculum | None = field(default=None, kw_only=True)
    faults: Faults = field(default=Faults(), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.environment, Environment):
            raise SettingError(
                f"Episodes({self.environment!r}): no environment; decorate its function with @environment"
            )
        name = self.environment.name
        if not isinstance(self.lineup, Lineup | Sequence) or not all(isinstance(one, Lineup) for one in self.lineups):
            raise SettingError(
                f"{name}: lineup={self.lineup!r}: must be a Lineup or a sequence of them, "
                f"as in Lineup({{'seat': 'policy'}})"
            )
        if not self.lineups:
            raise SettingError(
                f"{name}: lineup={self.lineup!r}: is empty; Lineup() lets the only policy play every seat"
            )
        if size(self.tasks) == 0:
            raise SettingError(f"{name}: its tasks are empty; give at least one")
        if self.curriculum is not None and not isinstance(self.curriculum, Curriculum):
            raise SettingError(f"{name}: curriculum={self.curriculum!r}: must be None or Curriculum()")
        if self.curriculum is not None and size(self.tasks) is None:
            raise SettingError(
                f"{name}: curriculum={self.curriculum!r}: an endless source never plays a task twice; give a finite list"
            )

        if not isinstance(self.faults, Faults):
            raise SettingError(f"{name}: faults={self.faults!r}: must be Faults(retries=..., score=...)")

    @property
    def lineups(self) -> Sequence[Lineup]:
        return (self.lineup,) if isinstance(self.lineup, Lineup) else tuple(self.lineup)


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that learns: a folder or hub name, and how. `start` is a folder of weights to begin with: a checkpoint of a `Fit`
    or of a run; the optimizer begins anew. `adam` holds the rest of the optimizer; its learning rate is `learning_rate`, which
    `lr_schedule` lets fall to nothing over the run's steps (see `rate_at`). With `final_temperature` replies are drawn at a
    temperature that goes there by equal amounts from that of `sampling` (see `sampling_at`). `max_staleness` is a bound of its
    own in place of the run's."""

    model: str
    algorithm: Algorithm = field(default_factory=grpo)
    start: str | None = field(default=None, kw_only=True)
    learning_rate: float = field(default=1e-4, kw_only=True)
    lr_schedule: LearningRateSchedule = field(default="constant", kw_only=True)
    lora: Lora = field(default=Lora(), kw_only=True)
    sampling: Sampling = field(default=Sampling(), kw_only=True)
    final_temperature: float | None = field(default=None, kw_only=True)
    adam: Adam = field(default=Adam(), kw_only=True)
    max_staleness: int | None = field(default=None, kw_only=True)
    renderer: str = field(default="chat_template", kw_only=True)
    thinking: str = field(default="keep", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise SettingError(f"model={self.model!r}: must be text, the path of a folder or a hub name")
        for name, kind in (("algorithm", Algorithm), ("lora", Lora), ("sampling", Sampling), ("adam", Adam)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                example = "grpo()" if kind is Algorithm else f"{kind.__name__}()"
                raise SettingError(f"{name}={value!r}: must be a sparring.{kind.__name__}, as in {name}={example}")
        self._check_references()
        self._check_schedules()
        if self.adam.learning_rate not in (Adam().learning_rate, self.learning_rate):
            raise SettingError(
                f"adam.learning_rate={self.adam.learning_rate!r}: is not used; set the policy's learning_rate instead"
            )
        if self.sampling.temperature == 0:
            raise SettingError(
                "sampling.temperature=0 on a trained policy: greedy play has no gradient; use held-out greedy=True"
            )
        if self.renderer != "chat_template":
            raise UnsupportedError(f"renderer={self.renderer!r}: only 'chat_template' is there")
        if self.thinking != "keep":
            raise UnsupportedError(f"thinking={self.thinking!r}: only 'keep' is there")

    def _check_references(self) -> None:
        if self.start is not None and not (isinstance(self.start, str) and self.start):
            raise SettingError(f"start={self.start!r}: must be None or text, the folder of a checkpoint")
        if self.start is not None and self.algorithm.refers_to_itself:
            raise SettingError(
                f"start={self.start!r} with {self.algorithm.kl!r}: a reference is a model without what start brings; name one: "
                f"reference={self.model!r}, or a folder with start merged in (TrainingClient.export)"
            )
        if self.algorithm.teacher is not None and not self.sampling.temperature == (self.final_temperature or 1) == 1:
            raise SettingError(
                f"sampling.temperature={self.sampling.temperature!r}, final_temperature={self.final_temperature!r} with "
                f"{self.algorithm.teacher!r}: a teacher's log-probs are those at temperature 1; sample at 1"
            )

    def _check_schedules(self) -> None:
        if not (finite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"learning_rate={self.learning_rate!r}: must be a finite number above 0")
        if self.lr_schedule not in get_args(LearningRateSchedule):
            raise SettingError(f"lr_schedule={self.lr_schedule!r}: must be 'constant', 'linear' or 'cosine'")
        if self.final_temperature is not None and not (finite(self.final_temperature) and self.final_temperature > 0):
            raise SettingError(f"final_temperature={self.final_temperature!r}: must be None or a finite number above 0")
        if self.max_staleness is not None and not (whole(self.max_staleness) and self.max_staleness >= 0):
            raise SettingError(f"max_staleness={self.max_staleness!r}: must be None or a whole number, at least 0")

    def resolved(self) -> Policy:
        """With what its algorithm leaves to the sampling. Raises `SettingError` for parts that do not fit together."""
        return replace(self, algorithm=self.algorithm.resolved(self.sampling.max_tokens))

    def sampling_at(self, step: int, steps: int) -> Sampling:
        """How replies are drawn that are meant for the step that trains version `step`, of `steps` in all: the last step's have
        the final temperature. The trainer scores each token at the temperature that it was drawn at."""
        if self.final_temperature is None or steps == 1:
            return self.sampling
        done, first = min(step, steps - 1) / (steps - 1), self.sampling.temperature
        return replace(self.sampling, temperature=first + (self.final_temperature - first) * done)

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of the step that trains version `step`, of `steps` in all: the whole rate at first, then `linear`
        falls by equal amounts and `cosine` along half a period (arXiv 1608.03983), to nothing after the last step."""
        return self.learning_rate * rate_factor(self.lr_schedule, step / steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, trained by `sparring.train(run)`. Its folder is `folder / name`; an unfinished one is gone on with.

    steps             optimizer steps of each policy
    groups_per_step   groups (units of each policy) in a step
    group_size        episodes of one task that are compared
    max_staleness     how many versions older than the weights it trains a token may be
    final_staleness   with it, that goes from `max_staleness` at the first step by equal amounts, rounded, to this at the last;
                      the bound holds at every step (`rollout/budget.py`)
    weights           'snapshot': a reply is made by the version that was the newest when it began; 'inflight': it goes on with
                      each version that is published, every token stamped with the one that made it
    evaluate_every    steps between held-out evaluations and checkpoints; the first and the last version always are
    deterministic     two runs end in the same weights: fp32, a pinned schedule, no clock faults; slower
    max_concurrent    episodes played at once
    episode_deadline  seconds after which an episode is given up and counted
    max_faults        share of the attempts at episodes that may fail, or get no verdict, before the run stops
    max_refill        groups in a row that may leave a policy nothing to train on (all failed, or equal rewards where that is
                      filtered) and be replaced before the run stops; None: 32, or four steps' worth if that is more
    phases            [Phase("prover", steps=10), Phase("verifier", steps=20)]: who is trained while the others are paused, over
                      and over until each has made its steps; (): all are trained at the same time
    reuse             Reuse(...) trains on units once more, in places beyond the fresh ones; None does not
    pacing            what becomes of episodes that take long: Pace(...) waits for them, Drop(...) drops and counts them
    gauges            Gauge(...): figures that stop the run, or have a policy fall back, where they leave their bounds
    stall_deadline    seconds in which nothing happens, and the backend computes nothing, after which the run stops and says
                      what it waits for; a call that holds the event loop for as long ends the process
    """

    name: str
    train: Episodes | Sequence[Episodes]
    policies: Policy | Mapping[str, Policy]
    steps: int
    held_out: Episodes | Mapping[str, Episodes] | None = None
    groups_per_step: int = 16
    group_size: int = 8
    max_staleness: int = 1
    final_staleness: int | None = None
    weights: Literal["snapshot", "inflight"] = "snapshot"
    evaluate_every: int = 10
    backend: BackendChoice = field(default=Local())
    seed: int = 0
    deterministic: bool = False
    max_concurrent: int = 256
    episode_deadline: float = 600.0
    max_faults: float = 0.1
    max_refill: int | None = None
    pacing: Pacing = Pace()
    phases: Sequence[Phase] = ()
    reuse: Reuse | None = None
    gauges: Sequence[Gauge] = ()
    stall_deadline: float = 900.0
    folder: Path = Path("runs")

    def __post_init__(self) -> None:
        self._check_plain()
        _check_train(self.train)
        _check_policies(self.policies)
        _check_held_out(self.held_out)
        for number, source in enumerate(self.sources):
            for field_name in ("seen", "greedy"):
                if getattr(source, field_name):
                    raise SettingError(
                        f"train source {number}: {field_name}=True belongs to held-out episodes; leave it out here"
                    )
        for name, policy in self.named_policies.items():
            self._check_policy(name, policy)
        check_gauges(self.gauges, tuple(self.named_policies))
        check_phases(self.phases, tuple(self.named_policies), steps=self.steps)
        own = [policy.max_staleness for policy in self.named_policies.values()]
        k = max(self.bound.most_staleness if bound is None else bound for bound in own)
        check_pacing(
            self.pacing, max_staleness=k, episode_deadline=self.episode_deadline, deterministic=self.deterministic
        )
        check_reuse(self.reuse, max_staleness=k)

    def _check_plain(self) -> None:
        if not folder_name(self.name):
            raise SettingError(f"name={self.name!r}: it names a folder; use letters, digits, '-' and '_'")
        if not isinstance(self.folder, Path):
            raise SettingError(f"folder={self.folder!r}: must be a pathlib.Path, as in Path('runs')")
        if isinstance(self.backend, type) or not isinstance(self.backend, BackendChoice):
            raise SettingError(
                f"backend={self.backend!r}: must be settings that open one, as in Local() or ScriptedModels()"
            )
        if not isinstance(self.deterministic, bool):
            raise SettingError(f"deterministic={self.deterministic!r}: must be True or False")
        self._check_weights()
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (whole(value) and value >= least):
                raise SettingError(f"{name}={value!r}: must be a whole number, at least {least}")
        for name in ("episode_deadline", "stall_deadline"):
            seconds = getattr(self, name)
            if not (finite(seconds) and seconds > 0):
                raise SettingError(f"{name}={seconds!r}: must be a finite number of seconds above 0")
        self._check_final_staleness()
        self._check_ceilings()

    def _check_final_staleness(self) -> None:
        final = self.final_staleness
        if final is not None and not (whole(final) and final >= 0):
            raise SettingError(f"final_staleness={final!r}: must be None or a whole number, at least 0")
        if final is not None and self.steps == 1:
            raise SettingError(f"final_staleness={final!r}: a run of one step has no way to go; leave it out")

    def _check_weights(self) -> None:
        if self.weights not in ("snapshot", "inflight"):
            raise SettingError(f"weights={self.weights!r}: must be 'snapshot' or 'inflight'")
        if self.weights == "inflight" and self.deterministic:
            raise SettingError(
                "weights='inflight': when new weights meet a reply depends on the clock; leave out deterministic=True"
            )

    def _check_ceilings(self) -> None:
        if not (finite(self.max_faults) and 0 <= self.max_faults <= 1):
            raise SettingError(f"max_faults={self.max_faults!r}: a share of the episodes, between 0 and 1")
        if self.max_refill is not None and not (whole(self.max_refill) and self.max_refill >= 1):
            raise SettingError(f"max_refill={self.max_refill!r}: must be None or a whole number of groups, at least 1")

    def _check_policy(self, name: str, policy: Policy) -> None:
        if policy.final_temperature is not None and self.steps == 1:
            final = f"final_temperature={policy.final_temperature!r}"
            raise SettingError(f"policy {name!r}: {final}: a run of one step has no way to go; leave it out")
        compare = policy.algorithm.compare
        seats = list(dict.fromkeys(seat for source in self.sources for seat in source.environment.seats))
        for seat in compare:
            if seat not in seats:
                near = get_close_matches(seat, seats, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"the seats are {', '.join(seats)}"
                raise SettingError(
                    f"policy {name!r}: compare={{{seat!r}: ...}} names no seat of the training environments; {meant}"
                )
        if policy.algorithm.minibatches > self.groups_per_step:
            raise SettingError(
                f"policy {name!r}: minibatches={policy.algorithm.minibatches!r} of {policy.algorithm.name}: a step has "
                f"groups_per_step={self.groups_per_step!r} units to divide among them; use at most as many"
            )
        critic = policy.algorithm.critic
        if critic is not None and critic.pretraining >= self.steps:
            raise SettingError(
                f"policy {name!r}: pretraining={critic.pretraining!r} of its critic: in steps={self.steps!r} the policy would "
                f"never be trained; make it fewer, or the run longer"
            )
        least = policy.algorithm.advantages.minimum
        if self.group_size < least and "episode" not in compare.values():
            raise SettingError(
                f"group_size={self.group_size!r}: {policy.algorithm.advantages.name} of {name!r} compares at least {least} "
                f"episodes; use rae() or an estimator with a minimum of 1 for groups of one"
            )
        if policy.algorithm.filters and self.group_size == 1 and "episode" not in compare.values():
            raise SettingError(
                f"group_size=1: in a group of one all rewards are equal, and EqualRewards() of {name!r} would drop every unit; "
                f"use a group_size of at least 2, or leave out the filter"
            )

    @property
    def sources(self) -> tuple[Episodes, ...]:
        return (self.train,) if isinstance(self.train, Episodes) else tuple(self.train)

    @property
    def named_policies(self) -> Mapping[str, Policy]:
        """Every policy by its name, `resolved()`."""
        named = {DEFAULT_POLICY: self.policies} if isinstance(self.policies, Policy) else self.policies
        return {name: policy.resolved() for name, policy in named.items()}

    @property
    def named_held_out(self) -> Mapping[str, Episodes]:
        if self.held_out is None:
            return {}
        return {"held-out": self.held_out} if isinstance(self.held_out, Episodes) else self.held_out

    @property
    def bound(self) -> Bound:
        """What the staleness of its policies is bounded by."""
        return Bound(
            units_per_step=self.groups_per_step,
            max_staleness=self.max_staleness,
            steps=self.steps,
            final_staleness=self.final_staleness,
            most_outstanding=most_outstanding(self.pacing, self.groups_per_step),
        )

    @property
    def most_refills(self) -> int:
        """`max_refill`, or what None stands for."""
        return max(32, 4 * self.groups_per_step) if self.max_refill is None else self.max_refill

    @property
    def path(self) -> Path:
        return self.folder / self.name


_LEAST = {
    "steps": 1,
    "groups_per_step": 1,
    "group_size": 1,
    "max_staleness": 0,
    "evaluate_every": 1,
    "max_concurrent": 1,
    "seed": 0,
}


def _check_train(train: object) -> None:
    several = isinstance(train, Sequence) and len(train) > 0 and all(isinstance(one, Episodes) for one in train)
    if not (isinstance(train, Episodes) or several):
        raise SettingError(f"train={train!r}: must be Episodes(environment, tasks) or a sequence of at least one")


def _check_policies(policies: object) -> None:
    if isinstance(policies, Policy):
        return
    if not isinstance(policies, Mapping) or not policies:
        raise SettingError(f"policies={policies!r}: must be a Policy, or a mapping of names to at least one")
    for name, policy in policies.items():
        if not folder_name(name) or "@" in name:
            raise SettingError(f"policies: the name {name!r} also names a folder; use letters, digits, '-' and '_'")
        if not isinstance(policy, Policy):
            raise SettingError(f"policies[{name!r}]={policy!r}: must be a Policy, as in Policy('folder of the model')")


def _check_held_out(held_out: object) -> None:
    if held_out is None:
        return
    held_out = {"held-out": held_out} if isinstance(held_out, Episodes) else held_out
    if not isinstance(held_out, Mapping):
        raise SettingError(f"held_out={held_out!r}: must be Episodes, a mapping of names to them, or None")
    for name, source in held_out.items():
        if not isinstance(name, str) or not name:
            raise SettingError(f"held_out: the name {name!r} must be text that is not empty")
        if not isinstance(source, Episodes):
            raise SettingError(f"held_out[{name!r}]={source!r}: must be Episodes(environment, tasks)")
        if source.curriculum is not None:
            raise SettingError(
                f"held_out[{name!r}]: curriculum={source.curriculum!r}: all held-out tasks are played; leave it out here"
            )
        if source.faults.score is not None:
            raise SettingError(
                f"held_out[{name!r}]: faults={source.faults!r}: a held-out episode that fails has no verdict; leave out score"
            )
