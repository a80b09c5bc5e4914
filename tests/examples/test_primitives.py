"""examples/primitives.py on the real model: every step trains, and what it saved goes on as it was."""

from pathlib import Path

import pytest

from sparring.backend.local import LocalBackend
from tests.examples.short import example


@pytest.mark.model
@pytest.mark.slow
async def test_the_primitives_train_and_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    primitives = example("primitives")
    await primitives.main(steps=2, state=str(tmp_path / "final"))
    *steps, saved = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in steps] == ["0", "1"]
    assert all("'ratio_sum'" in line and "'gradient_norm'" in line for line in steps)
    assert saved == f"saved {tmp_path / 'final'}"
    async with LocalBackend() as backend:
        model = await backend.create_from_state(str(tmp_path / "final"))
        assert (await model.sampler()).version == 2
