"""What the commands share: wrong usage as an error, parsers that look alike, and `--field value` pairs."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from sparring.errors import SettingError


class UsageError(SettingError):
    """The command line asks for something that cannot be: exit code 2."""


class Parser(ArgumentParser):
    """An argument parser that raises `UsageError` instead of ending the process; options are never abbreviated."""

    def __init__(self, command: str, *, usage: str, about: str) -> None:
        super().__init__(
            prog=f"sparring {command}",
            usage=f"sparring {command} {usage}".rstrip(),
            description=about,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        """Called by argparse."""
        raise UsageError(message)


def field_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """`--name value`, `--name=value` and the bare `--name` (true) as (name, text)."""
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UsageError(f"unexpected argument {word!r}: settings are given as --field value")
        name, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        pairs.append((name, text))
    return pairs
