"""`sparring export`."""

from pathlib import Path

from sparring.rollout import read_episodes
from tests.cli.command import sparring, write_run


def test_a_run_is_exported_and_read_back(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert sparring("train", "words.py", "--steps", 2, "--train.environment.need", "b", folder=tmp_path).returncode == 0
    done = sparring("export", "words.py", "all.jsonl", "--tokens", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    episodes = list(read_episodes(tmp_path / "all.jsonl"))
    assert done.stdout.splitlines() == [f"all.jsonl: {len(episodes)} episodes"]
    assert len(episodes) == 2 * 2 * 4 and all(one.whole for one in episodes)
    for episode in episodes:
        (writer,) = episode.conversations
        assert writer.messages[0].content == f"Say b and {episode.content['text']}.", (
            "as the run was started, not the file"
        )
        assert len(episode.trajectories()) == 1

    alone = sparring("export", "runs/letters", "alone.jsonl", folder=tmp_path)
    assert alone.returncode == 0
    assert alone.stdout.splitlines()[1].startswith(
        f"{len(episodes)} of them as the players' replies alone: name the run's file"
    )
    assert not any(one.whole for one in read_episodes(tmp_path / "alone.jsonl"))

    named = sparring("export", "runs/letters", "named.jsonl", "--run", "words.py", "--tokens", folder=tmp_path)
    assert named.returncode == 0
    assert (tmp_path / "named.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()

    again = sparring("export", "words.py", "all.jsonl", folder=tmp_path)
    assert again.returncode == 1
    assert again.stderr == "sparring export: file 'all.jsonl' is there already: name a new one\n"


def test_wrong_usage_is_said(tmp_path: Path) -> None:
    write_run(tmp_path)
    missing = sparring("export", "words.py", folder=tmp_path)
    assert missing.returncode == 2 and "OUT.jsonl" in missing.stderr
    nothing = sparring("export", "words.py", "out.jsonl", folder=tmp_path)
    assert nothing.returncode == 1 and "has no journal.db" in nothing.stderr
