"""Landmarks found once for a set, and runs that take them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lafs_ray.cli import cache_landmarks as cli
from lafs_ray.config.loader import resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data import landmark_cache
from lafs_ray.data.landmark_cache import Part
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.prepare import prepare_run
from lafs_ray.training.tasks import build_landmark_cache as training_landmarks
from lafs_ray.training.tasks.build_landmark_cache import cache_in_process, read_landmark_cnn
from tests.test_jobs import main_of
from tests.training.faces import break_frame, run, tiny, write_face_set
from tests.transforms.faces import lively_cnn


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_cache, "PART_ROWS", 50)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A landmark CNN under published names; as `debug.yaml` builds it, of 49 landmarks."""
    path = tmp_path_factory.mktemp("weights") / "cnn.pth"
    torch.save(lively_cnn(49).state_dict(), path)
    return str(path)


@pytest.fixture
def faces(tmp_path: Path, face_set_path: str) -> str:
    """A set of its own, beside which landmarks may be stored."""
    folder = tmp_path / "set"
    shutil.copytree(Path(face_set_path).parent, folder)
    return str(folder / "train.rec")


def settings(source: str, weights: str, *more: str) -> list[str]:
    return [f"landmarks.source={source}", f"landmarks.weights={weights}", *more]


def batches(folder: Path, faces: str, source: str, weights: str, first: int = 0, *more: str) -> list[StepBatch]:
    inputs = prepare_run(tiny(folder / source, faces, *settings(source, weights), *more))
    return list(local_stream(inputs.faces, inputs.sampler, inputs.preprocessor(), first, 16))


def cache(*arguments: str) -> None:
    main_of("cache_landmarks")(arguments)


def test_cached__is_per_image_up_to_float16(
    tmp_path: Path, faces: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the end of an epoch a cached run sees the tokens of per_image, but for float16; without mirrored views, in
    which the cache has the nearest landmarks of an untrained CNN for those that it would find."""
    cache(weights, faces)
    assert "49 landmarks of 120 records" in capsys.readouterr().out
    found, expected = (batches(tmp_path, faces, s, weights, 13, "views.flip=0") for s in ("cached", "per_image"))
    assert [batch.epoch for batch in found] == [0, 0, 1]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.columns["key"], theirs.columns["key"])
        for name in ("global_tokens", "local_tokens"):
            difference = np.abs(mine.columns[name].astype(int) - theirs.columns[name].astype(int))
            # As in tests/transforms/test_view_landmarks.py, on pictures with steeper changes.
            assert difference.max() <= 8, name
            assert difference.mean() < 0.2, name


def test_cached_run__keeps_the_network(tmp_path: Path, faces: str, weights: str) -> None:
    """The checkpoint of a cached run holds the landmark CNN; its cache may move meanwhile."""
    cache(weights, faces, "--out", str(tmp_path / "elsewhere"))
    where = f"landmarks.cache={tmp_path / 'elsewhere'}"
    short = "duration=1 steps", "optim.warmup=0 steps"
    one = run(tiny(tmp_path / "a", faces, *short, *settings("cached", weights, where)))
    network, expected = read_landmark_cnn(one.inputs.folder().uri)
    assert read_landmark_cnn(weights)[1] == expected
    assert isinstance(network, LandmarkCNN)
    moved = shutil.move(tmp_path / "elsewhere", tmp_path / "moved")
    more = settings("cached", weights, f"landmarks.cache={moved}")
    assert run(tiny(tmp_path / "a", faces, *short, *more)).metrics == one.metrics


def test_job__killed_goes_on_with_the_missing_parts(
    tmp_path: Path, faces: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call makes only what is missing, and the files are those of one call."""
    made: list[str] = []

    def stops(job: training_landmarks.CacheJob, parts: Sequence[Part]) -> Iterator[Part]:
        for part in cache_in_process(job, parts[:2]):
            made.append(part.name)
            yield part
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "cache_in_process", stops)
    with pytest.raises(KeyboardInterrupt):
        cache(weights, faces, "--out", str(tmp_path / "a"))
    assert not (tmp_path / "a" / "landmarks.json").exists()

    def watched(job: training_landmarks.CacheJob, parts: Sequence[Part]) -> Iterator[Part]:
        made.extend(part.name for part in parts)
        return cache_in_process(job, parts)

    monkeypatch.setattr(cli, "cache_in_process", watched)
    cache(weights, faces, "--out", str(tmp_path / "a"))
    assert made == [f"part-0000{number}-of-00003.safetensors" for number in range(3)]
    cache(weights, faces, "--out", str(tmp_path / "b"))
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name


