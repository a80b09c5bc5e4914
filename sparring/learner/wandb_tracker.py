"""Metrics to Weights & Biases: the one module that imports wandb (the extra `wandb`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

import msgspec

from sparring.errors import SettingError, UnsupportedError
from sparring.learner.lines import Line, Lines
from sparring.learner.tracker import earlier_lines
from sparring.rollout.events import AnyEvent

try:
    import wandb
    from wandb.errors import AuthenticationError, CommError
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"tracking to W&B needs {missing.name!r}: pip install 'sparring[wandb]'") from missing

Mode = Literal["online", "offline"]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a resumed run needs to go on.

    id      of the run at W&B
    logged  lines that starts of the run logged which then ended as they should
    open    the folder of a start that has not ended, or was killed: wandb writes behind, so how much it holds is unknown
    """

    id: str
    logged: int = 0
    open: str = ""


class WandbTracker:
    """A `Watcher`: every line of `metrics.jsonl` as one W&B step, with the weights' version as the horizontal axis.

    Deterministic, engine and timing figures of a step stand under `train/`, `engine/` and `timing/` (with several policies
    below the policy's name), held-out ones under `held_out/<name>/`. The id is kept in the run folder, so that a resumed
    run goes on. After a kill, online, it goes on from the last line that arrived; offline, the killed start's folder is put
    aside (`wandb/superseded-...`) and its lines are logged again, so that `wandb sync` sees each line once.

    A tracker that cannot start is refused (`SettingError`), but where W&B cannot be reached: then the lines are written as in
    mode offline, for `wandb sync`. That, and what fails later, does not stop the run: each failure is counted, the first one
    is handed to `warn`, and `failures` tells how many there were.
    """

    def __init__(
        self, folder: Path, name: str, *, mode: Mode, warn: Callable[[str], None], project: str = "sparring"
    ) -> None:
        self._folder = folder
        self._name = name
        self._mode: Mode = mode
        self._warn = warn
        self._project = project
        self._lines = Lines()
        self._unlogged: list[Line] = []
        self._several = False
        self._run: wandb.Run | None = None
        self._kept = Kept(id=token_hex(8))
        self._next = 0
        self.failures = 0

    def opened(self, run: Mapping[str, Any]) -> None:
        self._several = len(run["settings"]["policies"]) > 1
        try:
            self._start_somehow(run)
        except (wandb.Error, OSError) as error:
            remedy = (
                "mode offline needs no account (--wandb offline)" if self._mode == "online" else "leave tracking out"
            )
            raise SettingError(f"W&B tracking (mode {self._mode!r}) cannot start: {error}; {remedy}") from error
        logged = self._next
        self._lines, earlier = earlier_lines(self._folder, lambda state: state.count <= logged)
        for line in islice(earlier, logged - self._lines.state().count, None):
            self._log(line)

    def event(self, event: AnyEvent) -> None:
        for line in self._lines.of(event):
            self._log(line)

    def closed(self) -> None:
        """A step that still lacks its clock figures was cut off: it is logged when the run goes on."""
        if self._run is None:
            return
        try:
            self._run.finish()
            if not self._unlogged:
                self._keep(Kept(id=self._kept.id, logged=self._next))
        except (wandb.Error, OSError) as error:
            self._failed(error)

    @property
    def _memory(self) -> Path:
        return self._folder / "wandb" / "sparring.json"

    def _start_somehow(self, run: Mapping[str, Any]) -> None:
        try:
            self._start(run, self._mode)
        except CommError as error:
            if self._mode == "offline" or isinstance(error, AuthenticationError):
                raise
            wandb.teardown()  # its service keeps the id for the run that did not start
            self._start(run, "offline")
            self._failed(
                f"it cannot be reached ({error}); lines are kept for `wandb sync {self._folder}/wandb/offline-*`"
            )

    def _start(self, run: Mapping[str, Any], mode: Mode) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        if self._memory.is_file():
            self._kept = msgspec.json.decode(self._memory.read_bytes(), type=Kept)
        killed = self._folder / "wandb" / self._kept.open
        if self._kept.open.startswith("offline-") and killed.is_dir():
            killed.rename(killed.with_name(f"superseded-{killed.name}"))
        self._run = wandb.init(
            project=self._project,
            name=self._name,
            id=self._kept.id,
            resume="allow",
            mode=mode,
            dir=self._folder,
            config=dict(run),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="version")
        self._next = max(self._kept.logged, self._run.starting_step)
        self._keep(Kept(id=self._kept.id, logged=self._kept.logged, open=Path(self._run.settings.sync_dir).name))

    def _log(self, line: Line) -> None:
        """Log one line, after those that could not be logged before it; its number only grows, also over resumed runs."""
        self._unlogged.append(line)
        while self._unlogged and self._run is not None:
            try:
                shown = figures(self._unlogged[0], several=self._several)
                self._run.log(shown, step=self._next, commit=True)
            except (wandb.Error, OSError) as error:
                self._failed(error)
                return
            self._next += 1
            del self._unlogged[0]

    def _keep(self, kept: Kept) -> None:
        partial = self._memory.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(kept))
        partial.replace(self._memory)
        self._kept = kept

    def _failed(self, error: Exception | str) -> None:
        self.failures += 1
        if self.failures == 1:
            self._warn(f"W&B: {error}; the run goes on, metrics.jsonl has every figure")


def figures(line: Line, *, several: bool) -> dict[str, float]:
    """A line's figures under the names that W&B shows them by."""
    found: dict[str, float] = {"version": line.version}
    if line.kind == "evaluation":
        return found | {f"held_out/{line.name}/{name}": value for name, value in line.deterministic.items()}
    prefix = f"{line.policy}/" if several else ""
    for part, values in (("train", line.deterministic), ("engine", line.engine), ("timing", line.timing)):
        found |= {f"{prefix}{part}/{name}": value for name, value in values.items()}
    return found
