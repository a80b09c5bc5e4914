"""Does a backend keep its contract? Plain async functions that raise `CheckFailed` and say what they saw.

`check_backend` runs all of them on one model; each can be run by itself. What they ask is public (`Backend`, `TrainingClient`,
`SamplingClient`), so they fit a backend of one's own. A small random model will do; figures are those of invariant 5.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from re import findall
from typing import TypeVar

import anyio
import numpy as np

from sparring.arrays import F32, I32
from sparring.backend.check_likely import check_likely
from sparring.backend.checking import BF16, FP32, QUESTIONS, Bounds, insist, prompts_of, publish_trained, within
from sparring.backend.datum import Datum
from sparring.backend.losses import ImportanceSampling
from sparring.backend.sampling import SampledSequence, SamplingClient, SamplingParams
from sparring.backend.training import Backend, Lora, TrainingClient
from sparring.errors import CheckFailed, SettingError

T = TypeVar("T")

__all__ = [
    "BF16",
    "FP32",
    "QUESTIONS",
    "Bounds",
    "check_backend",
    "check_cancelled",
    "check_closing",
    "check_distribution",
    "check_ends",
    "check_inflight",
    "check_likely",
    "check_parity",
    "check_seeds",
    "check_turns",
    "check_versions",
]

_KEPT = ("AnyIO worker thread", "Trio thread")


async def check_backend(
    backend: Backend,
    model: str,
    *,
    lora: Lora | None = None,
    bounds: Bounds = FP32,
    tokens: int = 2000,
    busy: Callable[[], int] | None = None,
) -> None:
    """Every check on fresh adapters of `model` (rank 8 unless `lora` says otherwise). `tokens` are compared for parity; `busy`
    tells how many sequences the backend is drawing, for `check_cancelled`."""
    made = await backend.create_model(model, lora=lora or Lora(rank=8, alpha=16.0), seed=1)
    await check_parity(made, bounds=bounds, tokens=tokens)
    await check_distribution(made)
    await check_ends(made)
    await check_seeds(made, bounds=bounds)
    await check_likely(made, bounds=bounds)
    await check_versions(made, bounds=bounds, first=2)
    await check_turns(made, bounds=bounds, first=4)
    if "inflight" in backend.capabilities().kinds:
        await check_inflight(made, bounds=bounds, first=6)
    if busy is not None:
        await check_cancelled(made, busy)
    await made.unload()


async def check_parity(model: TrainingClient, *, bounds: Bounds = FP32, tokens: int = 2000, first: int = 0) -> None:
    """Publishes versions `first` and the next.

    What the sampler says of the tokens that it drew is what the trainer says of them, at the temperature that they were
    drawn at, for each of several versions while others are drawn from; and so for tokens that were only scored."""
    old, new = await publish_trained(model, first), await publish_trained(model, first + 1)
    count = tokens // (len(QUESTIONS) * 2 * 2 * 16) + 1
    found: list[tuple[I32, float, list[SampledSequence]]] = []

    async def draw(client: SamplingClient, prompt: I32, temperature: float) -> None:
        params = SamplingParams(max_tokens=16, temperature=temperature, seed=1)
        found.append((prompt, temperature, await client.sample(prompt, params, n=count)))

    async with anyio.create_task_group() as group:
        for prompt in prompts_of(model):
            for temperature in (1.0, 0.7):
                group.start_soon(draw, new, prompt, temperature)
                group.start_soon(old.sample, prompt, SamplingParams(max_tokens=8))
    drawn = [(prompt, t, sample) for prompt, t, samples in found for sample in samples]
    data = [Datum.completion(prompt, sample, advantage=0.0, temperature=t) for prompt, t, sample in drawn]
    output = await model.forward(data, ImportanceSampling())
    differences = [
        np.abs(logprobs[len(prompt) :] - sample.logprobs)
        for (prompt, _, sample), logprobs in zip(drawn, output.logprobs, strict=True)
    ]
    within("drawn and trained log-probs", differences, bounds)
    plain = [datum for datum in data if datum.temperature == 1.0][:4]
    scores = [(await new.logprobs(datum.tokens))[datum.mask] for datum in plain]
    wanted = await model.forward(plain, ImportanceSampling())
    pairs = zip(scores, wanted.logprobs, plain, strict=True)
    within("scored and trained log-probs", [np.abs(s - w[d.mask]) for s, w, d in pairs], bounds)
    await old.aclose()
    await new.aclose()


async def check_distribution(model: TrainingClient) -> None:
    """Greedy draws are certain and alike; `top_k` and `top_p` leave tokens out, and the others' log-probs make up for it."""
    client, prompt = await model.sampler(), prompts_of(model)[0]
    greedy = await client.sample(prompt, SamplingParams(max_tokens=4, temperature=0.0), n=3)
    insist(
        all(np.array_equal(sample.tokens, greedy[0].tokens) and not sample.logprobs.any() for sample in greedy),
        f"temperature=0 drew {[sample.tokens.tolist() for sample in greedy]} with log-probs {greedy[0].logprobs.tolist()}; "
        "it must draw the likeliest token, always, with log-prob 0",
    )
    (one,) = await client.sample(prompt, SamplingParams(max_tokens=4, top_k=1, seed=1))
    insist(
        np.array_equal(one.tokens, greedy[0].tokens) and float(np.abs(one.logprobs).max()) < 1e-6,
        f"top_k=1 drew {one.tokens.tolist()} with log-probs {one.logprobs.tolist()}; greedy {greedy[0].tokens.tolist()}",
    )
    for params, most in (
        (SamplingParams(max_tokens=1, top_k=3, temperature=1.5, seed=1), 3),
        (SamplingParams(max_tokens=1, top_p=0.5, seed=1), None),
    ):
        first = await client.sample(prompt, params, n=200)
        odds = {int(sample.tokens[0]): float(np.exp(np.float64(sample.logprobs[0]))) for sample in first}
        total = sum(odds.values())
        insist(most is None or len(odds) <= most, f"{params} drew {len(odds)} different tokens")
        insist(total <= 1 + 1e-3, f"{params}: the probabilities of the {len(odds)} tokens drawn sum to {total:.4f} > 1")
        insist(total >= 0.8, f"{params}: 200 draws saw tokens of {total:.4f} of the probability in all; 1 is expected")
    await client.aclose()


