"""What the local backend does on a CUDA device: how fast, how exactly, and that it is the same as on a CPU.

    python -m benchmarks.cuda [--model NAME] [--architectures NAME ...] [--parts NAME ...] [--rounds 2] [--device cuda]

Training is measured on random models of larger architectures (the demo's is so small that a device waits for Python); `mfu` is
the part of the time that the products which a step cannot avoid would take at the rate of one large product. Parts:

    gradients     in fp32, against those on a CPU
    fp32, parity  log-probs of drawn tokens, by the sampler and by the trainer
    drawing       64 sequences, against transformers' `generate`
    grpo          a whole step
    steps         of many prompts, in micro-batches that the backend chooses, of each architecture; and of the first one alone:
    training      as in `benchmarks.backend`, in micro-batches of as many tokens as the plain loop has room for
    memory        of a step, on top of weights
    adapters      two in one pass

`--device cpu` with `--architectures none` and small sizes runs every part without a device, to test this program.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks._device import Measured, Watch, matrix_rate
from benchmarks._drawing import Generate, draw
from benchmarks._grpo_step import our_step as grpo_step
from benchmarks._random_models import ARCHITECTURES, write_random
from benchmarks._rows import Row, Settings, arguments, at_least, at_most, report
from benchmarks._training import RANK, WAYS, Shape, batch, shape_of, steps, vocabulary_of
from benchmarks.backend import measure_adapters, needed
from sparring.backend import Adam, Datum, ImportanceSampling, Lora
from sparring.backend.local import LocalBackend
from sparring.backend.local.dtype import Dtype
from sparring.backend.local.model import TorchModel
from sparring.backend.models import resolve_model
from sparring.backend.sampling import SamplingParams

PARITY = {"bfloat16": (0.05, 0.5), "float32": (1e-5, 1e-4)}
MFU = 0.40
GRADIENTS = 1e-3
"""Relative. On this model and data a CPU's own fp32 gradient is 3e-4 from the one in float64."""
PROMPT_TOKENS, PER_PROMPT = 45, 8
QUESTIONS = ("What is 7 + 5?", "Name three rivers.", "Why is the sky blue?", "Write a story about a fox.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSettings(Settings):
    """And how large: shapes of the training table, prompts of its larger steps, sequences and tokens that are drawn, tokens
    that parity is measured on, and the size of the product whose rate is the measure."""

    architectures: list[str]
    parts: list[str]
    shapes: list[str]
    prompts: int
    sequences: int
    drawn: int
    parity: int
    product: int


Part = Callable[[CudaSettings], Awaitable[list[Row]]]


async def training(settings: CudaSettings) -> list[Row]:
    """The table of `benchmarks.backend`, one way after the other."""
    shapes, rate = [shape_of(name) for name in settings.shapes], _rate(settings)
    found: list[list[Measured]] = []
    for way in WAYS:
        async with steps(way, settings, shapes[0].token_budget(settings.device)) as step:
            found.append([await timed(step, shape, settings.rounds) for shape in shapes])
        _free(settings.device)
    rows = [Row(name="a large product, TFLOP/s", figure=f"{rate / 1e12:.4g}")]
    for shape, plain, apart, shared in zip(shapes, *found, strict=True):
        rows += _table(_what(settings), shape, {"plain": plain, "apart": apart, "shared": shared})
        least = needed(_skeleton(settings), shape) / rate
        rows.append(Row(name=f"{_what(settings)} {shape.name} mfu", figure=f"{least / shared.seconds:.3f}"))
    return rows


async def more_prompts(settings: CudaSettings) -> list[Row]:
    """Of more prompts, in micro-batches that the backend chooses."""
    rows, best, rate = list[Row](), 0.0, _rate(settings)
    async with steps("shared", settings, None) as step:
        for name in settings.shapes:
            shape = replace(shape_of(name), prompts=settings.prompts)
            one = await timed(step, shape, settings.rounds)
            mfu = needed(_skeleton(settings), shape) / rate / one.seconds
            best = max(best, mfu)
            figure = f"{_speed(shape, one)}, mfu {mfu:.3f}"
            rows.append(Row(name=f"{_what(settings)} {shape.name}, {shape.prompts} prompts, tok/s", figure=figure))
    return [*rows, at_least(f"{_what(settings)} best mfu", best, MFU)]


def _what(settings: CudaSettings) -> str:
    return Path(settings.model).name


def _rate(settings: CudaSettings) -> float:
    return matrix_rate(getattr(torch, settings.dtype), settings.device, (settings.product,) * 3)


def _skeleton(settings: CudaSettings) -> nn.Module:
    """The model without its numbers."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(str(resolve_model(settings.model)))
        )
    return model


def _table(what: str, shape: Shape, ways: dict[str, Measured]) -> list[Row]:
    plain, shared = ways["plain"], ways["shared"]
    speeds = [Row(name=f"{what} {shape.name} {way}, tok/s", figure=_speed(shape, one)) for way, one in ways.items()]
    gain = at_least(f"{what} {shape.name} shared / plain", plain.seconds / shared.seconds, shape.target)
    if not plain.mib:
        return [*speeds, gain]
    return [*speeds, gain, at_most(f"{what} {shape.name} memory, shared / plain", shared.mib / plain.mib, 0.5)]


def _speed(shape: Shape, one: Measured) -> str:
    return f"{shape.tokens / one.seconds:.0f}" + (f" ({one.mib:.0f} MiB)" if one.mib else "")


async def memory(settings: CudaSettings) -> list[Row]:
    """Of a step with four times as many groups, where either is more than a micro-batch."""
    shape = shape_of(settings.shapes[-1])
    few, many = (replace(shape, prompts=count) for count in (settings.prompts, 4 * settings.prompts))
    async with steps("shared", settings, shape.token_budget(settings.device)) as step:
        one, other = [(await step(each)).mib for each in (few, many)]
    if not one:
        return [Row(name="memory", figure="not measured on a CPU here")]
    return [at_most(f"{_what(settings)} {shape.name} memory, {many.prompts} groups / {few.prompts}", other / one, 1.1)]


async def adapters(settings: CudaSettings) -> list[Row]:
    """Two in one pass, against one, and one after the other."""
    return await measure_adapters(settings, replace(shape_of(settings.shapes[0]), prompts=settings.prompts))


async def parity(settings: CudaSettings, dtype: Dtype | None = None) -> list[Row]:
    """Log-probs of drawn tokens by the sampler, against the trainer's, after a few optimizer steps; TF32 is off, as torch has
    it."""
    assert not torch.backends.cuda.matmul.allow_tf32
    dtype = settings.dtype if dtype is None else dtype
    async with LocalBackend(dtype=dtype, device=settings.device, threads=settings.threads) as backend:
        model = await _trained(backend, settings)
        client = await model.sampler()
        data: list[Datum] = []
        prompts = [model.renderer.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
        rounds = -(-settings.parity // (len(prompts) * PER_PROMPT * settings.drawn))
        for seed in range(rounds):
            for prompt in prompts:
                params = SamplingParams(max_tokens=settings.drawn, seed=seed)
                for sample in await client.sample(prompt, params, n=PER_PROMPT):
                    data.append(Datum.completion(prompt, sample, advantage=1.0))
        output = await model.forward(data, ImportanceSampling())
        (whole,) = await client.sample(prompts[0], SamplingParams(max_tokens=settings.drawn, seed=0))
        full = await client.logprobs(np.concatenate([prompts[0], whole.tokens]))
    found = [np.abs(lp - datum.logprobs)[datum.mask] for lp, datum in zip(output.logprobs, data, strict=True)]
    difference = np.concatenate(found)
    mean, most = PARITY[dtype]
    again = np.abs(full[len(prompts[0]) :] - whole.logprobs)
    return [
        at_most(f"{dtype} parity, mean of {len(difference)}", float(difference.mean()), mean),
        at_most(f"{dtype} parity, max", float(difference.max()), most),
        at_most(f"{dtype} parity with a full pass, max", float(again.max()), most),
    ]


async def gradients(settings: CudaSettings) -> list[Row]:
    """In fp32, of an adapter that was trained on a CPU, saved and loaded on the device."""
    shape = Shape(prompt=12, completion=8)
    data = batch(vocabulary_of(resolve_model(settings.model)), shape, shared=True)
    found: list[Tensor] = []
    logprobs: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        for device in ("cpu", settings.device):
            state = str(Path(folder) / "state")
            async with LocalBackend(dtype="float32", device=device, threads=settings.threads) as backend:
                if not found:
                    await (await _trained(backend, settings)).save_state(state)
                model = await backend.create_from_state(state)
                output = await model.forward_backward(data, ImportanceSampling())
                logprobs.append(np.concatenate(output.logprobs))
                found.append(model._trainer.adapter.grad.cpu())
    want, got = found
    return [
        at_most("gradients in fp32, against a CPU", float((got - want).norm() / want.norm()), GRADIENTS),
        at_most("log-probs in fp32, against a CPU, max", float(np.abs(logprobs[1] - logprobs[0]).max()), 1e-3),
    ]


async def drawing(settings: CudaSettings) -> list[Row]:
    """64 sequences at once, through an adapter, and by `generate` of the base alone."""
    random = np.random.default_rng(0)
    folder = resolve_model(settings.model)
    vocabulary, tokens = vocabulary_of(folder), settings.sequences * settings.drawn
    prompts = [random.integers(3, vocabulary, PROMPT_TOKENS).astype(np.int32) for _ in range(settings.sequences)]
    params = [SamplingParams(max_tokens=settings.drawn)] * settings.sequences
    generate = Generate(folder, settings.dtype, settings.device)
    async with LocalBackend(dtype=settings.dtype, device=settings.device, threads=settings.threads) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        client = await model.sampler()
        seconds: dict[str, list[float]] = {"generate": [], "sparring": []}
        for _ in range(settings.rounds + 1):
            watch = Watch(settings.device)
            generate.run(prompts, settings.drawn)
            seconds["generate"].append(watch.measured().seconds)
            watch = Watch(settings.device)
            await draw(client, prompts, params)
            seconds["sparring"].append(watch.measured().seconds)
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return [
        *(Row(name=f"drawing, {name}, tok/s", figure=f"{tokens / one:.0f}") for name, one in middle.items()),
        Row(name="drawing, sparring / generate", figure=f"{middle['generate'] / middle['sparring']:.2f}"),
    ]


async def grpo(settings: CudaSettings) -> list[Row]:
    """Draw, train, take over the weights: 64 completions."""
    found: list[float] = []
    async with LocalBackend(dtype=settings.dtype, device=settings.device, threads=settings.threads) as backend:
        model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
        for _ in range(settings.rounds + 1):
            watch = Watch(settings.device)
            await grpo_step(model, settings.drawn)
            found.append(watch.measured().seconds)
    return [Row(name=f"one GRPO step, {settings.drawn} tokens, s", figure=f"{statistics.median(found[1:]):.2f}")]


async def timed(step: Callable[[Shape], Awaitable[Measured]], shape: Shape, rounds: int) -> Measured:
    """Medians; one step before them warms up."""
    found = [await step(shape) for _ in range(rounds + 1)][1:]
    return Measured(seconds=statistics.median(one.seconds for one in found), mib=max(one.mib for one in found))


async def _trained(backend: LocalBackend, settings: CudaSettings) -> TorchModel:
    """After a few steps on random data: a fresh adapter adds nothing."""
    model = await backend.create_model(settings.model, lora=Lora(rank=RANK, alpha=RANK))
    data = batch(vocabulary_of(resolve_model(settings.model)), Shape(prompt=12, completion=8), shared=True)
    for _ in range(3):
        await model.forward_backward(data, ImportanceSampling())
        await model.optim_step(Adam(learning_rate=1e-3))
    return model


async def guarded(name: str, part: Part, settings: CudaSettings) -> list[Row]:
    """The part's rows, or one that says what it failed with; and how long it took, on the error stream."""
    start = time.perf_counter()
    try:
        rows = await part(settings)
    except Exception as error:  # noqa: BLE001 - a device is at hand for minutes: a part that fails is a row, the others go on
        traceback.print_exc()
        said = (str(error).splitlines() or [""])[0][:120]
        rows = [Row(name=name, figure=f"{type(error).__name__}: {said}", target="no error", met=False)]
    _free(settings.device)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    for row in rows:
        print(f"    {row.name}: {row.figure} {row.target}", file=sys.stderr, flush=True)
    return rows


def _free(device: str) -> None:
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()


async def main(settings: CudaSettings) -> list[Row]:
    """The parts that are wanted: what is exact first, then what is fast; training of each architecture in turn."""
    torch.set_num_threads(settings.threads)
    rows: list[Row] = []
    for name, part in ON_THE_MODEL.items():
        if name in settings.parts:
            rows += await guarded(name, part, settings)
    for number, architecture in enumerate(settings.architectures):
        wanted = [name for name in ON_ARCHITECTURES if name in settings.parts and (number == 0 or name == "steps")]
        with tempfile.TemporaryDirectory() as folder:
            given = settings
            if architecture != "none" and wanted:
                given = replace(settings, model=str(Path(folder) / architecture))
                rows += await guarded(f"{architecture}, written", partial(_write, tokenizer=settings.model), given)
            for name in wanted:
                rows += await guarded(f"{architecture}, {name}", ON_ARCHITECTURES[name], given)
    return rows


async def _write(settings: CudaSettings, *, tokenizer: str) -> list[Row]:
    folder = Path(settings.model)
    write_random(folder, dtype=settings.dtype, device=settings.device, tokenizer=tokenizer)
    return []


ON_THE_MODEL: Mapping[str, Part] = {
    "gradients": gradients,
    "fp32": partial(parity, dtype="float32"),
    "parity": parity,
    "drawing": drawing,
    "grpo": grpo,
}
ON_ARCHITECTURES: Mapping[str, Part] = {
    "steps": more_prompts,
    "training": training,
    "memory": memory,
    "adapters": adapters,
}
"""The steps are measured of every architecture, the others of the first alone."""


def _settings() -> CudaSettings:
    parser = arguments(__doc__)
    parser.set_defaults(device="cuda")
    known = list(ARCHITECTURES)
    parser.add_argument("--architectures", nargs="+", default=[known[0], known[-1]], choices=[*known, "none"])
    parts = [*ON_THE_MODEL, *ON_ARCHITECTURES]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--shapes", nargs="+", default=["45/30", "400/60", "20/300"])
    for name, default in (
        ("prompts", 32),
        ("sequences", 64),
        ("drawn", 64),
        ("parity", 2000),
        ("product", 8192),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    return CudaSettings(**vars(parser.parse_args()))


if __name__ == "__main__":
    chosen = _settings()
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"no CUDA device: torch {torch.__version__} sees none")
    title = f"{chosen.dtype}, {chosen.model}, training on {', '.join(chosen.architectures)}"
    sys.exit(0 if report(title, anyio.run(main, chosen), chosen.device) else 1)
