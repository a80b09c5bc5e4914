"""The models that learn for one policy: its own, and where its algorithm has them a critic and a reference."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.backend import (
    Backend,
    CriticClient,
    Lora,
    ModelInfo,
    ReferenceClient,
    TeacherReference,
    TrainingClient,
)
from sparring.errors import SettingError
from sparring.learner.run import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """`model` is sampled from; what its critic knows is saved, loaded and compared with it; a reference never changes."""

    model: TrainingClient
    critic: CriticClient | None = None
    reference: ReferenceClient | None = None

    @property
    def infos(self) -> dict[str, ModelInfo]:
        """What they are, under "" for the policy's own model."""
        others = {"critic": self.critic, "reference": self.reference}
        return {"": self.model.info} | {name: client.info for name, client in others.items() if client is not None}

    async def save(self, folder: Path) -> None:
        """Into a folder of which nothing is there; the critic's in one below it."""
        await self.model.save_state(str(folder))
        if self.critic is not None:
            await self.critic.save_state(str(folder / "critic"))

    async def load(self, folder: Path) -> None:
        await self.model.load_state(str(folder))
        if self.critic is not None:
            await self.critic.load_state(str(folder / "critic"))

    async def critic_digest(self) -> str:
        """Empty without a critic."""
        return "" if self.critic is None else await self.critic.digest()


async def begun(backend: Backend, name: str, start: str | None, *, lora: Lora, seed: int) -> TrainingClient:
    """A fresh model, or one with the weights that lie in `start`. Raises `SettingError` where those are of another adapter."""
    if start is None:
        return await backend.create_model(name, lora=lora, seed=seed)
    model = await backend.create_from_state(_absolute(start), model=name, optimizer=False)
    found = model.info.lora
    if model.info.trained_parameters and (found is None or replace(found, seed=None) != replace(lora, seed=None)):
        model.unload()
        raise SettingError(
            f"start={start!r} holds {found!r}, the settings say lora={lora!r}: set lora to what it holds"
        )
    return model


def _absolute(folder: str) -> str:
    """A backend would take a relative one for a name of its own."""
    return str(Path(folder).absolute())


async def taught(backend: Backend, policy: Policy, seed: int, open_until: AsyncExitStack) -> Taught:
    """The models of a policy, as they are before the first step. A teacher stays open as long as `open_until`."""
    algorithm = policy.algorithm
    model = await begun(backend, policy.model, policy.start, lora=policy.lora, seed=seed)
    critic = algorithm.critic
    return Taught(
        model=model,
        critic=None
        if critic is None
        else await backend.create_critic(critic.model or policy.model, lora=critic.lora, seed=seed),
        reference=await _reference(backend, policy, open_until),
    )


async def _reference(backend: Backend, policy: Policy, open_until: AsyncExitStack) -> ReferenceClient | None:
    kl, teacher = policy.algorithm.kl, policy.algorithm.teacher
    if teacher is not None:
        return TeacherReference(await open_until.enter_async_context(teacher.opened()), teacher.model)
    return None if kl is None else await backend.reference(kl.reference or policy.model)
