"""Training on what is given, as a value: on examples that are imitated (supervised), or on pairs of which one is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import get_args

from sparring.backend import Adam, BackendChoice, Local, Lora
from sparring.errors import SettingError
from sparring.learner.examples import Source
from sparring.learner.kinds import finite, folder_name, whole
from sparring.learner.preference import DPO
from sparring.learner.rates import LearningRateSchedule, rate_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """Supervised fine-tuning: the mean of -lp over the learned tokens of a step (cross-entropy)."""

    @property
    def width(self) -> int:
        """Examples of an item."""
        return 1


Objective = SFT | DPO


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One fit, made by `sparring.fit(fit)`. Its folder is `folder / name`; an unfinished one is gone on with.

    model           a folder or hub name
    objective       SFT() imitates the examples of Lines, Played and Best; DPO() learns from the pairs of Pairs
    train           where they come from
    held_out        likewise, or the share of the distinct items of `train` that is kept apart; nothing of it is trained on
    start           a checkpoint to begin with, as `Policy.start`: another fit's, or a run's
    epochs          how often each item is trained on, every time in another order
    batch_size      items of a step
    evaluate_every  steps between evaluations on what is held out, each with a checkpoint; the first and the last always are

    The rest is as in a `Policy` and a `Run`. `Policy(start="runs/NAME/final")` begins a run with what was learned.
    """

    name: str
    model: str
    train: Source | Sequence[Source]
    objective: Objective = field(default=SFT())
    held_out: Source | Sequence[Source] | float = 0.1
    start: str | None = None
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-4
    lr_schedule: LearningRateSchedule = "linear"
    lora: Lora = field(default=Lora())
    adam: Adam = field(default=Adam())
    evaluate_every: int = 20
    backend: BackendChoice = field(default=Local())
    seed: int = 0
    deterministic: bool = False
    folder: Path = Path("runs")

    def __post_init__(self) -> None:
        if not folder_name(self.name):
            raise SettingError(f"name={self.name!r}: it names a folder; use letters, digits, '-' and '_'")
        if not isinstance(self.model, str) or not self.model:
            raise SettingError(f"model={self.model!r}: must be text, the path of a folder or a hub name")
        if not isinstance(self.objective, Objective):
            raise SettingError(f"objective={self.objective!r}: must be SFT() or DPO()")
        for name, least in (("epochs", 1), ("batch_size", 1), ("evaluate_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (whole(value) and value >= least):
                raise SettingError(f"{name}={value!r}: must be a whole number, at least {least}")
        if not (finite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"learning_rate={self.learning_rate!r}: must be a finite number above 0")
        if self.lr_schedule not in get_args(LearningRateSchedule):
            raise SettingError(f"lr_schedule={self.lr_schedule!r}: must be 'constant', 'linear' or 'cosine'")
        if self.adam.learning_rate not in (Adam().learning_rate, self.learning_rate):
            raise SettingError(
                f"adam.learning_rate={self.adam.learning_rate!r}: is not used; set learning_rate instead"
            )
        if isinstance(self.objective, DPO) and self.lora.dropout > 0:
            raise SettingError(
                f"lora.dropout={self.lora.dropout!r} with {self.objective!r}: its two passes would leave out different inputs; "
                f"set it to 0"
            )
        self._check_sources()

    def _check_sources(self) -> None:
        for name, value in (("train", self.train), ("held_out", self.held_out)):
            if name == "held_out" and isinstance(value, int | float) and not isinstance(value, bool):
                if not 0 <= value < 1:
                    raise SettingError(f"held_out={value!r}: a share of the items, at least 0 and below 1, or a source")
                continue
            several = [value] if isinstance(value, Source) else value
            if (
                not isinstance(several, list | tuple)
                or not several
                or not all(isinstance(one, Source) for one in several)
            ):
                raise SettingError(f"{name}={value!r}: must be a source as Lines('examples.jsonl'), or a list of them")
            for one in several:
                if one.width != self.objective.width:
                    wanted = (
                        "Pairs, of which one is preferred" if self.objective.width == 2 else "Lines, Played or Best"
                    )
                    raise SettingError(f"{name}={one!r} with objective={self.objective!r}: give it {wanted}")

    @property
    def train_sources(self) -> Sequence[Source]:
        return _sources(self.train)

    @property
    def held_out_sources(self) -> Sequence[Source]:
        """Those of its own; empty where a share of `train` is held out."""
        return () if isinstance(self.held_out, int | float) else _sources(self.held_out)

    @property
    def held_out_share(self) -> float:
        return self.held_out if isinstance(self.held_out, int | float) else 0.0

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def steps(self, items: int) -> int:
        """Optimizer steps on so many items; the last step of an epoch may have fewer than `batch_size`."""
        return self.epochs * ceil(items / self.batch_size)

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, as `Policy.rate_at`."""
        return self.learning_rate * rate_factor(self.lr_schedule, step / steps)


def _sources(given: Source | Sequence[Source]) -> Sequence[Source]:
    return [given] if isinstance(given, Source) else list(given)
