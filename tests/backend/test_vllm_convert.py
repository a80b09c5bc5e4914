"""What vLLM is asked for and what is made of its answers, without vLLM."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparring
from sparring.backend.pending import PendingResult
from sparring.backend.sampling import SamplingParams
from sparring.backend.training import Lora
from sparring.backend.vllm import ServedModel, VllmSettings
from sparring.backend.vllm.asked import Request
from sparring.backend.vllm.convert import sampled, scored, vllm_params
from sparring.backend.vllm.following import Followed, label, version_in
from sparring.backend.vllm.settings import block_size, engine_options, patience, refuse_unserved
from sparring.errors import BackendError, SettingError, SparringError, UnsupportedError
from tests.backend.scripted_engine import Completion, Flat, Output, Span, completion, file


def test_sequences_come_in_order_with_their_version() -> None:
    output = Output([completion(1, [7], [-0.5], "stop"), completion(0, [5, 6], [-1.0, -2.0])])
    first, second = sampled(output, SamplingParams(max_tokens=2), 2, file(4))
    assert (first.tokens.tolist(), first.logprobs.tolist(), first.stop) == ([5, 6], [-1.0, -2.0], "length")
    assert (second.tokens.tolist(), second.stop, second.versions) == ([7], "stop", ((4, 1),))
    assert first.tokens.dtype == np.int32 and first.logprobs.dtype == np.float32


def test_a_greedy_draw_is_certain() -> None:
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    assert vllm_params(greedy, 3)["n"] == 1
    samples = sampled(Output([completion(0, [5], [-0.3])]), greedy, 3, file(0))
    assert [(sample.tokens.tolist(), sample.logprobs.tolist()) for sample in samples] == [([5], [0.0])] * 3


def followed(number: int, *, whole: bool = False) -> Followed:
    return Followed(name="f", number=number, folder=Path("/nowhere"), whole=whole, now=file(2))


def drawn(*spans: tuple[str, int, int]) -> Output:
    """Four tokens, and what vLLM says of which weights drew them."""
    one = completion(0, [1, 2, 3, 4], [-1.0] * 4)
    return Output([replace(one, weight_versions=[Span(*span) for span in spans])])


def test_labels_say_the_version_of_every_model_that_is_followed() -> None:
    assert label({12: 7, 3: 40}) == "3:40 12:7"
    assert (version_in("3:40 12:7", 3), version_in("3:40 12:7", 12)) == (40, 7)
    for text in ("default", "", "12:7"):
        with pytest.raises(BackendError, match=f"drew with weights '{text}', which does not say the version of 3"):
            version_in(text, 3)


def test_what_follows_a_model_is_stamped_with_its_versions_whatever_else_changes() -> None:
    """Another model that went on in the middle makes another span of vLLM's, and no other version."""
    spans = ("3:2 5:0", 0, 1), ("3:2 5:1", 1, 2), ("3:4 5:1", 2, 2), ("3:5 5:1", 2, 4)
    for number, versions in ((3, ((2, 2), (5, 2))), (5, ((0, 1), (1, 3)))):
        (sample,) = sampled(drawn(*spans), SamplingParams(max_tokens=4), 1, followed(number))
        assert sample.versions == versions


def test_where_versions_are_all_weights_the_label_names_these() -> None:
    (sample,) = sampled(drawn(("8:2", 0, 3), ("9:3", 3, 4)), SamplingParams(max_tokens=4), 1, followed(3, whole=True))
    assert sample.versions == ((2, 3), (3, 1))
    with pytest.raises(BackendError, match="does not say the version of one model"):
        sampled(drawn(("8:2 9:3", 0, 4)), SamplingParams(max_tokens=4), 1, followed(3, whole=True))


