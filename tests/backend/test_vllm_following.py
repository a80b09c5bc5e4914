"""A model that is followed in scripted engines: when it goes on, what its tokens are stamped with, what dies in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.backend.sampling import SampledSequence
from sparring.backend.vllm.files import WeightsFile
from sparring.backend.vllm.following import Followed
from sparring.errors import BackendError
from tests.backend.scripted_engine import file
from tests.backend.test_vllm_served import FILES, PARAMS, Told, probe, scripted, served, settle

ADAPTERS = pytest.mark.parametrize("rank", [8, None])


@ADAPTERS
def test_each_version_goes_to_every_engine_before_the_model_counts_as_having_it(
    tmp_path: Path, rank: int | None
) -> None:
    """So the version that a client tells is the oldest that a token may be started with, wherever."""
    engines = [scripted(), scripted(), scripted()]
    seen: list[tuple[tuple[int, int], ...]] = []
    with served(tmp_path, *engines, rank=rank) as sampler:
        source = sampler.follow(sampler.install(FILES, probe(), version=3))
        client = sampler.open(source, release=lambda: None)
        assert [engine.followed[source.number].version for engine in engines] == [3] * 3
        assert client.version == 3

        def looks(sample: SampledSequence) -> None:
            assert client.version == 3, "not before all have it"
            seen.append(sample.versions)

        sent = sampler.install(FILES, probe(looks), version=4, source=source)
        assert seen[-3:] == [((4, 2),)] * 3, "after each publication every engine draws with what follows"
        assert len(seen) == (6 if rank else 3), "and before it with the version by itself, where it can be there beside"
        assert source.now == sent and client.version == 4
        assert [engine.followed[source.number] for engine in engines] == [sent] * 3


def test_one_that_stays_behind_is_found_by_its_stamp(tmp_path: Path) -> None:
    with served(tmp_path, scripted(stays=3), rank=8) as sampler:
        source = sampler.follow(sampler.install(FILES, probe(), version=3))
        with pytest.raises(BackendError, match=r"stamped .*3, 2.* what it drew with version 4"):
            sampler.install(FILES, probe(), version=4, source=source)


def test_nothing_is_drawn_any_more_by_what_followed_a_version_that_drifted(tmp_path: Path) -> None:
    """Neither what is asked for later, nor what was under way."""
    drawn, told = [0], Told()

    def second_drifts(sample: SampledSequence) -> None:
        drawn[0] += 1
        if drawn[0] == 2:
            raise BackendError("sampler and trainer drifted apart")

    (engine,) = engines = [scripted(waits=9)]
    with served(tmp_path, *engines, rank=8, told=told) as sampler:
        source = sampler.follow(sampler.install(FILES, probe(), version=3))
        sampler.request([9, 9], PARAMS, 1, source=source)
        with pytest.raises(BackendError, match="drifted apart"):
            sampler.install(FILES, probe(second_drifts), version=4, source=source)
        assert source.now.version == 3
        with pytest.raises(BackendError, match="is drawn no more: sampler and trainer drifted apart"):
            sampler.request([1], PARAMS, 1, source=source)
        sampler.replicas.threads[0].submit(engine.go_on).result(60)
        settle(sampler)
        assert told.values == [] and len(told.errors) == 1 and "is drawn no more" in str(told.errors[0])


def test_the_files_of_what_is_followed_stay_and_those_before_go(tmp_path: Path) -> None:
    with served(tmp_path, scripted(hangs=9), scripted(hangs=9), scripted(hangs=9), rank=8) as sampler:
        first = sampler.install(FILES, probe(), version=0)
        source = sampler.follow(first)
        sampler.retire(first)
        settle(sampler)
        assert first.folder.is_dir(), "an engine that is started anew begins with it"
        second = sampler.install(FILES, probe(), version=1, source=source)
        settle(sampler)
        assert not first.folder.exists() and second.folder.is_dir()
        sampler.retire(second)
        under_way = sampler.request([9, 9], PARAMS, 1, source=source)
        sampler.retire(source)
        settle(sampler)
        assert second.folder.is_dir(), "a request still draws with it"
        under_way.cancel()
        settle(sampler)
        settle(sampler)
        assert not second.folder.exists()
        assert (sampler.statistics().versions, sampler.statistics().requests) == (0, 0)


def test_an_engine_that_is_started_anew_goes_on_with_the_newest_and_never_goes_back(tmp_path: Path) -> None:
    """The first dies under a request, the second while it is given a version, and then the request is asked again too."""
    first, second, third = engines = [scripted(dies=7), scripted(dies_of=2), scripted()]
    told = Told()
    with served(tmp_path, *engines, rank=8, replicas=1, told=told) as sampler:
        source = sampler.follow(sampler.install(FILES, probe(), version=0))
        sampler.install(FILES, probe(), version=1, source=source)
        sampler.request([7], PARAMS, 1, source=source)
        settle(sampler)
        assert first.dead and [v.version for v in second.moves] == [1], "it begins with the newest"
        (drawn,) = told.values.pop()
        assert drawn.versions == ((1, 2),)
        newest = sampler.install(FILES, probe(), version=2, source=source)
        assert second.dead and source.now == newest and third.moves == [newest]
        sampler.request([7], PARAMS, 1, source=source)
        settle(sampler)
        (drawn,) = told.values.pop()
        assert drawn.versions == ((2, 2),) and third.moves == [newest] and told.errors == []


def test_paths_change_with_what_an_engine_has(tmp_path: Path) -> None:
    source = Followed(name="f", number=9, folder=tmp_path, whole=False, now=file(0))
    for engine, version in (("a", "v0"), ("b", "v0"), ("a", "v1"), ("a", "v2")):
        (tmp_path / version).mkdir(exist_ok=True)
        source.point(engine, WeightsFile(name=version, number=1, version=0, folder=tmp_path / version))
    assert source.link("a").resolve() == tmp_path / "v2" and source.link("b").resolve() == tmp_path / "v0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f-a", "f-b", "v0", "v1", "v2"]
    source.forget()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v0", "v1", "v2"], "the versions are not its to remove"
