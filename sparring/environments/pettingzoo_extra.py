"""The extra `pettingzoo`: the package behind the adapters, or what to install."""

from sparring.errors import UnsupportedError

try:
    import pettingzoo
    from pettingzoo.env_registry.exceptions import PettingZooRegistryError
except ModuleNotFoundError as missing:
    raise UnsupportedError(
        f"environments of PettingZoo need {missing.name!r}: pip install 'sparring[pettingzoo]'"
    ) from missing

__all__ = ["PettingZooRegistryError", "pettingzoo"]
