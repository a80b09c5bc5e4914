"""Versions: what is needed is open, what is not is closed, and nothing is closed under a player."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from sparring.arrays import F32, I32
from sparring.backend import SampledSequence, SamplingClient, SamplingParams, ScriptedBackend, TrainingClient
from sparring.errors import BackendError, SettingError
from sparring.learner.versions import Versions

PARAMS = SamplingParams(max_tokens=5, seed=0)


class Client:
    """A sampling client that waits for a word before it samples, and for another before it closes."""

    def __init__(self, inner: SamplingClient, go: anyio.Event, close: anyio.Event) -> None:
        self.inner, self.go, self.close = inner, go, close
        self.sampling = 0
        self.closed = False

    @property
    def version(self) -> int:
        return self.inner.version

    async def sample(self, prompt: Sequence[int] | I32, params: SamplingParams, n: int = 1) -> list[SampledSequence]:
        if self.closed:
            raise BackendError("closed")
        self.sampling += 1
        try:
            await self.go.wait()
        finally:
            self.sampling -= 1
        assert not self.closed, "closed while it sampled"
        return await self.inner.sample(prompt, params, n)

    async def logprobs(self, tokens: Sequence[int] | I32) -> F32:
        await self.go.wait()
        assert not self.closed, "closed while it scored"
        return np.zeros(len(tokens), np.float32)

    async def options(self, prompt: Sequence[int] | I32, options: Sequence[Sequence[int] | I32]) -> F32:
        await self.go.wait()
        assert not self.closed, "closed while it told probabilities"
        return np.zeros(len(options), np.float32)

    async def aclose(self) -> None:
        assert not self.sampling, "closed while it sampled"
        await self.close.wait()
        await anyio.lowlevel.checkpoint()
        self.closed = True


class World:
    """Versions over the scripted backend, with the clients in view."""

    def __init__(self, model: TrainingClient, keep: int) -> None:
        self.versions = Versions(model, keep)
        self.clients: dict[int, Client] = {}
        self.go, self.close = anyio.Event(), anyio.Event()
        self.go.set()
        self.close.set()

    async def install(self, *numbers: int) -> None:
        for number in numbers:
            await self.versions.install(number)
            entry = self.versions._entries[number]
            self.clients[number] = Client(entry.client, self.go, self.close)
            entry.client = self.clients[number]

    def halt(self) -> None:
        """From now on clients wait before they sample or close."""
        self.go, self.close = anyio.Event(), anyio.Event()
        for client in self.clients.values():
            client.go, client.close = self.go, self.close

    @property
    def open(self) -> list[int]:
        return [number for number, client in self.clients.items() if not client.closed]


async def world(keep: int = 2) -> World:
    return World(await ScriptedBackend().create_model("model"), keep)


async def test_the_newest_are_kept() -> None:
    one = await world()
    await one.install(0, 1, 2, 3)
    await one.versions.trim()
    assert one.open == [2, 3]
    with pytest.raises(SettingError, match=r"version 1 is not there; installed are \[2, 3\]"):
        await one.versions.player(1).sample([258], PARAMS)


async def test_versions_never_go_back() -> None:
    one = await world()
    await one.install(0, 2)
    with pytest.raises(AssertionError, match="never go back"):
        await one.versions.install(2)


async def test_a_version_is_kept_as_often_as_it_is_held() -> None:
    one = await world(keep=1)
    await one.install(0)
    for _ in range(2):
        one.versions.hold(0)
    await one.install(1, 2)
    await one.versions.release(0)
    assert one.open == [0, 2]
    await one.versions.release(0)
    assert one.open == [2]


async def test_players_of_a_version_and_of_the_newest() -> None:
    one = await world()
    await one.install(0)
    newest, first = one.versions.player(), one.versions.player(0)
    ((before,), (fixed,)) = await newest.sample([258], PARAMS), await first.sample([258], PARAMS)
    await one.install(1)
    (after,) = await newest.sample([258], PARAMS)
    assert before.versions[0][0] == fixed.versions[0][0] == first.version == 0
    assert after.versions[0][0] == newest.version == 1
    await newest.aclose()
    assert one.open == [0, 1], "players hold nothing between calls"


async def test_nothing_is_closed_under_a_player() -> None:
    one = await world(keep=1)
    await one.install(0)
    one.halt()
    one.close.set()
    drawn: list[SampledSequence] = []

    async def play() -> None:
        drawn.extend(await one.versions.player().sample([258], PARAMS))

    async with anyio.create_task_group() as group:
        group.start_soon(play)
        await anyio.wait_all_tasks_blocked()
        await one.install(1, 2)
        await one.versions.trim()
        assert one.clients[0].sampling == 1 and not one.clients[0].closed
        one.go.set()
    assert drawn[0].versions[0][0] == 0, "a sample is made with the weights that it began with"
    assert one.open == [2]


async def test_a_player_that_is_cut_off_lets_go() -> None:
    one = await world(keep=1)
    await one.install(0)
    one.halt()
    one.close.set()
    async with anyio.create_task_group() as group:
        group.start_soon(one.versions.player().sample, [258], PARAMS)
        await anyio.wait_all_tasks_blocked()
        await one.install(1)
        group.cancel_scope.cancel()
    assert one.versions._entries[1].holds == 0 and one.open == [1]


async def test_a_client_is_closed_also_when_whoever_closes_it_is_cut_off() -> None:
    one = await world(keep=1)
    await one.install(0, 1, 2)
    one.halt()
    async with anyio.create_task_group() as group:
        group.start_soon(one.versions.trim)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        one.close.set()
    assert one.open in ([2], [1, 2])
    assert sorted(one.versions._entries) == one.open, "what has left the books is closed"


async def test_what_is_held_while_another_is_closed_stays_open() -> None:
    one = await world(keep=1)
    await one.install(0, 1, 2)
    one.halt()
    async with anyio.create_task_group() as group:
        group.start_soon(one.versions.trim)
        await anyio.wait_all_tasks_blocked()
        one.versions.hold(1)
        one.close.set()
    assert one.open == [1, 2]


async def test_log_probs_hold_their_version_too() -> None:
    one = await world(keep=1)
    await one.install(0)
    one.halt()
    one.close.set()
    async with anyio.create_task_group() as group:
        group.start_soon(one.versions.player(0).logprobs, [1, 2])
        await anyio.wait_all_tasks_blocked()
        await one.install(1)
        await one.versions.trim()
        one.go.set()
    assert one.open == [1]


async def test_the_planted_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held does not count: a client is closed while it samples."""

    def careless(self: Versions) -> int | None:
        return next((version for version in self._entries if version <= self.newest - self._keep), None)

    monkeypatch.setattr(Versions, "_idle", careless)
    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="closed while it sampled"), SettingError):
        await test_nothing_is_closed_under_a_player()
