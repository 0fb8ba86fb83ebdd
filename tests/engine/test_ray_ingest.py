"""Ray Data delivers what debug mode reads, whatever the number of actors, ranks or restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lafs_ray.data.io import filesystem, reading
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.prepare import RunInputs, prepare_run
from tests.training.faces import break_frame, tiny, write_face_set

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
    inputs = inputs_of(tmp_path, face_set_path, "ingest.actors_per_worker=1")
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 2, 12))
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
    monkeypatch.setattr("lafs_ray.engine.ray_ingest.BLOCKS_PER_EXECUTION", 3)
    inputs = inputs_of(tmp_path, face_set_path, "ingest.actors_per_worker=1")
    expected = list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 0, 12))
    assert_same(through_ray(inputs, 0, 1, 0, 12), expected, slice(None))


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