async def check_ends(model: TrainingClient) -> None:
    """A sequence ends at `max_tokens`, at a stop token or where its text holds a stop string; what ends it is part of it, and
    neither the end-of-turn token nor anything else ends one that was not told so."""
    client, prompt = await model.sampler(), prompts_of(model)[1]
    # What is in a cache is found by all that follow: in bfloat16, a prompt that is computed is not quite one that is found.
    await client.sample(prompt, SamplingParams(max_tokens=1, seed=3))
    (free,) = await client.sample(prompt, SamplingParams(max_tokens=24, seed=3))
    insist(
        (len(free.tokens), free.stop) == (24, "length"),
        f"max_tokens=24 without any stop ended {free.stop!r} after {len(free.tokens)} tokens",
    )
    for stop_ids in ((int(free.tokens[7]),), (int(free.tokens[11]), int(free.tokens[4]))):
        end = min(free.tokens.tolist().index(token) for token in stop_ids) + 1
        (ended,) = await client.sample(prompt, SamplingParams(max_tokens=24, seed=3, stop_ids=stop_ids))
        insist(
            ended.stop == "stop" and ended.tokens.tolist() == free.tokens[:end].tolist(),
            f"stop_ids={stop_ids!r}: ended {ended.stop!r} with {ended.tokens.tolist()} of {free.tokens.tolist()}",
        )
        insist(len(ended.logprobs) == end, f"{end} tokens came with {len(ended.logprobs)} log-probs")
    text = model.renderer.text
    strings = findall("[ -~]{2,4}", text(free.tokens))
    insist(
        bool(strings),
        f"24 tokens hold no two readable characters: {text(free.tokens)!r}; take a model that writes some",
    )
    string = strings[len(strings) // 2]
    end = next(i for i in range(1, 25) if string in text(free.tokens[:i]))
    (ended,) = await client.sample(prompt, SamplingParams(max_tokens=24, seed=3, stop=(string,)))
    insist(
        ended.stop == "stop" and ended.tokens.tolist() == free.tokens[:end].tolist(),
        f"stop={string!r}: ended {ended.stop!r} with the text {text(ended.tokens)!r}, not {text(free.tokens[:end])!r}",
    )
    await client.aclose()


async def check_seeds(model: TrainingClient, *, bounds: Bounds = FP32) -> None:
    """A seed decides what is drawn, each sequence of a request has a draw of its own, and without a seed draws differ."""
    client, prompt = await model.sampler(), prompts_of(model)[2]

    async def draw(seed: int | None, n: int = 3) -> list[SampledSequence]:
        return await client.sample(prompt, SamplingParams(max_tokens=12, seed=seed), n=n)

    first, again, fewer = await draw(5), await draw(5), await draw(5, n=2)
    for one, other, name in ((first, again, "the same"), (first[:2], fewer, "a smaller n")):
        same = all(np.array_equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))
        insist(same, f"seed=5 drew other tokens with {name} request")
        within(
            "log-probs of one seed", [np.abs(a.logprobs - b.logprobs) for a, b in zip(one, other, strict=True)], bounds
        )
    others = [*first, *await draw(6), *await draw(None), *await draw(None)]
    insist(len({tuple(sample.tokens.tolist()) for sample in others}) == 12, "sequences of different seeds are alike")
    await client.aclose()


