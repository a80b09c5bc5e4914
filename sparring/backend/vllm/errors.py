"""What is raised where an engine of vLLM ends, dies or does not start."""

from sparring.errors import BackendError


class EngineDied(Exception):
    """The engine cannot be asked any more; another one can."""


class EngineLost(BackendError):
    """The engine died, and another one does not start."""


class EngineStuck(BackendError):
    """An engine did not start in time, and was ended."""
