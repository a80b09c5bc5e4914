"""Policies without a language model: a table and a small network over a fixed list of replies."""

from sparring.backend.small.backend import SmallBackend

__all__ = ["SmallBackend"]