def test_job__logs_its_speed(
    tmp_path: Path, faces: str, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first part is done it has logged where it writes, and its records per second."""
    monkeypatch.setattr(training_landmarks, "_LOG_EVERY_S", 0.0)
    cache(weights, faces, "--out", str(tmp_path / "a"))
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(f"in 3 parts, to {tmp_path / 'a'}")
    assert re.fullmatch(r"  part-00000-of-00003\.safetensors: \d+ records/s", second)


def test_job__place_that_cannot_be_written_to(
    tmp_path: Path, faces: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried before the network looks at a face."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "makedirs", refuse)
    monkeypatch.setattr(training_landmarks, "make_part", None)
    with pytest.raises(DataError, match="a read-only file system"):
        cache(weights, faces, "--out", str(tmp_path / "landmarks"))


@pytest.mark.parametrize(("option", "found"), [("--workers", "-2"), ("--max-bad", "'-2'")])
def test_job__impossible_number(faces: str, weights: str, option: str, found: str) -> None:
    """A negative number is refused by name before anything is read."""
    with pytest.raises(ConfigError, match=f"^{option}\n  found:    {found}\n"):
        cache(weights, faces, option, "-2")


def test_damaged_records__have_no_landmarks(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are counted; a run replaces them as ever; more than allowed stop the job."""
    data = tmp_path / "train.rec"
    write_face_set(data)
    break_frame(data, 17)
    with pytest.raises(DataError) as raised:
        cache(weights, str(data), "--max-bad", "0", "--out", str(tmp_path / "strict"))
    assert "1 so far" in raised.value.found
    assert "record 18" in raised.value.found
    cache(weights, str(data))
    found = batches(tmp_path, str(data), "cached", weights)
    skipped = [line for batch in found for line in batch.skipped]
    assert "key 18" in skipped[0]
    keys = np.concatenate([batch.columns["key"] for batch in found])
    assert len(keys) == 16 * 8
    assert 18 not in keys


def test_run__with_a_record_that_was_repaired(tmp_path: Path, weights: str) -> None:
    """A sound record without landmarks stops the run: it would train on nothing."""
    data = tmp_path / "train.rec"
    write_face_set(data)
    sound = data.read_bytes()
    break_frame(data, 17)
    cache(weights, str(data))
    data.write_bytes(sound)
    with pytest.raises(DataError, match="record 18") as raised:
        batches(tmp_path, str(data), "cached", weights)
    assert "damaged when landmarks were cached" in raised.value.found


def test_run__without_fitting_landmarks(tmp_path: Path, faces: str, weights: str) -> None:
    """None, those of other weights, of another set and of another color order are refused."""
    with pytest.raises(DataError, match="no cached landmarks") as raised:
        prepare_run(tiny(tmp_path, faces, *settings("cached", weights)))
    assert raised.value.fix == f"run lafs cache-landmarks {weights} {faces}"
    folder = tmp_path / "cache"
    cache(weights, faces, "--out", str(folder))
    where = f"landmarks.cache={folder}"
    other = torch.load(weights)
    other["output_layer.1.bias"][0] += 1
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(DataError, match="other weights") as raised:
        prepare_run(tiny(tmp_path, faces, *settings("cached", str(tmp_path / "other.pth"), where)))
    assert raised.value.fix.endswith(f"--out {folder}-2 and set landmarks.cache={folder}-2")
    more = settings("cached", weights, where, "data.color_order=bgr")
    with pytest.raises(DataError, match="another color order"):
        prepare_run(tiny(tmp_path, faces, *more))
    write_face_set(tmp_path / "train.rec", num_identities=10)
    with pytest.raises(DataError, match="another set of faces"):
        prepare_run(tiny(tmp_path, tmp_path / "train.rec", *settings("cached", weights, where)))
    with pytest.raises(DataError, match="other weights"):
        cache(str(tmp_path / "other.pth"), faces, "--out", str(folder))


def test_configuration__cached_needs_a_checkpoint() -> None:
    """Untrained landmarks have no file to be cached of."""
    tree = {"run": {"name": "x"}, "data": {"path": "x.rec"}, "landmarks": {"source": "cached", "weights": "untrained"}}
    with pytest.raises(ConfigError, match="only landmarks of a stage-1 checkpoint are cached"):
        resolve(PretrainConfig, tree, "test")


def test_read_landmark_cnn__without_one(tmp_path: Path, face_set_path: str) -> None:
    """A run over the grid is named, and what was expected."""
    overrides = ["landmarks.source=grid", "landmarks.weights=null", "model.patch_size=16"]
    done = run(tiny(tmp_path, face_set_path, "duration=2 steps", *overrides))
    with pytest.raises(CheckpointError, match="no landmark CNN"):
        read_landmark_cnn(done.inputs.folder().uri)


def test_subset__with_landmarks_reads_those_of_its_images(faces: str, tmp_path: Path, weights: str) -> None:
    """Numbers of a subset, and of a subset of it, are not those of the cache, and never mixed up."""
    cache(weights, faces)
    whole = prepare_run(tiny(tmp_path, faces, *settings("cached", weights))).faces
    expected = whole.read(np.array([7, 60, 119]))
    part = whole.subset(np.array([3, 7, 8, 60, 119])).subset(np.array([1, 3, 4])).read(np.arange(3))
    assert np.array_equal(part.key, expected.key)
    assert part.landmarks is not None
    assert expected.landmarks is not None
    assert np.array_equal(part.landmarks, expected.landmarks)


def test_external__landmarks_need_no_network(tmp_path: Path, faces: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Landmarks of another tool are trained on without a landmark CNN; the checkpoint embeds at their mean."""
    points = np.random.default_rng(0).uniform(20, 100, (120, 49, 2)).astype(np.float32)
    rows = pa.table({"landmarks": points.tolist(), "key": np.arange(1, 121)})
    pq.write_table(rows, tmp_path / "points.parquet")
    folder = str(tmp_path / "cache")
    source = ("--from", str(tmp_path / "points.parquet"))
    with pytest.raises(ConfigError, match="--tool, --tool-version"):
        cache(*source, faces, "--out", folder)
    cache(*source, "--tool", "t", "--tool-version", "1", faces, "--out", folder)
    assert f"{folder}: 49 landmarks of 120 records" in capsys.readouterr().out
    settings = ["landmarks.source=cached", "landmarks.weights=null", f"landmarks.cache={folder}"]
    done = run(tiny(tmp_path / "runs", faces, "duration=2 steps", *settings))
    batch = next(iter(local_stream(done.inputs.faces, done.inputs.sampler, done.inputs.preprocessor(), 0, 1)))
    assert batch.columns["global_tokens"].shape[1] == 2
    weights = load_for_inference(done.inputs.folder().uri)
    found = weights.state.backbone["output_layer.positions"].numpy()
    assert found == pytest.approx(points.mean(axis=0), abs=1e-3)  # float32 sums
    with pytest.raises(DataError, match="49 landmarks"):
        prepare_run(tiny(tmp_path / "runs", faces, "run.name=x", "model.num_landmarks=64", *settings))
    with pytest.raises(ConfigError, match=r"landmarks.weights, landmarks.cache: one is required"):
        tiny(tmp_path, faces, "landmarks.source=cached", "landmarks.weights=null")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cnn.pth", "set", "--from", "p.parquet"], "landmarks of a tool, or of a landmark CNN"),
        (["set"], "a landmark CNN and a set, or --from"),
        (["--from", "p.parquet", "set", "--max-missing", "-1"], "--max-missing"),
    ],
)
def test_job__contradicting_arguments(arguments: list[str], words: str) -> None:
    """A checkpoint and a table, or neither, are refused before anything is read."""
    with pytest.raises(ConfigError, match=words):
        cache(*arguments)
