"""What a run shows while it runs: three lines with every setting that decides the result, then one line a step.

Plain lines, no cursor movement: the same on a terminal, in a pipe and in a log file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from sparring.learner.history import Step, estimate_mean, fall_back_note, headline_name, note_of
from sparring.rollout.events import SET_ASIDE, Accepted, AnyEvent, Ended, Evaluated, Noted, Retried, Stepped, Timed

_HEADER_EVERY = 20
_MISSING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the live table: `part` and `name` say which figure of a step it shows, `show` how."""

    title: str
    width: int
    part: str
    name: str
    show: Callable[[float], str]


def _two(value: float) -> str:
    return f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _small(value: float) -> str:
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"


def span(seconds: float) -> str:
    """Seconds as `48s`, `3m10s`, `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


COLUMNS = (
    Column(title="reward", width=7, part="metrics", name="reward", show=_two),
    Column(title="length", width=7, part="metrics", name="length", show=_one),
    Column(title="cut", width=5, part="metrics", name="truncated", show=_two),
    Column(title="mixed", width=6, part="metrics", name="mixed", show=_two),
    Column(title="KL", width=9, part="engine", name="kl", show=_small),
    Column(title="ESS", width=5, part="engine", name="ess", show=_two),
    Column(title="stale", width=6, part="metrics", name="staleness", show=_two),
    Column(title="|grad|", width=8, part="engine", name="gradient_norm", show=_small),
    Column(title="tok/s", width=7, part="timing", name="tokens_per_second", show=_whole),
    Column(title="idle", width=5, part="timing", name="idle", show=_two),
    Column(title="left", width=7, part="timing", name="left_seconds", show=span),
)
LEGEND = (
    "step: steps made; held-out: mean [95 % interval]; cut: replies that ran into max_tokens; mixed: sets with unequal "
    "rewards; KL(sampler || trainer), nats per token; ESS: effective sample size; stale: versions that a trained token "
    "lags behind; idle: share of the time that the learner waits"
)
_HELD_OUT_WIDTH = 20


class Display:
    """A `Watcher` that writes to a text stream. A closed pipe silences it; the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows = 0
        self._steps = 0
        self._due: frozenset[int] = frozenset()
        self._policies: tuple[str, ...] = ()
        self._headline = ""
        self._waiting: dict[str, Step] = {}
        self._fresh: dict[int, str] = {}
        self._faults: set[str] = set()
        self._silent = False

    def opened(self, run: Mapping[str, Any]) -> None:
        for line in settings_lines(run):
            self._write(line)
        settings = run["settings"]
        self._steps = int(settings["steps"])
        self._policies = tuple(settings["policies"])
        names = [name.removeprefix("held_out/") for name in run["episodes"] if name.startswith("held_out/")]
        self._headline = names[0] if names else ""
        if names:
            self._due = frozenset({*range(0, self._steps + 1, int(settings["evaluate_every"])), self._steps})
        self._write(LEGEND)

    def event(self, event: AnyEvent) -> None:
        match event:
            case Stepped():
                self._flush(event.policy)
                self._waiting[event.policy] = Step(
                    policy=event.policy,
                    version=event.step + 1,
                    metrics=event.metrics,
                    engine=event.engine,
                    timing={},
                )
                self._note(fall_back_note(event))
            case Timed():
                self._time(event)
            case Evaluated():
                self._evaluate(event)
            case Ended() | Retried() if event.fault and event.fault not in self._faults:
                self._faults.add(event.fault)
                said = (event.detail.strip().splitlines() or [""])[-1]
                what = "was dropped" if event.fault in SET_ASIDE else "failed"
                self.warn(f"episode {event.member} of group {event.group} {what} ({event.fault}): {said}")
            case Noted() | Accepted():
                self._note(note_of(event))
            case _:
                """Shown when the step that it belongs to is."""

    def closed(self) -> None:
        for policy in list(self._waiting):
            self._flush(policy)
        self._show_fresh()

    def warn(self, text: str) -> None:
        """A line that does not belong to the table."""
        self._write(f"warning: {text}")

    def _note(self, note: Noted | None) -> None:
        if note is not None:
            self._write(f"{note.kind}: {note.text}")

    def _time(self, event: Timed) -> None:
        """The row is complete, unless a held-out figure of its version is still to come."""
        step = self._waiting.get(event.policy)
        if step is None or step.version != event.step + 1:
            return
        self._waiting[step.policy] = Step(
            policy=step.policy,
            version=step.version,
            metrics=step.metrics,
            engine=step.engine,
            timing=event.timing,
        )
        if step.version not in self._due or step.version in self._fresh:
            self._flush(step.policy)

    def _evaluate(self, event: Evaluated) -> None:
        found = estimate_mean(event.values)
        text = _MISSING if found is None else str(found)
        unjudged = sum(value is None for value in event.values)
        if unjudged:
            self.warn(
                f"held-out {event.name!r}, version {event.version}: {unjudged} of {len(event.values)} tasks have no value"
            )
        if event.name != self._headline:
            self._write(f"held-out {event.name!r}, version {event.version}: {headline_name(event)} {text}")
            return
        self._fresh[event.version] = text
        ready = [step for step in self._waiting.values() if step.version == event.version and step.timing]
        for step in ready:
            self._flush(step.policy)
        if not any(step.version == event.version for step in self._waiting.values()):
            self._show_fresh()

    def _flush(self, policy: str) -> None:
        """Write the policy's waiting row, with the held-out figure of its version if that is there."""
        step = self._waiting.pop(policy, None)
        if step is not None:
            self._row(step.version, step.policy, self._fresh.pop(step.version, ""), step)

    def _show_fresh(self) -> None:
        """Write held-out figures that no waiting row will show."""
        for version in sorted(self._fresh):
            self._row(version, "", self._fresh.pop(version), None)

    def _row(self, version: int, policy: str, held_out: str, step: Step | None) -> None:
        if self._rows % _HEADER_EVERY == 0:
            self._write(self._line("step", "policy", "held-out", [column.title for column in COLUMNS]))
        self._rows += 1
        cells = [_MISSING if step is None else cell(column, step) for column in COLUMNS]
        self._write(self._line(f"{version}/{self._steps}", policy or _MISSING, held_out or _MISSING, cells))

    def _line(self, step: str, policy: str, held_out: str, cells: list[str]) -> str:
        parts = [step.rjust(len(f"{self._steps}/{self._steps}") + 1)]
        if len(self._policies) > 1:
            parts.append(policy.ljust(max(map(len, (*self._policies, "policy")))))
        parts.append(held_out.ljust(_HELD_OUT_WIDTH))
        parts += [text.rjust(column.width) for text, column in zip(cells, COLUMNS, strict=True)]
        return " ".join(parts)

    def _write(self, line: str) -> None:
        if self._silent:
            return
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except BrokenPipeError:
            self._silent = True