def test_tokens_that_vllm_stamped_with_nothing_are_none() -> None:
    with pytest.raises(BackendError, match=r"vLLM stamped \(\(2, 3\),\) of 4 tokens"):
        sampled(drawn(("3:2", 0, 3)), SamplingParams(max_tokens=4), 1, followed(3))
    with pytest.raises(BackendError, match="does not say the version of 3"):
        sampled(drawn(("default", 0, 4)), SamplingParams(max_tokens=4), 1, followed(3))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (completion(0, [5], [-1.0], "abort"), "'abort' after 1 tokens"),
        (completion(0, [5], [float("nan")]), "not finite"),
        (completion(0, [5], [float("-inf")]), "not finite"),
    ],
)
def test_an_answer_that_is_none_fails(one: Completion, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        sampled(Output([one]), SamplingParams(max_tokens=1), 1, file(0))


def test_scores_are_those_of_the_tokens_themselves() -> None:
    """vLLM gives the likeliest token beside each; nothing stands at the first place."""
    scores = scored(Output(prompt_logprobs=Flat([0, 0, 2], [0, 2, 3], [-3.0, -0.1, -4.0])), 3)
    assert np.isnan(scores[0]) and scores[1:].tolist() == [-3.0, -4.0]
    with pytest.raises(BackendError, match="not finite"):
        scored(Output(prompt_logprobs=Flat([0, 0], [0, 1], [float("nan")])), 2)


def test_what_vllm_is_asked_for() -> None:
    params = vllm_params(
        SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, stop=("x",), stop_ids=(3,)), 2
    )
    assert (params["n"], params["max_tokens"], params["temperature"]) == (2, 9, 0.5)
    assert (params["top_p"], params["top_k"], params["stop"], params["stop_token_ids"]) == (0.9, 4, ["x"], [3])
    assert params["ignore_eos"] and params["include_stop_str_in_output"] and params["detokenize"]
    assert params["seed"] is None
    assert not vllm_params(SamplingParams(max_tokens=1), 1)["detokenize"]


def test_seeds_are_spread_out() -> None:
    """vLLM adds the number of the sequence: no sum of one seed and a number is that of another."""
    seeds = [vllm_params(SamplingParams(max_tokens=1, seed=seed), 1)["seed"] for seed in (*range(50), -1, 2**70)]
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert len({seed + i for seed in seeds for i in range(64)}) == 64 * len(seeds)


@pytest.mark.parametrize("temperature", [0.009, 2.01])
def test_temperatures_that_vllm_changes_or_refuses_are_refused(temperature: float) -> None:
    with pytest.raises(UnsupportedError, match=f"temperature={temperature}"):
        vllm_params(SamplingParams(max_tokens=1, temperature=temperature), 1)


@pytest.mark.parametrize(
    ("on_cpu", "context", "megabytes", "seconds"),
    [
        (False, 10, 1, 20),
        (True, 10, 1, 4 * 2048 / 100),
        (True, 8191, 270, 4 * 8192 / 100),
        (True, 10, 2700, 4 * 2048 / 10),
    ],
)
def test_a_cpu_has_four_times_the_longest_step(
    tmp_path: Path, on_cpu: bool, context: int, megabytes: int, seconds: float
) -> None:
    """Which takes 10 ms a token, more with a larger model."""
    model = ServedModel(
        folder=tmp_path,
        adapted=("q_proj",),
        context_length=context,
        vocabulary=9,
        dtype="float32",
        on_cpu=on_cpu,
        token_bytes=64,
    )
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(megabytes * 1_000_000)
    settings = VllmSettings(max_loras=1, max_lora_rank=8, slots=1)
    assert patience(settings, model) == pytest.approx(seconds)
    assert patience(replace(settings, stuck_after=7), model) == 7


def test_the_engine_has_room_for_the_longest_sequence_and_the_largest_rank(tmp_path: Any) -> None:
    model = ServedModel(
        folder=tmp_path,
        adapted=("q_proj",),
        context_length=1000,
        vocabulary=9,
        dtype="float32",
        on_cpu=True,
        token_bytes=64,
    )
    options = engine_options(VllmSettings(max_loras=3, max_lora_rank=9, slots=5, cache_tokens=10), model)
    assert (options["max_model_len"], options["max_lora_rank"], options["max_loras"]) == (1001, 16, 3)
    assert options["max_num_seqs"] == 5
    assert options["kv_cache_memory_bytes"] == 64 * (1001 + 256)
    assert options["enforce_eager"] and options["logprobs_mode"] == "processed_logprobs"
    assert options["enable_lora"] and options["lora_target_modules"] == ["q_proj"]
    assert names_a_class(options["worker_extension_cls"])


