"""Ray Data delivers what debug mode reads, whatever the number of actors, ranks or restarts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lafs_ray.data.io import filesystem, reading
from lafs_ray.data.sampler import ShuffleBlock
from lafs_ray.engine.ray_ingest import has_room
from lafs_ray.engine.started import Started
from lafs_ray.training.input_pipeline import (
    Columns,
    Preprocessor,
    StepBatch,
    local_stream,
    read_records,
    sample_indices,
)
from lafs_ray.training.prepare import RunInputs, prepare_run
from tests.training.faces import break_frame, tiny, write_face_set
from tests.training.test_neighbor_runs import write_pairs

pytestmark = pytest.mark.ray


def inputs_of(folder: Path, data: Path | str, *overrides: str) -> RunInputs:
    # 36 rows cross the boundary of a row block, 12 steps that of a step block and of an epoch.
    return prepare_run(tiny(folder, data, "batch_size=36", "duration=12 steps", *overrides))


def through_ray(inputs: RunInputs, rank: int, world: int, first: int, stop: int) -> list[StepBatch]:
    from lafs_ray.engine.ray_ingest import rank_stream, share

    return list(rank_stream(inputs, share(inputs), rank, world, first, stop))


def assert_same(found: list[StepBatch], expected: list[StepBatch], rows: slice) -> None:
    assert [batch.step for batch in found] == [batch.step for batch in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.columns.keys() == theirs.columns.keys()
        for name, column in theirs.columns.items():
            np.testing.assert_array_equal(mine.columns[name], column[rows], err_msg=name)
        assert mine.work_s["read_s"] > 0
        assert mine.work_s["preprocess_s"] > 0


@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.long), 3])
def test_stream__is_bitwise_that_of_debug_mode_for_any_number_of_actors(
    actors: int, tmp_path: Path, face_set_path: str, local_ray: None
) -> None:
    """Of two sets that are mixed, the small one passed through several times in an epoch; the others here are of one
    set."""
    write_face_set(tmp_path / "small.rec", num_identities=2, images_each=3)
    sets = f"[{{path: {face_set_path}, share: 2}}, {{path: {tmp_path / 'small.rec'}, share: 1}}]"
    mix = ["data.path=null", f"data.mix={sets}"]
    inputs = inputs_of(tmp_path, "", f"ingest.actors_per_worker={actors}", *mix)
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, 12))
    assert len({batch.epoch for batch in expected}) > 1
    assert_same(through_ray(inputs, 0, 1, 0, 12), expected, slice(None))


def test_stream__of_each_rank_is_its_share_of_the_batch_and_starts_at_any_step(
    tmp_path: Path, face_set_path: str, local_ray: None
) -> None:
    """Of a run with neighbors, whose pairs no rank splits; the others here have none."""
    pairs = write_pairs(tmp_path / "pairs.safetensors", face_set_path)
    inputs = inputs_of(tmp_path, face_set_path, "ingest.actors_per_worker=1", f"neighbors.pairs={pairs}")
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 2, 12))
    assert 0.3 < np.mean([batch.columns["paired"] for batch in expected]) < 0.7
    assert_same(through_ray(inputs, 1, 2, 2, 12), expected, slice(18, 36))


@pytest.fixture(scope="module")
def in_a_store(face_set_path: str) -> Iterator[str]:
    """The same set in an S3 server on loopback, for which Ray's processes need no credentials."""
    pytest.importorskip("moto")
    from tests.object_store import object_store

    # Written with keys: moto does not understand how an unsigned upload is framed.
    with pytest.MonkeyPatch.context() as patch, object_store() as store:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        reading.resolve(store.uri("faces", allow_bucket_creation="true"))[0].create_dir("faces")
        for name in ("train.rec", "train.idx"):
            with filesystem.atomic_write(store.uri(f"faces/{name}")) as file:
                file.write(Path(face_set_path).with_name(name).read_bytes())
        yield store.uri("faces/train.rec", anonymous="true")


def test_streams__of_one_two_and_four_readers_of_a_store_are_that_of_the_disk(
    tmp_path: Path, face_set_path: str, in_a_store: str, local_ray: None
) -> None:
    """The last of 1, 2 and 4 ranks reads its rows from S3 as debug mode reads them from the disk; the rows of the other
    ranks are compared in tests/data/test_object_store.py and test_stream."""
    local = inputs_of(tmp_path / "disk", face_set_path)
    remote = inputs_of(tmp_path / "store", in_a_store, "ingest.actors_per_worker=1")
    expected = list(local_stream(local.faces, local.sampler, local.preprocessor(), 1, 4))
    for world in (1, 2, 4):
        share = slice(*remote.sampler.rank_rows(world - 1, world))
        assert_same(through_ray(remote, world - 1, world, 1, 4), expected, share)


