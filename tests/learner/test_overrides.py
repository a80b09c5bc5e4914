"""Fields set by name from text: what fits is taken, everything else is refused with what would fit."""

from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.agents import Lineup, Sampling
from sparring.backend import PPO, ImportanceSampling, Local, Lora
from sparring.environments import Seat, environment, generated
from sparring.errors import SettingError
from sparring.learner.advantages import GroupMean
from sparring.learner.overrides import override, settable
from sparring.learner.presets import grpo, rae
from sparring.learner.run import Episodes, Policy, Run


@environment
async def debate(
    task: int,
    pro: Seat,
    con: Seat,
    *,
    rounds: int = 2,
    mode: Literal["open", "closed"] = "open",
    hint: str | None = None,
) -> dict[Seat, float]:
    return {pro: 0.0, con: float(task + rounds)}


@dataclass(frozen=True)
class Question:
    text: str


def one() -> Run:
    tasks = [Question("a"), Question("b")]
    return Run(
        name="one",
        train=Episodes(debate, tasks),
        held_out=Episodes(debate(rounds=0), [3]),
        policies=Policy("m"),
        steps=3,
    )


def many() -> Run:
    seats = Lineup({"pro": "alice", "con": "bob"})
    return Run(
        name="many",
        train=[
            Episodes(debate, range(9), seats),
            Episodes(debate(mode="closed"), generated(lambda rng: rng.random()), seats),
        ],
        held_out={"now": Episodes(debate, [7], seats), "one shot": Episodes(debate(rounds=1), [7], seats)},
        policies={"alice": Policy("m"), "bob": Policy("m", grpo(loss=ImportanceSampling()))},
        steps=3,
    )


def reached(run: Run, name: str) -> Any:
    """What a dotted name leads to, found without the code under test."""
    value: Any = run
    for part in name.split("."):
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list | tuple):
            value = value[int(part)]
        elif part in ("rounds", "mode", "hint"):
            value = value.settings[part]
        else:
            value = getattr(value, part)
    return value


GOOD = [
    (one, "steps", "20", 20),
    (one, "name", "second", "second"),
    (one, "name", "7", "7"),
    (one, "policies.learning_rate", "3e-4", 3e-4),
    (one, "policies.learning_rate", "1", 1.0),
    (one, "policies.lora.rank", "16", 16),
    (one, "policies.sampling.max_tokens", "24", 24),
    (one, "policies.algorithm.loss.clip_high_threshold", "1.3", 1.3),
    (one, "policies.algorithm.advantages.deviation", "true", True),
    (one, "policies.model", "./models/mine", "./models/mine"),
    (one, "backend.threads", "2", 2),
    (one, "backend.threads", "none", None),
    (one, "backend.dtype", "float32", "float32"),
    (one, "deterministic", "True", True),
    (one, "deterministic", "false", False),
    (one, "folder", "/tmp/elsewhere", Path("/tmp/elsewhere")),
    (one, "train.environment.rounds", "5", 5),
    (one, "train.environment.mode", "closed", "closed"),
    (one, "train.environment.hint", "none", None),
    (one, "train.environment.hint", "be brief", "be brief"),
    (one, "held_out.environment.rounds", "-1", -1),
    (one, "held_out.greedy", "true", True),
    (many, "policies.alice.learning_rate", "2e-5", 2e-5),
    (many, "policies.bob.sampling.temperature", "0.7", 0.7),
    (many, "train.1.environment.rounds", "4", 4),
    (many, "train.1.tasks.seed", "9", 9),
    (many, "train.0.lineup.players.pro", "bob", "bob"),
    (many, "held_out.one shot.environment.rounds", "6", 6),
]


@pytest.mark.parametrize(("made", "name", "text", "value"), GOOD)
def test_a_field_takes_what_fits(made: Any, name: str, text: str, value: object) -> None:
    run = made()
    changed = override(run, [(name, text)])
    assert reached(changed, name) == value
    assert type(reached(changed, name)) is type(value)
    assert [place.name for place in settable(run)] == [place.name for place in settable(changed)]
    others = {place.name: place.value for place in settable(run) if place.name != name}
    assert {place.name: place.value for place in settable(changed) if place.name != name} == others