def test_an_engine_for_all_weights_has_no_adapters_and_is_brought_what_reads_them(tmp_path: Any) -> None:
    model = ServedModel(
        folder=tmp_path,
        adapted=("q_proj",),
        context_length=10,
        vocabulary=9,
        dtype="float32",
        on_cpu=False,
        token_bytes=64,
    )
    options = engine_options(VllmSettings(max_loras=3, max_lora_rank=None, slots=5), model)
    assert not options["enable_lora"] and "max_loras" not in options
    source = names_a_class(options["worker_extension_cls"])
    assert f'"{options["weight_transfer_config"]["backend"]}"' in source


def names_a_class(name: str) -> str:
    """The source of the module, which only vLLM can import, that has a class of this name."""
    module, _, kind = name.rpartition(".")
    source = (Path(sparring.__file__).parent.parent / module.replace(".", "/")).with_suffix(".py").read_text()
    assert f"class {kind}:" in source
    return source


@pytest.mark.parametrize("on_cpu", [True, False])
def test_on_a_cpu_short_beginnings_are_cached_and_adapters_grouped(tmp_path: Any, *, on_cpu: bool) -> None:
    """On a GPU both are as vLLM has them."""
    model = ServedModel(
        folder=tmp_path,
        adapted=("q_proj",),
        context_length=10,
        vocabulary=9,
        dtype="float32",
        on_cpu=on_cpu,
        token_bytes=64,
    )
    options = engine_options(VllmSettings(max_loras=3, max_lora_rank=8, slots=5), model)
    assert options.get("block_size") == (32 if on_cpu else None)
    assert block_size(model) == (32 if on_cpu else 16)
    assert ("worker_extension_cls" in options) == on_cpu


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_loras": 0}, "max_loras=0: must be at least 1"),
    ({"slots": 0}, "slots=0"),
    ({"cache_tokens": 0}, "cache_tokens=0"),
    ({"max_lora_rank": 513}, r"lora.rank=513: vLLM takes up to 512"),
    ({"stuck_after": 0.0}, "stuck_after=0.0"),
    ({"start_within": 0.0}, "start_within=0.0"),
    ({"restarts": -1}, "restarts=-1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        VllmSettings(**({"max_loras": 1, "max_lora_rank": 8, "slots": 1} | settings))


def test_plain_adapters_and_all_weights_are_served() -> None:
    refuse_unserved(Lora())
    refuse_unserved(None)
    with pytest.raises(UnsupportedError, match="unembedding"):
        refuse_unserved(Lora(unembedding=True))


class AtOnce:
    """Settles where it stands."""

    def succeed(self, pending: PendingResult[Any], value: Any) -> None:
        pending.succeed(value)

    def fail(self, pending: PendingResult[Any], error: BaseException) -> None:
        pending.fail(error)


def ask(future: Future[Any], read: Any = str) -> tuple[Request[Any], list[int]]:
    done: list[int] = []
    return Request("sample", AtOnce(), future, read=read, done=lambda: done.append(1)), done


async def test_an_answer_is_read_and_a_failure_is_one_of_ours() -> None:
    good, bad, own, unreadable, closed = (Future[Any]() for _ in range(5))

    def refuse(answer: Any) -> Any:
        raise BackendError("cannot be read")

    asked = [ask(good), ask(bad), ask(own), ask(unreadable, refuse), ask(closed)]
    good.set_result(3)
    bad.set_exception(OSError("gone"))
    own.set_exception(SettingError("no"))
    unreadable.set_result(3)
    closed.cancel()
    assert await asked[0][0].pending == "3"
    for (request, _), kind, message in zip(
        asked[1:],
        (BackendError, SettingError, BackendError, BackendError),
        ("vLLM failed: OSError", "no", "cannot be read", "closed before it ended"),
        strict=True,
    ):
        with pytest.raises(SparringError, match=message) as raised:
            await request.pending
        assert type(raised.value) is kind
    assert [done for _, done in asked] == [[1]] * 5


async def test_a_cancelled_request_settles_nothing() -> None:
    future: Future[Any] = Future()
    request, done = ask(future)
    request.cancel()
    assert future.cancelled() and done == [1] and not request.pending.settled
