"""The backend without a model: what its replies and its weights depend on, and that nothing it is asked for is ignored."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from sparring import (
    PPO,
    Adam,
    CrossEntropy,
    Datum,
    ImportanceSampling,
    SamplingParams,
    ScriptedBackend,
    token_mean,
)
from sparring.arrays import I32
from sparring.backend import SampledSequence
from sparring.backend.bytes_renderer import END
from sparring.backend.scripted import ScriptedModel, ScriptedReply, ScriptedSampler, babble
from sparring.errors import BackendError, ContextFull, SettingError, UnsupportedError


def asked(text: str = "hello") -> I32:
    return ScriptedModel("m", 0, babble).renderer.start([{"role": "user", "content": text}])


async def draw(reply: ScriptedReply, prompt: I32 | None = None, **params: Any) -> SampledSequence:
    sampler = ScriptedSampler(b"weights", 7, reply)
    (drawn,) = await sampler.sample(
        asked() if prompt is None else prompt, SamplingParams(**{"max_tokens": 50} | params)
    )
    return drawn


def said(text: str) -> ScriptedReply:
    return lambda prompt, rng: text


# ---------------------------------------------------------------------------------------------------------------- replies


async def test_a_reply_is_tokens_with_log_probs_of_one_version() -> None:
    drawn = await draw(said("four"))
    assert drawn.tokens.tolist() == [*b"four", END]
    assert (drawn.stop, drawn.versions) == ("stop", ((7, 5),))
    assert (drawn.logprobs <= 0).all()
    assert len(set(drawn.logprobs.tolist())) == 5


async def test_it_is_a_function_of_weights_prompt_seed_and_place() -> None:
    def chance(prompt: str, rng: Random) -> str:
        return f"{rng.random()}"

    async def one(weights: bytes = b"w", text: str = "a", seed: int = 1) -> list[list[int]]:
        sampler = ScriptedSampler(weights, 0, chance)
        return [
            d.tokens.tolist() for d in await sampler.sample(asked(text), SamplingParams(max_tokens=50, seed=seed), n=2)
        ]

    base = await one()
    assert base == await one()
    assert base[0] != base[1], "two replies to one prompt differ"
    for other in (await one(weights=b"v"), await one(text="b"), await one(seed=2)):
        assert base[0] != other[0]


@pytest.mark.parametrize(("limit", "text", "stop"), [(5, "four", "stop"), (4, "four", "length"), (1, "four", "length")])
async def test_a_reply_is_cut_at_its_limit(limit: int, text: str, stop: str) -> None:
    drawn = await draw(said(text), max_tokens=limit)
    assert drawn.tokens.tolist() == [*text.encode(), END][:limit]
    assert drawn.stop == stop


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (("\n",), "one\n"),
        (("#", "two"), "one\ntwo"),
        (("o#", "wo", "t"), "one\nt"),
        (("one",), "one"),
        (("nowhere",), None),
        ((), None),
    ],
)
async def test_a_stop_string_ends_a_reply_and_is_part_of_it(stop: tuple[str, ...], kept: str | None) -> None:
    """Whichever is complete first; then the stop token is not sampled."""
    drawn = await draw(said("one\ntwo#"), stop=stop)
    assert drawn.tokens.tolist() == ([*kept.encode()] if kept is not None else [*b"one\ntwo#", END])
    assert drawn.stop == "stop"


async def test_the_limit_may_come_before_the_stop_string() -> None:
    drawn = await draw(said("one\ntwo"), stop=("two",), max_tokens=5)
    assert (drawn.tokens.tolist(), drawn.stop) == ([*b"one\nt"], "length")


@pytest.mark.parametrize("reply", [None, 3, b"four"])
async def test_a_reply_is_text(reply: Any) -> None:
    with pytest.raises(SettingError, match=r"the scripted reply .*: must be text"):
        await draw(said(reply))


async def test_babble_is_letters() -> None:
    for seed in range(20):
        text = babble("", Random(seed))
        assert 1 <= len(text) <= 8
        assert set(text) <= set("abcdefgh")


@pytest.mark.parametrize("prompt", [[], [-1], [261], [3, 400]])
async def test_a_bad_prompt_is_refused(prompt: list[int]) -> None:
    with pytest.raises(SettingError, match=f"prompt of {len(prompt)} tokens: at least one, with ids from 0 to 260"):
        await draw(babble, np.array(prompt, np.int32))


async def test_a_context_has_an_end() -> None:
    with pytest.raises(ContextFull, match="exceed the context"):
        await draw(babble, np.zeros(1 << 20, np.int32))


async def test_what_it_has_not_is_said() -> None:
    backend = ScriptedBackend()
    assert not backend.capabilities().logprobs
    model = await backend.create_model("m")
    sampler = await model.sampler()
    with pytest.raises(UnsupportedError, match="no distribution"):
        await sampler.logprobs([1, 2])
    with pytest.raises(SettingError, match="it follows what is published, from the first on"):
        await model.sampler("inflight")
    await sampler.aclose()
    with pytest.raises(BackendError, match="closed"):
        await sampler.sample(asked(), SamplingParams(max_tokens=1))


# ---------------------------------------------------------------------------------------------------------------- weights


def datum(*tokens: int, advantage: float = 1.0) -> Datum:
    sample = SampledSequence(
        tokens=np.array(tokens, np.int32),
        logprobs=np.full(len(tokens), -1, np.float32),
        stop="stop",
        versions=((0, len(tokens)),),
    )
    return Datum.completion([1, 2], sample, advantage=advantage)


async def weights(*calls: list[Datum], adam: Adam | None = None, loss: Any = None, seed: int = 0) -> str:
    """The digest after these calls and one optimizer step."""
    model = await ScriptedBackend().create_model("m", seed=seed)
    for data in calls:
        await model.forward_backward(data, loss or PPO())
    await model.optim_step(adam or Adam())
    return await model.digest()


async def test_whatever_a_step_is_made_of_is_in_the_weights() -> None:
    one, two = datum(3, 4), datum(5)
    base = await weights([one, two])
    assert base == await weights([one, two])
    assert base == await weights([one], [two]), "calls are not examples"
    others = [
        await weights([two, one]),
        await weights([one]),
        await weights([one, two, two]),
        await weights([one, datum(5, advantage=0.5)]),
        await weights(token_mean([one, two])),
        await weights([one, two], adam=Adam(learning_rate=1e-3)),
        await weights([one, two], loss=ImportanceSampling()),
        await weights([one, two], seed=1),
        await weights(),
    ]
    assert len({base, *others}) == 1 + len(others), "lost, doubled, reordered or changed: each shows"


async def test_discarded_gradients_leave_no_trace() -> None:
    model = await ScriptedBackend().create_model("m")
    await model.forward_backward([datum(9)], PPO())
    await model.discard_gradients()
    await model.forward_backward([datum(3)], PPO())
    await model.optim_step(Adam())
    assert await model.digest() == await weights([datum(3)])


async def test_forward_changes_nothing() -> None:
    model = await ScriptedBackend().create_model("m")
    before = await model.digest()
    output = await model.forward([datum(3, 4)], CrossEntropy())
    assert (output.metrics["tokens"], await model.digest()) == (2, before)
    with pytest.raises(SettingError, match="empty batch"):
        model.forward([], PPO())


async def test_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    model = await ScriptedBackend().create_model("m")
    await model.forward_backward([datum(3)], PPO())
    await model.optim_step(Adam())
    path = await model.save_state(str(tmp_path / "saved"))
    other = await ScriptedBackend().create_model("m", seed=1)
    await other.load_state(path)
    assert await other.digest() == await model.digest()
    with pytest.raises(SettingError, match="No such file"):
        await other.load_state(str(tmp_path / "nowhere"))


async def test_versions_are_snapshots_that_never_go_back() -> None:
    model = await ScriptedBackend(lambda prompt, rng: f"{rng.random()}").create_model("m")
    await model.publish(0)
    first = await model.sampler(version=0)

    async def said_by(sampler: Any) -> list[int]:
        (drawn,) = await sampler.sample(asked(), SamplingParams(max_tokens=50))
        return [int(token) for token in drawn.tokens]

    before = await said_by(first)
    await model.forward_backward([datum(3)], PPO())
    await model.optim_step(Adam())
    await model.publish(1)
    assert await said_by(first) == before, "what was published stays as it was"
    assert await said_by(await model.sampler(version=1)) != before
    assert (await model.sampler()).version == 1
    with pytest.raises(SettingError, match=r"publish\(0\) after version 1: versions never go back"):
        model.publish(0)
    with pytest.raises(SettingError, match=r"sampler\(version=5\): published are \[0, 1\]"):
        await model.sampler(version=5)