async def check_versions(model: TrainingClient, *, bounds: Bounds = FP32, first: int = 0) -> None:
    """Publishes versions `first` and the next.

    Versions never go back; each token is stamped with its version; a snapshot stays as it is while training goes on."""
    old = await publish_trained(model, first)
    prompt, params = prompts_of(model)[3], SamplingParams(max_tokens=12, seed=7)
    before = await old.sample(prompt, params, n=2)
    during: list[list[SampledSequence]] = []
    published: list[SamplingClient] = []

    async def sample() -> None:
        during.append(await old.sample(prompt, params, n=2))

    async with anyio.create_task_group() as group:
        group.start_soon(sample)
        published.append(await publish_trained(model, first + 1))
    (new,) = published
    during.append(await old.sample(prompt, params, n=2))
    for later in during:
        for one, other in zip(before, later, strict=True):
            insist(
                np.array_equal(one.tokens, other.tokens) and one.versions == other.versions,
                f"version {old.version} draws other tokens since {new.version} was published: a snapshot must not change",
            )
            within("log-probs of a snapshot before and after", [np.abs(one.logprobs - other.logprobs)], bounds)
    fresh = await new.sample(prompt, params, n=2)
    for client, samples in ((old, before), (new, fresh)):
        stamped = {sample.versions for sample in samples}
        insist(stamped == {((client.version, 12),)}, f"version {client.version} stamped its tokens {stamped!r}")
    tokens = np.concatenate([prompt, before[0].tokens])
    moved = float(np.abs((await old.logprobs(tokens) - await new.logprobs(tokens))[1:]).max())
    insist(
        moved > 1e-3, f"versions {old.version} and {new.version} have the same log-probs: the newer is not the newer"
    )
    for version in (new.version, old.version):
        try:
            await model.publish(version)
        except SettingError:
            continue
        raise CheckFailed(f"publish({version}) after {new.version} was not refused with a SettingError")
    await old.aclose()
    await new.aclose()


async def check_turns(model: TrainingClient, *, bounds: Bounds = FP32, first: int = 0) -> None:
    """Publishes versions `first` and the next.

    A conversation grows turn by turn, and what one version draws in it another continues too: whatever a sampler keeps of
    earlier turns, log-probs are those of its own version after the whole context."""
    old, new = await publish_trained(model, first), await publish_trained(model, first + 1)
    start, *more = prompts_of(model)
    context, params = start, SamplingParams(max_tokens=32, seed=2)
    differences: list[F32] = []
    for message in more:
        for client in (old, new, old):
            (sample,) = await client.sample(context, params)
            whole = np.concatenate([context, sample.tokens])
            differences.append(np.abs((await client.logprobs(whole))[len(context) :] - sample.logprobs))
        context = np.concatenate([whole, message[:16]])
    within("drawn and scored log-probs of a conversation", differences, bounds)
    await old.aclose()
    await new.aclose()


