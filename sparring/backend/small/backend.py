"""The backend of small policies: nothing to load, no thread, no process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.backend.losses import LOSSES, Custom
from sparring.backend.small.model import SmallModel, described
from sparring.backend.small.policies import Network, SmallPolicy, Table
from sparring.backend.small.renderer import ReplyRenderer
from sparring.backend.training import Capabilities, CriticClient, Lora
from sparring.errors import SettingError, UnsupportedError


class SmallBackend:
    """A `Backend` of the models "table" and "network"; see `SmallModels`."""

    def __init__(self, *, replies: Sequence[str], rows: int = 2**16, features: int = 1024, hidden: int = 96) -> None:
        if isinstance(replies, str) or len(set(replies)) != len(replies) or len(replies) < 2 or not all(replies):
            raise SettingError(
                f"replies={replies!r}: give at least two, all different, none empty, as in ('yes', 'no')"
            )
        for name, value in (("rows", rows), ("features", features), ("hidden", hidden)):
            if value < 1:
                raise SettingError(f"{name}={value!r}: must be at least 1")
        self._renderer = ReplyRenderer(replies)
        self._policies: Mapping[str, SmallPolicy] = {
            "table": Table(replies=len(replies), rows=rows),
            "network": Network(replies=len(replies), features=features, hidden=hidden),
        }

    async def __aenter__(self) -> SmallBackend:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing to end."""

    async def create_model(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> SmallModel:
        """There is no base for an adapter: whatever `lora` says, all weights are trained."""
        if model not in self._policies:
            raise SettingError(f"model {model!r}: small models are {', '.join(map(repr, self._policies))}")
        return SmallModel(model, self._policies[model], self._renderer, seed)

    async def create_from_state(self, path: str, *, model: str | None = None, optimizer: bool = True) -> SmallModel:
        created = await self.create_model(described(path).model if model is None else model)
        await created.load_state(path, optimizer=optimizer)
        return created

    async def create_critic(self, model: str, *, lora: Lora | None = None, seed: int = 0) -> CriticClient:
        raise UnsupportedError(f"create_critic({model!r}): small models have no critics; take an estimator without one")

    async def reference(self, model: str) -> SmallModel:
        """Untrained, it finds all replies equally likely: the magnet of a regularised policy."""
        return await self.create_model(model)

    def capabilities(self) -> Capabilities:
        return Capabilities(losses=frozenset(LOSSES) - {Custom}, deterministic=True, references=True)

    def statistics(self) -> Mapping[str, float]:
        """It has no queues: what is asked for is done at once."""
        return {}
