"""The extra `openspiel`: the package behind the adapter, or what to install."""

from sparring.errors import UnsupportedError

try:
    import pyspiel
    from open_spiel.python.algorithms.exploitability import exploitability as open_spiel_exploitability
    from open_spiel.python.policy import TabularPolicy
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"games of OpenSpiel need {missing.name!r}: pip install 'sparring[openspiel]'") from missing

__all__ = ["TabularPolicy", "open_spiel_exploitability", "pyspiel"]