async def check_inflight(model: TrainingClient, *, bounds: Bounds = FP32, first: int = 0) -> None:
    """Publishes versions from `first` on, at most twenty.

    A client in flight goes on with each version in the middle of sequences, never back, and starts nothing with older weights
    once a version is published. Stamps cover the tokens, and log-probs are those of the version that is stamped, after all that
    came before. A snapshot stays as it is meanwhile."""
    clients = {first: await publish_trained(model, first)}
    inflight = await model.sampler("inflight")
    insist(inflight.version == first, f"in flight has version {inflight.version}; {first} is the newest")
    prompt, params = prompts_of(model)[3], SamplingParams(max_tokens=12, seed=7)
    (before,) = await clients[first].sample(prompt, params)
    found: list[SampledSequence] = []
    asked: list[tuple[int, tuple[tuple[int, int], ...], int]] = []

    async def sample_long() -> None:
        most = min(96, model.info.context_length - len(prompt))
        found.extend(await inflight.sample(prompt, SamplingParams(max_tokens=most), n=4))

    while not any(len(sample.versions) > 1 for sample in found):
        insist(len(clients) < 20, f"no sequence in flight went on with any of {len(clients) - 1} versions")
        async with anyio.create_task_group() as group:
            group.start_soon(sample_long)
            await inflight.sample(
                prompt, SamplingParams(max_tokens=1)
            )  # once this has ended, the long ones are under way
            for _ in range(2):
                version = max(clients) + 1
                clients[version] = await publish_trained(model, version)
                (after,) = await inflight.sample(prompt, params)
                asked.append((version, after.versions, inflight.version))
        for version, stamps, says in asked:
            insist(
                stamps == ((version, 12),) and says == version,
                f"asked after version {version} was published, in flight stamped {stamps!r} and says it has version {says}",
            )
    for sample in found:
        _check_stamps(sample, first, max(clients))
    within("log-probs in flight and of the stamped versions", await _by_version(clients, prompt, found), bounds)
    (still,) = await clients[first].sample(prompt, params)
    insist(
        np.array_equal(before.tokens, still.tokens) and before.versions == still.versions,
        f"version {first} draws other tokens since others were followed: a snapshot must not change",
    )
    for client in (inflight, *clients.values()):
        await client.aclose()


def _check_stamps(sample: SampledSequence, first: int, last: int) -> None:
    versions = [version for version, _ in sample.versions]
    insist(
        versions == sorted(set(versions)) and first <= versions[0] and versions[-1] <= last,
        f"stamped {sample.versions!r}: versions go on from one to a newer one, between {first} and {last}",
    )
    counts = [count for _, count in sample.versions]
    insist(
        min(counts) > 0 and sum(counts) == len(sample.tokens),
        f"stamps {sample.versions!r} do not cover {len(sample.tokens)} tokens",
    )


async def _by_version(
    clients: Mapping[int, SamplingClient], prompt: I32, samples: Sequence[SampledSequence]
) -> list[F32]:
    """For each token, by how much its log-prob differs from that of the version that it is stamped with."""
    differences: list[F32] = []
    for sample in samples:
        tokens, start = np.concatenate([prompt, sample.tokens]), 0
        for version, count in sample.versions:
            wanted = (await clients[version].logprobs(tokens))[len(prompt) + start :][:count]
            differences.append(np.abs(wanted - sample.logprobs[start : start + count]))
            start += count
    return differences


async def check_cancelled(model: TrainingClient, busy: Callable[[], int]) -> None:
    """A request whose caller was cancelled is drawn no further: once a later one has ended, nothing of it is left."""
    client, prompt = await model.sampler(), prompts_of(model)[0]
    most = model.info.context_length - len(prompt)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(client.sample, prompt, SamplingParams(max_tokens=most), 8)
        await client.sample(prompt, SamplingParams(max_tokens=2))
        group.cancel_scope.cancel()
    await client.sample(prompt, SamplingParams(max_tokens=2))
    insist(busy() == 0, f"{busy()} sequences are still drawn after their callers were cancelled")
    await client.aclose()


async def check_closing(use: Callable[[], Awaitable[None]], *, folders: Sequence[Path] = ()) -> None:
    """After `use`, which opens a backend and leaves it again, there is no task, thread, process or file in `folders` that was
    not there before. Workers that anyio and multiprocessing keep for later do not count."""
    before = _there(folders)
    await use()
    left = sorted(_there(folders) - before)
    insist(not left, f"the backend left {', '.join(left)}")


def _there(folders: Sequence[Path]) -> set[str]:
    tasks = {f"task {task.id} {task.name}" for task in anyio.get_running_tasks()}
    threads = {f"thread {t.ident} {t.name}" for t in threading.enumerate() if not t.name.startswith(_KEPT)}
    files = {f"file {path}" for folder in folders for path in folder.iterdir()}
    return tasks | threads | files | {f"process {text}" for text in _children()}


def _children() -> set[str]:
    """Number and command of the processes that this one started, where the system tells (Linux)."""
    found: set[str] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        for number in listed.read_text().split():
            command = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "multiprocessing.resource_tracker" not in command:
                found.add(f"{number} {command}")
    return found
