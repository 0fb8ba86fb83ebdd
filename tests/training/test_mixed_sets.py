"""Runs on several sets mixed by shares: what they read, how they continue, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lafs_ray.api.runs as api
from lafs_ray.cli.train import describe
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.mixed_faces import MixedFaces
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.input_pipeline import Columns, Preprocessor, StepBatch, local_stream
from lafs_ray.training.monitoring.status import read_status
from lafs_ray.training.prepare import RunInputs, check_run, prepare_run
from lafs_ray.training.run_length import build_sampler
from tests.test_jobs import main_of
from tests.training.faces import NO_IMAGE, face_jpegs, pixels_of, run, tiny, write_face_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """120 images of 12 identities with labels 0…11, and 12 of 4 with labels 1000000…, which are renumbered."""
    folder = tmp_path_factory.mktemp("sets")
    large, small = folder / "large" / "train.rec", folder / "small" / "train.rec"
    for path in (large, small):
        path.parent.mkdir()
    write_face_set(large)
    write_face_set(small, num_identities=4, images_each=3, first_label=1_000_000)
    return large, small


def mixed(*sets: Path | str, shares: tuple[float, ...] = (3, 1), each: str = "") -> list[str]:
    """The overrides of a mix, in place of data.path."""
    entries = ", ".join(f"{{path: {path}, share: {share}{each}}}" for path, share in zip(sets, shares, strict=True))
    return ["data.path=null", f"data.mix=[{entries}]"]


def columns_of(inputs: RunInputs, steps: int) -> list[Columns]:
    """What the transform gets in each step."""
    decode = Preprocessor(inputs.faces, "rgb", inputs.config.run.seed, dict, inputs.num_classes)
    return [batch.columns for batch in local_stream(inputs.faces, inputs.sampler, decode, 0, steps)]


def test_run__has_each_set_in_its_share_and_its_own_passes(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """The small set is passed through twenty times while the large one is not six: each time with other views."""
    inputs = check_run(tiny(tmp_path, "", *mixed(*sets), "duration=120 steps"))
    assert inputs.length.steps_per_epoch == (120 + 12) // 8
    rows = columns_of(inputs, 120)
    shard, key, epoch = (np.concatenate([one[name] for one in rows]) for name in ("shard", "key", "epoch"))
    assert abs((shard == 1).mean() - 0.25) < 0.05
    for number, size in ((0, 120), (1, 12)):
        here = shard == number
        passes = epoch[here]
        assert passes.max() == here.sum() // size
        # The last pass is not complete, and the shuffle block that is cut short lacks some of the one before.
        for one in range(passes.max() - 1):
            assert sorted(key[here & (epoch == one)].tolist()) == [*range(1, size + 1)]
    images = np.concatenate([one["image"] for one in rows])
    small = face_jpegs(12)
    for row in np.flatnonzero(shard == 1)[:12]:
        assert np.array_equal(images[row], pixels_of(small[key[row] - 1]))


def test_run__continues_bit_by_bit_and_reads_the_same_on_more_ranks(sets: tuple[Path, Path], tmp_path: Path) -> None:
    settings = [*mixed(*sets), "duration=6 steps", "checkpoints.every=2 steps"]
    whole = run(tiny(tmp_path / "whole", "", *settings))
    config = tiny(tmp_path / "killed", "", *settings)
    run(config, killed_at=5)
    assert run(config).exact == whole.exact
    inputs = whole.inputs
    stream = [local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), 3, 6, *of) for of in ((0, 1), (1, 2))]
    for one, half in zip(*stream, strict=True):
        assert isinstance(one, StepBatch)
        for name, column in half.columns.items():
            np.testing.assert_array_equal(column, one.columns[name][4:])


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"shares": (3, 2)}, r"data\.mix\.1\.share: 1\.0 -> 2\.0"),
        ({"reverse": True}, r"data\.mix: other sets of faces"),
        ({"sets": 1}, r"data\.mix: other sets of faces"),
        ({"each": ", color_order: bgr"}, r"data\.mix\.0\.color_order: None -> bgr"),
    ],
)
def test_run__is_not_continued_on_another_mix(
    sets: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    prepare_run(tiny(tmp_path, "", *mixed(*sets)))
    order = sets[::-1] if change.pop("reverse", False) else sets[: change.pop("sets", 2)]
    change.setdefault("shares", (3, 1)[: len(order)])
    with pytest.raises(ConfigError, match=difference):
        prepare_run(tiny(tmp_path, "", *mixed(*order, **change)))


def test_run__is_not_continued_on_one_of_its_sets_and_may_be_when_they_move(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    prepare_run(tiny(tmp_path / "runs", "", *mixed(*sets)))
    with pytest.raises(ConfigError, match=r"data\.path: another set of faces"):
        prepare_run(tiny(tmp_path / "runs", sets[0]))
    moved = tmp_path / "elsewhere" / "train.rec"
    moved.parent.mkdir()
    for ending in (".rec", ".idx"):
        moved.with_suffix(ending).write_bytes(sets[1].with_suffix(ending).read_bytes())
    prepare_run(tiny(tmp_path / "runs", "", *mixed(sets[0], moved)))


def test_same_set_twice__is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the same set as"):
        check_run(tiny(tmp_path, "", *mixed(sets[0], sets[0].parent)))


def test_labels__of_different_sets_are_different_identities(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """12 identities and 4, whose labels are renumbered, make 16 classes, in records and in tables alike."""
    inputs = check_run(tiny(tmp_path, "", *mixed(*sets), kind=FinetuneConfig))
    assert (inputs.num_classes, inputs.num_identities) == (16, 16)
    rows = columns_of(inputs, 30)
    shard, key, label = (np.concatenate([one[name] for one in rows]) for name in ("shard", "key", "label"))
    expected = np.where(shard == 0, (key - 1) // 10, 12 + (key - 1) // 3)
    np.testing.assert_array_equal(label, expected)
    assert set(label.tolist()) == {*range(16)}
    assert [faces.labels().max() for faces in inputs.sets] == [11, 15]


def test_labels__after_those_of_a_set_that_keeps_its_own(sets: tuple[Path, Path], tmp_path: Path) -> None:
    inputs = check_run(tiny(tmp_path, "", *mixed(*sets[::-1]), kind=FinetuneConfig))
    assert sorted(np.unique(inputs.sets[1].labels()).tolist()) == [*range(4, 16)]


def test_subset__is_one_of_each_set(sets: tuple[Path, Path], tmp_path: Path) -> None:
    few = ["data.subset.images_per_identity=2", "batch_size=8"]
    config = tiny(tmp_path, "", *mixed(*sets), *few, kind=FinetuneConfig)
    inputs = prepare_run(config)
    assert [faces.num_images for faces in inputs.sets] == [24, 8]
    table = pq.read_table(f"{inputs.folder().uri}/subset.parquet")
    assert set(table["file"].to_pylist()) == {str(path) for path in sets}
    assert np.bincount(table["label"].to_numpy()).tolist() == [2] * 16


def test_set_without_labels__is_named_in_a_supervised_run(sets: tuple[Path, Path], tmp_path: Path) -> None:
    write_face_set(tmp_path / "photos.rec", num_identities=3, first_label=-20)
    config = tiny(tmp_path, "", *mixed(sets[0], tmp_path / "photos.rec"), kind=FinetuneConfig)
    with pytest.raises(DataError, match="no labels: none of 30 records") as raised:
        check_run(config)
    assert raised.value.subject == str(tmp_path / "photos.rec")


def test_damaged_record__is_replaced_by_one_of_its_set(sets: tuple[Path, Path], tmp_path: Path) -> None:
    write_face_set(tmp_path / "a.rec", num_identities=4, images_each=3, replaced={5: NO_IMAGE})
    inputs = check_run(tiny(tmp_path, "", *mixed(sets[0], tmp_path / "a.rec")))
    decode = Preprocessor(inputs.faces, "rgb", 0, dict)
    batches = [*local_stream(inputs.faces, inputs.sampler, decode, 0, 30)]
    skipped = [line for batch in batches for line in batch.skipped]
    assert skipped
    assert all(f"{tmp_path / 'a.rec'}, record 6:" in line for line in skipped)
    # As many rows of the small set as without the damage.
    images = np.concatenate([inputs.sampler.indices(block).ravel() for (block,) in inputs.sampler.blocks(0, 30)])
    shards = np.concatenate([batch.columns["shard"] for batch in batches])
    assert (shards == 1).sum() == (images >= 120).sum()


def test_color_order__is_that_of_each_set(sets: tuple[Path, Path], tmp_path: Path) -> None:
    swapped = [cv2.imencode(".jpg", pixels_of(jpeg))[1].tobytes() for jpeg in face_jpegs(12)]
    write_face_set(tmp_path / "bgr.rec", num_identities=4, images_each=3, replaced=dict(enumerate(swapped)))
    where = f"{{path: {sets[0]}, share: 1}}, {{path: {tmp_path / 'bgr.rec'}, share: 1, color_order: bgr}}"
    inputs = check_run(tiny(tmp_path, "", "data.path=null", f"data.mix=[{where}]"))
    one = columns_of(inputs, 2)[1]
    for shard, key, image in zip(one["shard"], one["key"], one["image"], strict=True):
        expected = pixels_of((face_jpegs(120), swapped)[shard][key - 1])
        assert np.array_equal(image, expected[..., ::-1] if shard else expected)


@pytest.fixture(scope="module")
def caches(sets: tuple[Path, Path]) -> list[str]:
    """Landmarks of both sets by one tool: set n, image k, landmark i at (10 + 40 n, 20 + i / 2)."""
    folders = []
    for number, (path, count) in enumerate(zip(sets, (120, 12), strict=True)):
        points = np.stack([np.full((count, 49), 10 + 40 * number), np.tile(20 + np.arange(49) / 2, (count, 1))], -1)
        table = pa.table({"key": np.arange(1, count + 1), "landmarks": points.astype(float).tolist()})
        pq.write_table(table, path.parent / "points.parquet")
        folders.append(str(path.parent / "cache"))
        how = ["--tool", "t", "--tool-version", str(number)]
        main_of("cache_landmarks")(
            ["--from", str(path.parent / "points.parquet"), *how, str(path), "--out", folders[-1]]
        )
    return folders


def with_caches(sets: tuple[Path, Path], caches: list[str]) -> list[str]:
    entries = [f"{{path: {s}, share: {n}, landmarks: {c}}}" for s, c, n in zip(sets, caches, (3, 1), strict=True)]
    return ["data.path=null", f"data.mix=[{', '.join(entries)}]"]


def test_cached_landmarks__are_those_of_each_set(sets: tuple[Path, Path], caches: list[str], tmp_path: Path) -> None:
    settings = [*with_caches(sets, caches), "landmarks.source=cached", "landmarks.weights=null"]
    inputs = check_run(tiny(tmp_path, "", *settings))
    for one in columns_of(inputs, 6):
        np.testing.assert_array_equal(one["landmarks"][:, 0, :, 0].max(axis=1), np.where(one["shard"] == 0, 10, 50))
    assert inputs.init_weights.landmarks is not None
    (mean,) = inputs.init_weights.landmarks.values()
    np.testing.assert_allclose(mean[:, 0], 20)  # (3 · 10 + 50) / 4
    with pytest.raises(DataError, match="another set of faces"):
        check_run(tiny(tmp_path, "", *with_caches(sets, caches[::-1]), *settings[2:]))


def test_landmark_regression__learns_from_several_sets(
    sets: tuple[Path, Path], caches: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.training.tasks.test_landmarks import regression

    settings = [*with_caches(sets, caches), "landmarks.cache=null", "duration=2 steps"]
    done = run(regression(tmp_path, "", "", *settings))
    assert [faces.num_images for faces in done.inputs.sets] == [90, 9]
    main_of("landmark_error")([done.inputs.folder().uri])
    lines = [line for line in capsys.readouterr().out.splitlines() if "landmark error on" in line]
    assert [line.startswith(f"{path}: ") for line, path in zip(lines, sets, strict=True)] == [True, True]


def test_start_line__and_status_say_how_often_each_set_is_passed(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(tiny(tmp_path, "", *mixed(*sets), "duration=6 steps"))
    describe(done.inputs)
    text = capsys.readouterr().out
    assert f"{sets[0]}: 120 images, 0.75 of each batch on average, 0.3 passes in the run" in text
    assert f"{sets[1]}: 12 images, 0.25 of each batch on average, 1 pass in the run" in text
    status = str(read_status(done.inputs.folder().uri))
    assert f"{sets[1]}: 0.25 of each batch, pass 1 of 1" in status


def test_api__takes_paths_and_shares(sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping is a mix, which replaces the set of the preset."""
    monkeypatch.setattr(api, "launch", lambda config: None)
    data = {str(sets[0]): 0.7, str(sets[1]): 0.3}
    made = api.pretrain(data=data, out=tmp_path / "run", preset="debug").config.data
    assert made.path is None
    assert [(one.path, one.share) for one in made.sets] == [*data.items()]


def test_one_set_alone__is_not_wrapped(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """data.path keeps its order to the bit: no mix is involved."""
    inputs = check_run(tiny(tmp_path, sets[0]))
    assert not isinstance(inputs.faces, MixedFaces)
    assert build_sampler(inputs.config, open_faces(str(sets[0]))).mix is None
