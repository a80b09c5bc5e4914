"""Fits over the scripted backend: which steps are made, what an end in the middle changes (nothing), what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import anyio
import pytest

from sparring import DPO, KL, SFT, Adam, Best, Fit, Lines, Lora, Pairs, Policy, Run, ScriptedModels, grpo
from sparring.errors import RunChanged, SettingError, SparringError
from sparring.learner import fit_async, train_async
from sparring.learner.fitting import Fitted
from sparring.rollout import MemorySegments
from sparring.rollout.events import Opened
from tests.learner.moods import WELL, run_of, trained
from tests.learner.worlds import events_of


def texts(folder: Path, count: int = 20, *, twice: int = 0, name: str = "texts.jsonl") -> Lines:
    numbers = [*range(count), *range(twice)]
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text("".join(json.dumps({"prompt": f"{name} {n}", "completion": "a" * n}) + "\n" for n in numbers))
    return Lines(path)


def pairs(folder: Path, count: int = 8) -> Pairs:
    rows = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(count)]
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Pairs(path)


def fit_in(folder: Path, **settings: Any) -> Fit:
    """18 items in steps of 4: five steps an epoch, two epochs."""
    plain: dict[str, Any] = {"train": texts(folder)} if "train" not in settings else {}
    return Fit(
        **{
            "name": "fit",
            "model": "model",
            "epochs": 2,
            "batch_size": 4,
            "evaluate_every": 3,
            "backend": ScriptedModels(),
            "folder": folder,
            **plain,
            **settings,
        }
    )


async def made(fit: Fit) -> Fitted:
    with anyio.fail_after(20):
        return await fit_async(fit)


def lines_of(fit: Fit) -> list[dict[str, float]]:
    return [json.loads(line) for line in (fit.path / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> str:
    return (folder / "weights.json").read_text()


async def test_the_steps(tmp_path: Path) -> None:
    fit = fit_in(tmp_path)
    done = await made(fit)
    lines = lines_of(fit)
    assert [line["step"] for line in lines] == list(range(11))
    assert done == Fitted(final=tmp_path / "fit" / "final", steps=10, measured=lines[-1])
    assert [line["step"] for line in lines if "held_out/loss" in line] == [0, 3, 6, 9, 10]
    assert [line["learning_rate"] for line in lines[1:]] == pytest.approx([1e-4 * (1 - n / 10) for n in range(10)])
    said = json.loads((fit.path / "fit.json").read_text())
    assert (said["items"]["train"], said["items"]["held_out"]) == (18, 2)
    assert said["settings"]["objective"] == {"is": "SFT"}
    assert [int(one.name) for one in (fit.path / "checkpoints" / "fit").iterdir()] == [9, 10]
    # each epoch has every item once: the tokens of one are those of the other, in other steps
    tokens = [line["tokens"] for line in lines[1:]]
    assert sum(tokens[:5]) == sum(tokens[5:])
    assert tokens[:5] != tokens[5:]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
async def test_an_end_at_any_step_changes_nothing(tmp_path: Path, objective: str) -> None:
    def again(name: str) -> Fit:
        if objective == "sft":
            return fit_in(tmp_path / name)
        return fit_in(tmp_path / name, train=pairs(tmp_path / name, 20), objective=DPO())

    whole = again("whole")
    await made(whole)
    for stop in range(10):
        fit = again(f"{stop}")
        heard: list[float] = []

        def tell(line: Mapping[str, float], stop: int = stop, heard: list[float] = heard) -> None:
            heard.append(line["step"])
            if line["step"] == stop:
                raise KeyError("the process ends here")

        with pytest.raises(KeyError), anyio.fail_after(20):
            await fit_async(fit, tell=tell)
        await made(fit)
        assert lines_of(fit) == lines_of(whole), stop
        assert weights_of(fit.path / "final") == weights_of(whole.path / "final"), stop


async def test_a_line_that_a_crash_cut_off_is_none(tmp_path: Path) -> None:
    fit = fit_in(tmp_path)
    await made(fit)
    before = (fit.path / "metrics.jsonl").read_bytes()
    (fit.path / "metrics.jsonl").write_bytes(before[:-7])
    await made(fit)
    assert (fit.path / "metrics.jsonl").read_bytes() == before


async def test_the_same_item_is_never_on_both_sides(tmp_path: Path) -> None:
    """A share is held out of the distinct ones: what is there twice is apart twice."""
    shares = fit_in(tmp_path, train=texts(tmp_path, 10, twice=10), held_out=0.5)
    await made(shares)
    items = json.loads((shares.path / "fit.json").read_text())["items"]
    assert (items["train"], items["held_out"]) == (10, 10)
    other = texts(tmp_path, 3)
    with pytest.raises(
        SettingError, match=r"texts\.jsonl, line 1 is held out and trained on too, at .*texts\.jsonl, line 1"
    ):
        await made(
            fit_in(tmp_path, name="both", train=[other, texts(tmp_path, 2, name="more.jsonl")], held_out=[other])
        )
    with pytest.raises(SettingError, match="1 items are held out and none is left to train on"):
        await made(fit_in(tmp_path, name="none", train=texts(tmp_path, 1), held_out=0.5))


async def test_nothing_need_be_held_out(tmp_path: Path) -> None:
    fit = fit_in(tmp_path, held_out=0.0)
    await made(fit)
    assert not any(name.startswith("held_out") for line in lines_of(fit) for name in line)
    apart = fit_in(tmp_path, name="apart", held_out=texts(tmp_path, 3, name="apart.jsonl"))
    await made(apart)
    assert "held_out/loss" in lines_of(apart)[0]


async def test_preferences_begin_at_the_reference(tmp_path: Path) -> None:
    fit = fit_in(tmp_path, train=pairs(tmp_path, 20), objective=DPO(beta=0.3))
    await made(fit)
    first = lines_of(fit)[0]
    assert first == {
        "step": 0.0,
        "held_out/loss": pytest.approx(log(2)),
        "held_out/accuracy": 0.0,
        "held_out/margin": 0.0,
    }
    assert set(lines_of(fit)[1]) == {"step", "loss", "accuracy", "margin", "tokens", "gradient_norm", "learning_rate"}


async def test_another_fit_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    fit = fit_in(tmp_path)
    await made(fit)
    with pytest.raises(RunChanged, match=r"settings\.epochs = 2, now 3"):
        await made(replace(fit, epochs=3))
    texts(tmp_path, 20, twice=1)
    with pytest.raises(RunChanged, match=r"items\.train = 18, now 19; items\.sha256"):
        await made(fit)
    run = run_of(tmp_path, WELL, name="a-run")
    with anyio.fail_after(20):
        await train_async(run)
    with pytest.raises(RunChanged, match="is the folder of a run"):
        await made(fit_in(tmp_path, name="a-run"))


async def test_a_run_begins_with_what_was_learned(tmp_path: Path) -> None:
    fit = fit_in(tmp_path)
    done = await made(fit)

    def started(start: Path | None) -> Run:
        return run_of(tmp_path, WELL, policies=Policy("model", start=None if start is None else str(start)))

    store = MemorySegments()
    events = await trained(started(done.final), store)
    plain = await trained(started(None))
    assert [event for event in events if event == plain[-1]] == []
    opened = events_of(store)[0]
    assert isinstance(opened, Opened)
    assert set(opened.run["fingerprints"]) > {"start of policy"}
    (done.final / "weights.json").write_text(weights_of(fit.path / "checkpoints" / "fit" / "9"))
    with pytest.raises(RunChanged, match="start of policy"):
        await train_async(started(done.final), store=store)
    with pytest.raises(SparringError):
        await train_async(run_of(tmp_path, WELL, name="x", policies=Policy("model", start=str(tmp_path / "nothing"))))


async def test_a_fit_goes_on_from_another_and_learns_from_a_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, WELL)
    with anyio.fail_after(20):
        await train_async(run)
    start = str(run.path / "checkpoints" / "policy" / "3")
    fit = fit_in(tmp_path, train=Best(run.path, at_least=0.0, per_group=2), start=start)
    other = replace(fit, name="from nothing", start=None)
    assert (await made(fit)).measured.keys() == (await made(other)).measured.keys()
    assert weights_of(fit.path / "final") != weights_of(other.path / "final")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "a/b"}, "name='a/b': it names a folder"),
        ({"model": ""}, "model='': must be text"),
        ({"objective": "sft"}, r"objective='sft': must be SFT\(\) or DPO\(\)"),
        ({"epochs": 0}, "epochs=0: must be a whole number, at least 1"),
        ({"batch_size": True}, "batch_size=True"),
        ({"evaluate_every": 1.5}, r"evaluate_every=1\.5"),
        ({"learning_rate": 0}, "learning_rate=0: must be a finite number above 0"),
        ({"lr_schedule": "step"}, "lr_schedule='step'"),
        ({"adam": Adam(learning_rate=1e-2)}, r"adam\.learning_rate=0\.01: is not used"),
        ({"held_out": 1.0}, r"held_out=1\.0: a share of the items"),
        ({"held_out": "texts.jsonl"}, r"held_out='texts\.jsonl': must be a source"),
        ({"train": []}, r"train=\[\]: must be a source"),
        ({"train": Pairs("p.jsonl")}, r"train=Pairs.* with objective=SFT\(\): give it Lines, Played or Best"),
        ({"objective": DPO()}, r"train=Lines.* with objective=DPO.*: give it Pairs, of which one is preferred"),
        (
            {"objective": DPO(), "train": Pairs("p.jsonl"), "lora": Lora(dropout=0.1)},
            r"lora\.dropout=0\.1 with DPO.*set it to 0",
        ),
    ],
)
def test_fits_that_cannot_be(tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        fit_in(tmp_path, **settings)


def test_a_start_and_a_reference_that_would_be_without_it() -> None:
    with pytest.raises(SettingError, match=r"start='s' with KL.*name one: reference='m'"):
        Policy("m", replace(grpo(), kl=KL(coefficient=0.1)), start="s")
    assert Policy("m", replace(grpo(), kl=KL(coefficient=0.1, reference="m")), start="s").start == "s"
    with pytest.raises(SettingError, match="start='': must be None or text"):
        Policy("m", start="")


@pytest.mark.parametrize("wrong", [{"beta": True}, {"beta": "0.1"}, {"smoothing": True}, {"smoothing": None}])
def test_what_is_no_number(wrong: Any) -> None:
    with pytest.raises(SettingError, match=r"DPO\((beta|smoothing)=.*must be"):
        DPO(**wrong)


def test_defaults(tmp_path: Path) -> None:
    plain = Fit(name="a", model="m", train=texts(tmp_path))
    assert (plain.objective, plain.held_out_share, plain.held_out_sources, plain.steps(33)) == (SFT(), 0.1, (), 3)