def cell(column: Column, step: Step) -> str:
    """What a column shows of a step, `-` where the step has no such figure."""
    figures = {"metrics": step.metrics, "engine": step.engine, "timing": step.timing}[column.part]
    return column.show(figures[column.name]) if column.name in figures else _MISSING


# ------------------------------------------------------------------------------------------------------------- settings


def settings_lines(run: Mapping[str, Any]) -> tuple[str, str, str]:
    """Every setting of `run.json` that decides the result, in three lines: who learns and how, the schedule, what is played."""
    settings = dict(run["settings"])
    policies, backend = settings.pop("policies"), settings.pop("backend")
    learners = " | ".join(_policy_line(name, policy, run["models"].get(name, {})) for name, policy in policies.items())
    schedule = f"{_pairs(settings)} backend={shown(backend)}"
    played = " | ".join(_episodes_line(name, episodes) for name, episodes in run["episodes"].items())
    return learners, schedule, played


def _policy_line(name: str, policy: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in policy.items() if key not in ("is", "model", "adam")}
    rest["adam"] = {key: value for key, value in policy["adam"].items() if key != "learning_rate"}
    facts = {key: model[key] for key in ("dtype", "parameters", "trained_parameters", "context_length") if key in model}
    return f"{name}: model={policy['model']} {_pairs(facts)} {_pairs(rest)}"


def _episodes_line(name: str, episodes: Mapping[str, Any]) -> str:
    environment = episodes["environment"]
    tasks = "endless" if episodes["tasks"] is None else episodes["tasks"]
    rest = {key: episodes[key] for key in ("lineups", "greedy", "seen", "curriculum", "faults")}
    return (
        f"{name}: {environment['name']} {_pairs(environment.get('settings', {}))} tasks={tasks} {_pairs(rest)}".replace(
            "  ", " "
        )
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={shown(value)}" for key, value in values.items() if value not in ({}, [], [{}]))


def shown(value: Any) -> str:
    """A setting as short text: `PPO(clip_low_threshold=0.8, ...)` for a dataclass, without empty parts."""
    if isinstance(value, Mapping):
        name = value.get("is", value.get("backend", ""))
        inner = {key: item for key, item in value.items() if key not in ("is", "backend") and item not in ({}, [])}
        return f"{name}({', '.join(f'{key}={shown(item)}' for key, item in inner.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)