def test_stream__over_several_executions_is_one_stream(
    tmp_path: Path, face_set_path: str, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is planned, and its first block made, while the last steps of the first one are trained on; and
    forty other datasets, as of other ranks, take no CPUs from it."""
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import STANDARD_RESOURCE_TYPES

    from lafs_ray.engine import ray_ingest
    from lafs_ray.engine.dataset_share import OwnCpus

    coordinator, limits = get_or_create_autoscaling_coordinator(), set()
    for number in range(40):
        coordinator.request_resources.remote(f"other-{number}", [], 600, STANDARD_RESOURCE_TYPES)
    monkeypatch.setattr(
        OwnCpus, "on_execution_step", lambda _, executor: limits.add(executor._resource_manager.get_global_limits().cpu)
    )
    ahead: list[Started[Columns]] = []
    monkeypatch.setattr(ray_ingest, "Started", lambda items: ahead.append(Started(items)) or ahead[-1])
    inputs = inputs_of(tmp_path, face_set_path, "ingest.actors_per_worker=1", "ingest.blocks_per_execution=4")
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, 12))
    stream = ray_ingest.rank_stream(inputs, ray_ingest.share(inputs), 0, 1, 0, 12)
    # Of two groups of three steps.
    first = list(itertools.islice(stream, 6))
    (second,) = ahead
    assert second._is_done.wait(120)
    assert_same([*first, *stream], expected, slice(None))
    assert len(ahead) == 1
    # Ray Data begins at 0 and looks once a second.
    assert limits <= {0.0, inputs.config.ingest.cpus}
    assert inputs.config.ingest.cpus in limits
    for number in range(40):
        coordinator.cancel_request.remote(f"other-{number}")


def test_stream__starts_the_next_execution_only_near_the_end_of_this_one(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that groups take: 25 s each here, so two groups before the end; and one left behind is ended."""
    from lafs_ray.engine import ray_ingest

    inputs = inputs_of(tmp_path, face_set_path, "duration=42 steps", "ingest.blocks_per_execution=12")
    preprocess = Preprocessor(inputs.faces, "rgb", 0, dict)
    ahead, ended, now = [], [], [0.0]

    def execute(config: Any, shared: Any, blocks: list[ShuffleBlock]) -> Generator[Columns, None, None]:
        assert len(blocks) in (12, 4)
        try:
            for block in blocks:
                yield preprocess(read_records(inputs.faces, *sample_indices(inputs.sampler, block)))
        finally:
            ended.append(blocks[0].epoch)

    monkeypatch.setattr(ray_ingest, "_execute", execute)
    monkeypatch.setattr(ray_ingest, "Started", lambda items: ahead.append(now[0]) or Started(items))
    monkeypatch.setattr(ray_ingest.time, "monotonic", lambda: now[0])
    found = []
    for batch in ray_ingest.rank_stream(inputs, None, 0, 1, 0, 42):  # type: ignore[arg-type] # not used here
        found.append(batch)
        now[0] += 25.0 / 3
    # Groups of three steps: fourteen, six in an execution, of which the fifth begins after 100 s.
    assert [round(seconds) for seconds in ahead] == [100, 250]
    assert_same(found, list(local_stream(inputs.faces, inputs.sampler, preprocess, 0, 42)), slice(None))
    ended.clear()
    stream = ray_ingest.rank_stream(inputs, None, 0, 1, 0, 42)  # type: ignore[arg-type] # not used here
    for _ in range(15):
        next(stream)
        now[0] += 25.0 / 3
    stream.close()  # type: ignore[attr-defined] # a generator
    deadline = time.time() + 20
    while len(ended) < 2 and time.time() < deadline:
        time.sleep(0.01)
    assert sorted(ended) == [0, 6]


def test_stream__names_and_replaces_a_damaged_record_as_debug_mode_does(tmp_path: Path, local_ray: None) -> None:
    data = tmp_path / "train.rec"
    write_face_set(data)
    break_frame(data, 17)
    inputs = inputs_of(tmp_path / "run", data, "ingest.actors_per_worker=1")
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, 6))
    found = through_ray(inputs, 0, 1, 0, 6)
    assert_same(found, expected, slice(None))
    lines = [line for batch in found for line in batch.skipped]
    assert lines == [line for batch in expected for line in batch.skipped]
    # Two epochs of 108 of 120 records: the damaged one is met at least once.
    assert len(set(lines)) == 1
    assert "key 18" in lines[0]


def test_needed_cpus__counts_trainers_actors_and_reading(tmp_path: Path, face_set_path: str) -> None:
    settings = ["compute.workers=2", "ingest.actors_per_worker=3", "compute.cpus_per_worker=2"]
    assert tiny(tmp_path, face_set_path, *settings).needed_cpus == 2 * (2 + 3 + 1)
    online_eval = ["online_eval.pairs=a.bin", "online_eval.cpus=4"]
    assert tiny(tmp_path, face_set_path, *settings, *online_eval).needed_cpus == 2 * (2 + 3 + 1) + 4


@pytest.mark.parametrize(("share", "expected"), [(0.5, False), (0.9, False), (1.0, True), (2.0, True)])
def test_has_room__for_the_next_executions_of_all_ranks(
    share: float, expected: bool, tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster that is as large as the run, the next execution waits for the end of this one."""
    config = tiny(tmp_path, face_set_path, "ingest.actors_per_worker=1", "ingest.cpus_per_actor=1")
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": share * 2 * config.ingest.cpus})
    assert has_room(config, 2) is expected
    monkeypatch.setattr("ray.available_resources", dict)
    assert not has_room(config, 1)
