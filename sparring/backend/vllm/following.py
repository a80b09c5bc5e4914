"""Weights in flight: one name under which vLLM has whatever version of a model is the newest.

vLLM stamps tokens with a label of the whole engine, though adapters of several models may be followed there. So the label says
the version of each: it is set anew whenever one of them goes on, while the engine is paused, and read again from the spans that
come with each sequence. Where versions are all weights, it says which are installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.backend.vllm.files import WeightsFile
from sparring.errors import BackendError, SparringError


@dataclass(slots=True, kw_only=True, eq=False)
class Followed:
    """A model that is followed, by its adapter or by all its weights (`whole`). `now` is what every engine in the rotation has
    at least; an engine that is started anew begins with it. `failed` is why nothing that is drawn can be trusted any more. Set
    on the trainer's thread, read on all."""

    name: str
    number: int
    folder: Path
    whole: bool
    now: WeightsFile
    failed: SparringError | None = field(default=None)

    def link(self, engine: str) -> Path:
        """The path at which an engine finds them. vLLM may read an adapter that it has forgotten again, at any time, from where
        it was told first: so each engine has a path of its own, which changes with what the engine has."""
        return self.folder / f"{self.name}-{engine}"

    def point(self, engine: str, weights: WeightsFile) -> None:
        """From now on these are what an engine finds there."""
        link = self.link(engine)
        fresh = link.with_suffix(".new")
        fresh.symlink_to(weights.folder, target_is_directory=True)
        fresh.replace(link)

    def forget(self) -> None:
        """Nothing is found at any engine's path any more."""
        for link in self.folder.glob(f"{self.name}-*"):
            link.unlink(missing_ok=True)


def label(versions: Mapping[int, int]) -> str:
    """What vLLM stamps tokens with where the models, or the weights, of these numbers have these versions."""
    return " ".join(f"{number}:{version}" for number, version in sorted(versions.items()))


def version_in(text: str, number: int | None) -> int:
    """The version of a number in a label; of None, the only one there. Raises `BackendError` where there is none."""
    versions = [pair.split(":") for pair in text.split() if ":" in pair]
    found = [int(version) for named, version in versions if number is None or named == str(number)]
    if len(found) != 1:
        raise BackendError(
            f"vLLM drew with weights {text!r}, which does not say the version of {number or 'one model'}"
        )
    return found[0]


def stamps(spans: Sequence[Any], source: Followed) -> tuple[tuple[int, int], ...]:
    """vLLM's spans of a sequence as runs `(version, tokens)` of one model."""
    found: list[tuple[int, int]] = []
    for span in spans:
        version, tokens = version_in(span.version, None if source.whole else source.number), span.end - span.start
        if found and found[-1][0] == version:
            found[-1] = version, found[-1][1] + tokens
        elif tokens:
            found.append((version, tokens))
    return tuple(found)