BAD = [
    (one, "step", "3", "--step: Run has no 'step'; did you mean --steps?"),
    (one, "group-size", "3", "did you mean --group_size?"),
    (one, "learning_rate", "1", "--learning_rate: Run has no 'learning_rate'; did you mean --policies.learning_rate?"),
    (
        one,
        "polices.learning_rate",
        "1",
        "--polices.learning_rate: Run has no 'polices'; did you mean --policies.learning_rate?",
    ),
    (one, "polices.learning_rte", "1", "did you mean --policies.learning_rate?"),
    (one, "policies.alice.learning_rate", "1", "--policies has no 'alice'; did you mean --policies.learning_rate?"),
    (one, "policies.lern", "1", "--policies has no 'lern'; it has model, algorithm,"),
    (one, "train.environment.round", "3", "did you mean --train.environment.rounds?"),
    (one, "train.environment.rng", "3", "--train.environment has no 'rng'; it has rounds, mode, hint"),
    (one, "steps.much", "3", "--steps has no 'much'; did you mean --steps?"),
    (one, "xyz", "1", "--xyz: Run has no 'xyz'; it has name, train,"),
    (one, "", "1", "Run has no ''"),
    (one, "policies.", "1", "--policies has no ''"),
    (
        one,
        "policies.algorithm.critic.learning_rate",
        "1",
        "there is no --policies.algorithm.critic, so that nothing of it can be set; give it one in the file, as in "
        "critic=Critic(...)",
    ),
    (
        one,
        "policies.algorithm.kl.target",
        "1",
        "there is no --policies.algorithm.kl, so that nothing of it can be set; ",
    ),
    (one, "max_refill.x", "1", "--max_refill.x: there is no --max_refill, so that nothing of it can be set"),
    (one, "policies.sampling.top_p", "0.9", "sampling.top_p=0.9: what is left out when a token is drawn has no prob"),
    (one, "policies.sampling.top_k", "5", "leave it at -1, and lower the temperature for less chance"),
    (one, "steps", "many", "--steps 'many': must be a whole number (it is 3)"),
    (one, "steps", "2.0", "--steps '2.0': must be a whole number"),
    (one, "steps", "", "--steps '': must be a whole number"),
    (one, "steps", "0", "steps=0: must be "),
    (one, "policies.learning_rate", "nan", "--policies.learning_rate 'nan': must be a number"),
    (one, "policies.learning_rate", "inf", "must be a number"),
    (one, "policies.learning_rate", "fast", "must be a number (it is 0.0001)"),
    (one, "policies.learning_rate", "-1", "learning_rate=-1.0: must be "),
    (one, "policies.lora.rank", "0", "lora.rank=0: must be "),
    (one, "deterministic", "1", "--deterministic '1': must be true or false (it is False)"),
    (one, "backend.dtype", "fp8", "--backend.dtype 'fp8': must be one of auto, bfloat16, float32 (it is 'auto')"),
    (one, "backend.threads", "two", "--backend.threads 'two': must be none or a whole number (it is None)"),
    (one, "folder", "", "--folder '': must be a path"),
    (one, "backend", "local", "it is a group of settings; name one of them: --backend.dtype, --backend.device"),
    (one, "policies.algorithm", "rae", "name one of them: --policies.algorithm.name"),
    (one, "train.tasks", "x", "--train.tasks 'x': a list cannot be written on the command line; set it in the file"),
    (one, "train.tasks.0.text", "x", "--train.tasks has no '0'; it has no settings"),
    (one, "train.environment.mode", "ajar", "must be one of open, closed (it is 'open')"),
    (many, "policies.learning_rate", "1", "did you mean --policies.alice.learning_rate?"),
    (many, "policies.alise.learning_rate", "1", "did you mean --policies.alice.learning_rate?"),
    (many, "train.environment.rounds", "1", "--train has no 'environment'; did you mean --train.0.environment.rounds?"),
    (many, "train.2.environment.rounds", "1", "--train has no '2'"),
    (many, "policies.bob.algorithm.loss.clip_high_threshold", "1", "--policies.bob.algorithm.loss has no"),
]


