"""examples/warm_start.py: what the script says is right, the fit learns it, and the run begins with what was learned."""

from dataclasses import replace
from pathlib import Path

import anyio

from sparring import Played, ScriptedModels, play
from sparring.backend.bytes_renderer import ByteRenderer
from sparring.learner import fit_async
from tests.examples.short import evaluations_of, example, shortened, steps_of, trained

warm_start = example("warm_start")


async def test_the_script_is_always_right() -> None:
    played: Played = warm_start.warm.train
    assert len(await played.items(ByteRenderer())) == 128
    (lineup,) = played.episodes.lineups
    finished = await play(warm_start.addition, warm_start.Question(3, 19), lineup)
    assert finished.rewards == {"solver": 1}
    assert finished.transcripts["solver"][-1] == ("solver", "3 + 19 = 22")


async def test_a_fit_then_a_run(tmp_path: Path) -> None:
    fit = replace(warm_start.warm, backend=ScriptedModels(), folder=tmp_path, evaluate_every=4)
    with anyio.fail_after(60):
        done = await fit_async(fit)
    assert done.steps == 2 * 8
    policy = replace(warm_start.run.policies, start=str(done.final))
    run = shortened(warm_start.run, lambda prompt, rng: f"= {rng.randint(0, 9)}", tmp_path, policies=policy)
    assert warm_start.run.policies.start == str(Path("runs") / fit.name / "final")
    events = await trained(run)
    assert len(steps_of(events)) == 2
    assert ("held-out", 0) in evaluations_of(events)
