"""The extra `textarena`: the package behind the adapter, or what to install."""

from sparring.errors import UnsupportedError

try:
    import textarena
except ModuleNotFoundError as missing:
    raise UnsupportedError(f"games of TextArena need {missing.name!r}: pip install 'sparring[textarena]'") from missing

__all__ = ["textarena"]