@pytest.mark.parametrize(("made", "name", "text", "message"), BAD)
def test_what_does_not_fit_is_refused_with_what_would(made: Any, name: str, text: str, message: str) -> None:
    with pytest.raises(SettingError) as refused:
        override(made(), [(name, text)])
    assert message in str(refused.value)


def test_fields_that_only_fit_together_are_set_together() -> None:
    run = Run(name="a", train=Episodes(debate, [1]), policies=Policy("m", rae()), steps=1, group_size=1)
    changed = override(run, [("policies.sampling.temperature", "0.5"), ("policies.sampling.max_tokens", "9")])
    assert reached(changed, "policies.sampling") == Sampling(temperature=0.5, max_tokens=9)

    @dataclass(frozen=True)
    class Range:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if not self.low < self.high:
                raise SettingError(f"low={self.low!r}: must be below high={self.high!r}")

    assert override(Range(), [("low", "5"), ("high", "6")]) == Range(5, 6)
    with pytest.raises(SettingError, match="low=5: must be below"):
        override(Range(), [("low", "5")])


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(SettingError, match=r"--steps is given twice: '1' and '1'"):
        override(one(), [("steps", "1"), ("seed", "2"), ("steps", "1")])


def test_without_overrides_a_run_is_equal_to_itself() -> None:
    run = one()
    assert override(run, []) == run


def test_tasks_are_never_listed_or_walked() -> None:
    assert [place.name for place in settable(one()) if "tasks" in place.name] == []
    assert [place.name for place in settable(many()) if "tasks" in place.name] == ["train.1.tasks.seed"]


@pytest.mark.parametrize("made", [one, many])
def test_every_listed_field_takes_its_own_value_back(made: Any) -> None:
    """The list of fields and the reader agree: a listed value, written as text, changes nothing."""
    run = made()
    for place in settable(run):
        again = override(run, [(place.name, str(place.value))])
        assert {one.name: one.value for one in settable(again)} == {one.name: one.value for one in settable(run)}


def test_every_plain_field_of_a_run_is_listed() -> None:
    """Seen from the other side: no number or text in the run's dataclasses is out of reach."""
    listed = {place.name for place in settable(one())}

    def below(value: Any, name: str) -> list[str]:
        if isinstance(value, bool | int | float | str | Path):
            return [name]
        if is_dataclass(value) and type(value) in (
            Run,
            Policy,
            Lora,
            Sampling,
            Local,
            PPO,
            GroupMean,
            type(grpo()),
            Episodes,
        ):
            return [leaf for item in fields(value) for leaf in below(getattr(value, item.name), f"{name}.{item.name}")]
        return []

    reachable = {leaf.removeprefix(".") for leaf in below(one(), "")}
    assert len(reachable) > 20
    assert reachable - listed == set()


@given(st.integers(1, 10**9))
def test_whole_numbers_survive(value: int) -> None:
    assert override(one(), [("steps", str(value))]).steps == value


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_numbers_survive_to_the_last_bit(value: float) -> None:
    assert reached(override(one(), [("policies.learning_rate", repr(value))]), "policies.learning_rate") == value


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_name_or_text_breaks_it(name: str, text: str) -> None:
    """Whatever is typed ends in a run or in one `SettingError`."""
    with suppress(SettingError):
        assert isinstance(override(one(), [(name, text)]), Run)


# -------------------------------------------------------------------------------------------------- a field of another object


def test_texts_set_fields_of_what_comes_instead() -> None:
    """All at once: neither the old group size with the new algorithm nor the other way round would do."""
    alone = replace(one(), group_size=1, policies=Policy("m", rae()))
    found = override(
        alone,
        [("group_size", "4"), ("policies.algorithm.advantages.deviation", "true")],
        instead={"policies": Policy("m", grpo())},
    )
    assert isinstance(found.policies, Policy)
    assert (found.group_size, found.policies.algorithm) == (4, grpo(deviation=True))
    assert override(alone, [("seed", "3")], instead={"group_size": 2, "policies": Policy("m", grpo())}).group_size == 2
    with pytest.raises(
        SettingError, match=r"--policies.algorithm.advantages.decay: --policies.algorithm.advantages has"
    ):
        override(alone, [("policies.algorithm.advantages.decay", "0.5")], instead={"policies": Policy("m", grpo())})
