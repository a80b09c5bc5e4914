"""A run as a value: what is trained on, who learns and how. Everything that decides the result is a field of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.agents import Lineup, Sampling
from sparring.backend import Adam, BackendChoice, Local, Lora
from sparring.environments import Environment, Tasks, size
from sparring.errors import SettingError, UnsupportedError
from sparring.learner.algorithm import Algorithm, grpo

DEFAULT_POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Episodes:
    """Tasks played in an environment by a line-up. `seen` allows held-out tasks that are trained on; `greedy` plays them at
    temperature 0."""

    environment: Environment[Any]
    tasks: Tasks[Any]
    lineup: Lineup | Sequence[Lineup] = Lineup()
    seen: bool = field(default=False, kw_only=True)
    greedy: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if size(self.tasks) == 0:
            raise SettingError(f"{self.environment.name}: its tasks are empty; give at least one")
        if not self.lineups:
            raise SettingError(f"{self.environment.name}: its line-ups are empty; Lineup() lets the only policy play every seat")

    @property
    def lineups(self) -> Sequence[Lineup]:
        return (self.lineup,) if isinstance(self.lineup, Lineup) else tuple(self.lineup)


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that learns. `adam` holds the rest of the optimizer; its learning rate is `learning_rate`."""

    model: str
    algorithm: Algorithm = field(default_factory=grpo)
    learning_rate: float = field(default=1e-4, kw_only=True)
    lora: Lora = field(default=Lora(), kw_only=True)
    sampling: Sampling = field(default=Sampling(), kw_only=True)
    adam: Adam = field(default=Adam(), kw_only=True)
    renderer: str = field(default="chat_template", kw_only=True)
    thinking: str = field(default="keep", kw_only=True)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise SettingError(f"learning_rate={self.learning_rate!r}: must be above 0")
        if self.sampling.temperature == 0:
            raise SettingError("sampling.temperature=0 on a trained policy: greedy play has no gradient; use held-out greedy=True")
        if self.renderer != "chat_template":
            raise UnsupportedError(f"renderer={self.renderer!r}: only 'chat_template' is there")
        if self.thinking != "keep":
            raise UnsupportedError(f"thinking={self.thinking!r}: only 'keep' is there")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, trained by `sparring.train(run)`. Its folder is `folder / name`; running an unfinished one again resumes it.

    steps             optimizer steps of each policy
    groups_per_step   groups (units of each policy) in a step
    group_size        episodes of one task that are compared
    max_staleness     how many versions older than the weights it trains a token may be
    evaluate_every    steps between held-out evaluations, checkpoints too; the first and the last version are always evaluated
    deterministic     two runs end in the same weights: fp32, a pinned schedule, no clock faults; slower
    max_concurrent    episodes played at once
    episode_deadline  seconds after which an episode is given up and counted
    max_faults        share of episodes that may fail before the run stops
    stall_deadline    seconds without any event after which the run stops and says what it waits for
    """

    name: str
    train: Episodes | Sequence[Episodes]
    policies: Policy | Mapping[str, Policy]
    steps: int
    held_out: Episodes | Mapping[str, Episodes] | None = None
    groups_per_step: int = 16
    group_size: int = 8
    max_staleness: int = 1
    evaluate_every: int = 10
    backend: BackendChoice = field(default=Local())
    seed: int = 0
    deterministic: bool = False
    max_concurrent: int = 256
    episode_deadline: float = 600.0
    max_faults: float = 0.1
    stall_deadline: float = 900.0
    folder: Path = Path("runs")

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("groups_per_step", 1), ("group_size", 1), ("max_staleness", 0), ("evaluate_every", 1)):
            value = getattr(self, name)
            if value < least:
                raise SettingError(f"{name}={value!r}: must be at least {least}")
        if self.max_concurrent < 1:
            raise SettingError(f"max_concurrent={self.max_concurrent!r}: must be at least 1")
        if not 0 <= self.max_faults <= 1:
            raise SettingError(f"max_faults={self.max_faults!r}: a share of the episodes, between 0 and 1")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise SettingError(f"name={self.name!r}: it names a folder; use letters, digits, '-' and '_'")
        if not self.sources:
            raise SettingError("train=(): give at least one Episodes")
        for policy, settings in self.named_policies.items():
            least = settings.algorithm.advantages.minimum
            if self.group_size < least and "episode" not in settings.algorithm.compare.values():
                raise SettingError(
                    f"group_size={self.group_size!r}: {settings.algorithm.advantages.name} of {policy!r} compares at least {least} "
                    f"episodes; use rae() for groups of one"
                )

    @property
    def sources(self) -> tuple[Episodes, ...]:
        return (self.train,) if isinstance(self.train, Episodes) else tuple(self.train)

    @property
    def named_policies(self) -> Mapping[str, Policy]:
        return {DEFAULT_POLICY: self.policies} if isinstance(self.policies, Policy) else self.policies

    @property
    def named_held_out(self) -> Mapping[str, Episodes]:
        if self.held_out is None:
            return {}
        return {"held-out": self.held_out} if isinstance(self.held_out, Episodes) else self.held_out

    @property
    def path(self) -> Path:
        return self.folder / self.name
