"""The extra `games`: the packages behind the adapters, or what to install."""

from sparring.errors import UnsupportedError

try:
    import gymnasium
    from gymnasium.utils.seeding import np_random
except ModuleNotFoundError as missing:
    raise UnsupportedError(
        f"environments of Gymnasium need {missing.name!r}: pip install 'sparring[games]'"
    ) from missing

__all__ = ["gymnasium", "np_random"]
