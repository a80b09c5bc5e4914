"""The torch engine: frozen bases, any number of adapters, one thread that trains and samples."""

from sparring.backend.local.backend import LocalBackend

__all__ = ["LocalBackend"]
