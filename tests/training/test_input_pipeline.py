from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lafs_ray.data.face_set import FaceRows, FaceSet, open_faces
from lafs_ray.data.sampler import EpochSampler, ShuffleBlock, rank_batches
from lafs_ray.errors import DataError
from lafs_ray.training import input_pipeline
from lafs_ray.training.input_pipeline import Columns, Preprocessor, StepBatch, local_stream, read_ahead, sample_indices
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.train_step import count_skipped
from tests.training.faces import NO_IMAGE, Result, break_frame, face_jpegs, pixels_of, run, tiny, write_face_set


def as_it_is(faces: Columns) -> Columns:
    """A transform that changes nothing, so that a test sees what reaches it."""
    return dict(faces)


def stream(faces: FaceSet, steps: int, batch: int = 8, seed: int = 5) -> list[StepBatch]:
    sampler = EpochSampler(faces.num_images, batch, seed, chunk_records=4)
    return list(local_stream(faces, sampler, Preprocessor(faces, "rgb", seed, as_it_is), 0, steps))


def assert_same(a: Columns, b: Columns) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert np.array_equal(a[name], b[name]), name


def test_local_stream__equals_batches_assembled_by_hand(face_set_path: str) -> None:
    """Batch of a step = the sampled records, decoded, in the sampler's order, over two epochs."""
    faces = open_faces(face_set_path)
    sampler = EpochSampler(faces.num_images, 8, 5, chunk_records=4)
    assert sampler.steps_per_epoch == 15
    batches = stream(faces, 20)
    expected = list(rank_batches(sampler, 0, 20))
    jpegs = face_jpegs(120)
    assert [batch.step for batch in batches] == [step for step, _ in expected] == list(range(20))
    assert [batch.epoch for batch in batches] == [0] * 15 + [1] * 5
    for batch, (_, records) in zip(batches, expected, strict=True):
        assert batch.skipped == []
        assert batch.columns["key"].tolist() == (records + 1).tolist()
        assert batch.columns["label"].tolist() == (records // 10).tolist()
        assert batch.columns["shard"].tolist() == [0] * 8
        assert batch.columns["epoch"].tolist() == [batch.epoch] * 8
        pixels = np.stack([pixels_of(jpegs[record]) for record in records])
        assert np.array_equal(batch.columns["image"], pixels)


def test_local_stream__from_any_step_is_the_same_stream(face_set_path: str) -> None:
    """A stream that begins inside a block or epoch gives what a whole one gives from there."""
    faces = open_faces(face_set_path)
    sampler = EpochSampler(faces.num_images, 8, 5, chunk_records=4)
    preprocess = Preprocessor(faces, "rgb", 5, as_it_is)
    whole = stream(faces, 20)
    for first in (1, 8, 11, 15, 19):
        part = list(local_stream(faces, sampler, preprocess, first, 20))
        assert [batch.step for batch in part] == list(range(first, 20))
        for ours, theirs in zip(part, whole[first:], strict=True):
            assert_same(ours.columns, theirs.columns)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_ranks__together_give_the_columns_of_one(face_set_path: str, tmp_path: Path, batch_size: int) -> None:
    """For 1, 2 and 4 ranks the rows of all ranks are bitwise those of the whole batch."""
    torch.set_num_threads(1)
    # 64 rows are two row blocks, so ranks share row blocks and span them.
    inputs = prepare_run(tiny(tmp_path, face_set_path, f"batch_size={batch_size}"))
    source = inputs.faces, inputs.sampler, inputs.preprocessor()
    steps = 3 if batch_size == 8 else 1
    whole = list(local_stream(*source, 0, steps))
    assert {"global_tokens", "local_tokens"} <= whole[0].columns.keys()
    for world in (1, 2, 4):
        shares = [list(local_stream(*source, 0, steps, rank, world)) for rank in range(world)]
        for step, expected in enumerate(whole):
            assert [share[step].step for share in shares] == [step] * world
            rows = [share[step].columns for share in shares]
            joined = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
            assert_same(joined, expected.columns)


DAMAGED = {
    "cut short": lambda jpeg: jpeg[: len(jpeg) // 2],
    "overwritten": lambda jpeg: b"\0" * len(jpeg),
    "no image": lambda _: NO_IMAGE,
    "wrong size": lambda _: face_jpegs(1, size=(96, 112))[0],
    "frame": None,
}


def damaged_set(path: Path, kind: str, number: int) -> FaceSet:
    change = DAMAGED[kind]
    if change is None:
        write_face_set(path)
        break_frame(path, number)
    else:
        write_face_set(path, replaced={number: change(face_jpegs(120)[number])})
    return open_faces(str(path))


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_record__is_replaced_by_the_same_other_one(tmp_path: Path, kind: str) -> None:
    """A damaged record leaves counts alone, is named with file and key, and replaced for good."""
    number = 37
    faces = damaged_set(tmp_path / "a.rec", kind, number)
    once, again = stream(faces, 15), stream(faces, 15)
    sampler = EpochSampler(faces.num_images, 8, 5, chunk_records=4)
    affected = [step for step, records in rank_batches(sampler, 0, 15) if number in records]
    assert len(affected) == 1, "every record comes once an epoch (120 = 15 × 8)"
    for batch, other, (_, records) in zip(once, again, rank_batches(sampler, 0, 15), strict=True):
        assert_same(batch.columns, other.columns)
        assert batch.skipped == other.skipped
        assert len(batch.columns["key"]) == 8
        sound = records != number
        assert np.array_equal(batch.columns["key"][sound], records[sound] + 1)
        assert bool(batch.skipped) == (batch.step in affected)
    (batch,) = (once[step] for step in affected)
    (line,) = batch.skipped
    assert str(tmp_path / "a.rec") in line
    assert str(number + 1) in line
    row = int(np.flatnonzero(dict(rank_batches(sampler, 0, 15))[affected[0]] == number)[0])
    key, label = (int(batch.columns[name][row]) for name in ("key", "label"))
    assert key != number + 1
    assert label == (key - 1) // 10
    assert np.array_equal(batch.columns["image"][row], pixels_of(face_jpegs(120)[key - 1]))


def test_damaged_record__replacement_changes_with_seed_and_epoch(tmp_path: Path) -> None:
    """The replacement is drawn from (seed, epoch, record), not always the same neighbor."""
    faces = damaged_set(tmp_path / "a.rec", "no image", 37)
    chosen = set()
    for seed in range(4):
        sampler = EpochSampler(faces.num_images, 8, seed, chunk_records=4)
        for batch, (_, records) in zip(stream(faces, 30, seed=seed), rank_batches(sampler, 0, 30), strict=True):
            chosen |= set(batch.columns["key"][records == 37].tolist())
    # Eight draws of 119 records: five different ones at least, or the draw is not random.
    assert len(chosen) >= 5


def note_all(batches: list[StepBatch], max_bad_records: int) -> set[str]:
    class Run:
        skipped: set[str] = set()  # noqa: RUF012

    run_: Any = Run()
    run_.skipped, run_.max_bad_records = set(), max_bad_records
    for batch in batches:
        count_skipped(run_, batch)
    return run_.skipped


def test_damaged_records__are_named_once_over_epochs(tmp_path: Path) -> None:
    """Two damaged records met in two epochs are two names, and the limit itself is allowed."""
    write_face_set(tmp_path / "a.rec", replaced={3: NO_IMAGE, 90: b"\xff\xd8"})
    batches = stream(open_faces(str(tmp_path / "a.rec")), 30)
    assert sum(len(batch.skipped) for batch in batches) == 4
    names = note_all(batches, 2)
    assert len(names) == 2
    assert [any(f"record {key}:" in name for name in names) for key in (4, 91)] == [True, True]


def test_damaged_records__more_than_allowed(tmp_path: Path) -> None:
    """One more than data.max_bad_records stops the run with count, limit and names."""
    write_face_set(tmp_path / "a.rec", replaced=dict.fromkeys((3, 50, 90), NO_IMAGE))
    batches = stream(open_faces(str(tmp_path / "a.rec")), 15)
    with pytest.raises(DataError) as raised:
        note_all(batches, 2)
    message = str(raised.value)
    assert "3 so far" in message
    assert "at most 2 (data.max_bad_records)" in message
    for key in (4, 51, 91):
        assert f"{tmp_path / 'a.rec'}, record {key}:" in message


def test_damaged_records__all_of_them(tmp_path: Path) -> None:
    """A set without one sound record ends with its first record's fault, it never hangs."""
    write_face_set(tmp_path / "a.rec", replaced=dict.fromkeys(range(120), NO_IMAGE))
    with pytest.raises(DataError, match="16 others sampled in its place are damaged") as raised:
        stream(open_faces(str(tmp_path / "a.rec")), 1)
    assert f"{tmp_path / 'a.rec'}, record " in raised.value.subject


def test_wrong_size__everywhere_tells_the_size(tmp_path: Path) -> None:
    """A set of unaligned pictures is refused with the size found and the size expected."""
    small = dict(enumerate(face_jpegs(120, size=(96, 96))))
    write_face_set(tmp_path / "a.rec", replaced=small)
    with pytest.raises(DataError, match="96x96.*112x112"):
        stream(open_faces(str(tmp_path / "a.rec")), 1)


def test_damaged_record__in_a_run(tmp_path: Path) -> None:
    """A run goes on over damaged records, counts them in its metrics and names each once."""
    write_face_set(tmp_path / "a.rec", num_identities=4, images_each=4, replaced={5: NO_IMAGE})
    result: Result = run(tiny(tmp_path, tmp_path / "a.rec"))
    assert [line["skipped_records"] for line in result.metrics][1:] == [1, 1, 1]
    named = [line for line in result.logged if "record 6:" in line]
    assert len(named) == 1


def test_local_stream__measures_reading_and_preprocessing(face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch carries its rows' share of the seconds that each kind of work took a process."""

    def slow_transform(faces: Columns) -> Columns:
        time.sleep(0.05)
        return dict(faces)

    def slow_read(faces: FaceSet, index: NDArray[np.int64]) -> FaceRows:
        time.sleep(0.4)
        return read(faces, index)

    read = FaceSet.read
    monkeypatch.setattr(FaceSet, "read", slow_read)
    faces = open_faces(face_set_path)
    sampler = EpochSampler(faces.num_images, 4, 5, chunk_records=4)
    batches = list(local_stream(faces, sampler, Preprocessor(faces, "rgb", 5, slow_transform), 0, 8))
    # A block is read at once and transformed step by step; a busy machine takes longer.
    assert sum(batch.work_s["read_s"] for batch in batches) > 0.399
    assert all(batch.work_s["read_s"] > 0.0499 for batch in batches)
    assert all(batch.work_s["preprocess_s"] > 0.0499 for batch in batches)
    assert not {"read_s", "preprocess_s"} & batches[0].columns.keys()


def test_local_stream__reads_the_next_block_while_one_is_used(
    face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first batch is used up the second block is read, and no third one."""
    faces = open_faces(face_set_path)
    sampler = EpochSampler(faces.num_images, 4, 5, chunk_records=4)
    read, second = [], threading.Event()

    def noted(sampler: EpochSampler, block: ShuffleBlock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        read.append(block.step_block)
        if block.step_block == 1:
            second.set()
        return sample_indices(sampler, block)

    monkeypatch.setattr(input_pipeline, "sample_indices", noted)
    batches = local_stream(faces, sampler, Preprocessor(faces, "rgb", 5, as_it_is), 0, 30)
    next(batches)
    assert second.wait(30), "the next block waits for this one to be used up"
    assert read == [0, 1]
    batches.close()


def test_read_ahead__left_behind_waits_for_no_thread() -> None:
    """The garbage collector ends such a generator in the middle of anything; what is being read then may take long."""
    go, begun, done = threading.Event(), threading.Event(), threading.Event()

    def read(item: int) -> int:
        if item == 1:
            begun.set()
            go.wait(30)
            done.set()
        return -item

    pairs = read_ahead(read, range(9))
    assert next(pairs) == (0, 0)
    assert begun.wait(30)
    pairs.close()  # type: ignore[attr-defined] # a generator
    assert not done.is_set()
    go.set()
    assert done.wait(30)
    assert list(read_ahead(lambda item: -item, range(3))) == [(0, 0), (1, -1), (2, -2)]


def test_local_stream__an_error_on_the_way_comes_in_its_place(tmp_path: Path) -> None:
    """A file that vanishes while a run reads from it stops the stream by name."""
    write_face_set(tmp_path / "a.rec")
    faces = open_faces(str(tmp_path / "a.rec"))
    sampler = EpochSampler(faces.num_images, 4, 5, chunk_records=4)
    batches = local_stream(faces, sampler, Preprocessor(faces, "rgb", 5, as_it_is), 0, 30)
    next(batches)
    (tmp_path / "a.rec").unlink()
    with pytest.raises(DataError, match=r"a\.rec\n.*no such file"):
        list(batches)


def test_read__stops_when_the_file_is_written_to(tmp_path: Path) -> None:
    """A local file that is rewritten during a run, at the same size, stops it by name."""
    path = tmp_path / "a.rec"
    write_face_set(path)
    faces = open_faces(str(path))
    faces.read(np.arange(3))
    os.utime(path, ns=(0, 10**18))
    with pytest.raises(DataError, match="as when the set was opened") as raised:
        faces.read(np.arange(3))
    assert raised.value.subject == str(path)
    assert open_faces(str(path)).read(np.arange(3)).errors == [""] * 3
