"""Backends as settings: equal by value, opened late."""

import pytest

from sparring import Local, SamplingParams, ScriptedBackend, ScriptedModels
from sparring.backend import BackendChoice
from sparring.backend.scripted import babble


def test_choices_are_plain_values() -> None:
    assert Local() == Local()
    assert Local(threads=2) != Local()
    assert ScriptedModels() == ScriptedModels(reply=babble)
    for choice in (Local(), ScriptedModels()):
        assert isinstance(choice, BackendChoice)
    for other in (ScriptedBackend(), "local", None):
        assert not isinstance(other, BackendChoice)


@pytest.mark.parametrize("deterministic", [False, True])
async def test_the_scripted_backend_says_what_it_is_told(deterministic: bool) -> None:
    choice = ScriptedModels(reply=lambda prompt, rng: f"heard: {prompt}")
    async with choice.open(deterministic=deterministic) as backend:
        assert backend.capabilities().deterministic
        model = await backend.create_model("any")
        prompt = model.renderer.start([{"role": "user", "content": "hello"}])
        (drawn,) = await (await model.sampler()).sample(prompt, SamplingParams(max_tokens=99))
        assert model.renderer.text(drawn.tokens) == "heard: hello"
