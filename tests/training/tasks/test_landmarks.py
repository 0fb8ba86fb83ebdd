"""A landmark CNN learns given landmarks, without identity labels, and stands where one of stage 1 does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import load
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.models.checkpoints.convert import write_published
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.prepare import check_run
from lafs_ray.training.tasks.build_landmark_cache import read_landmark_cnn
from tests.test_jobs import main_of
from tests.training.faces import ROOT, Result, run, tiny

SHORT = ["batch_size=8", "duration=4 steps", "log.every_steps=1", "checkpoints.every=2 steps", "data.held_back=0.25"]
DIRECT = "model.landmark_scaling=direct"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> str:
    """Landmarks of the 120 faces: 49 each."""
    folder = tmp_path_factory.mktemp("given")
    points = np.random.default_rng(0).uniform(20, 90, (49, 2)) + np.random.default_rng(1).normal(0, 2, (120, 49, 2))
    table = pa.table({"key": np.arange(1, 121), "landmarks": points.tolist()})
    pq.write_table(table, folder / "points.parquet")
    arguments = ["--from", str(folder / "points.parquet"), "--tool", "t", "--tool-version", "1", face_set_path]
    main_of("cache_landmarks")([*arguments, "--out", str(folder / "cache")])
    return str(folder / "cache")


def regression(folder: Path, faces: str, cache: str, *more: str) -> LandmarkConfig:
    where = [f"run.storage={folder}", f"data.path={faces}", f"landmarks.cache={cache}", "model.num_landmarks=49"]
    return load(LandmarkConfig, str(ROOT / "configs/landmarks/cpu.yaml"), [*SHORT, *where, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, face_set_path: str, cache: str) -> Result:
    return run(regression(tmp_path_factory.mktemp("cnn"), face_set_path, cache))


def test_regression__learns_and_continues(trained: Result, tmp_path: Path, face_set_path: str, cache: str) -> None:
    """Metrics are finite; a killed run continues to the same metrics, bit by bit."""
    assert len(trained.metrics) == 4
    assert all(np.isfinite(line["loss"]) for line in trained.metrics)
    config = regression(tmp_path, face_set_path, cache)
    run(config, killed_at=3)
    assert run(config).exact == trained.exact


def test_regression__does_not_see_what_is_held_back(trained: Result, capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of the faces is in no batch; the error is measured on them, and on another set by name."""
    assert trained.inputs.faces.num_images == 90
    folder = trained.inputs.folder().uri
    main_of("landmark_error")([folder])
    assert "landmark error on 30 faces: mean " in capsys.readouterr().out
    config = trained.inputs.config
    assert isinstance(config, LandmarkConfig)
    main_of("landmark_error")([folder, config.data.path, config.landmarks.cache])
    text = capsys.readouterr().out
    assert "on 120 faces" in text
    # 2 px in each axis: the mean of a Rayleigh distribution, less what 120 faces say about the mean.
    assert float(text.split("fixed mean ")[1].split()[0]) == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.03)


def test_landmark_cnn__stands_in_the_place_of_stage_one(trained: Result, tmp_path: Path, face_set_path: str) -> None:
    """Pretraining and finetuning take it, finetuning with gradients; other scaling is refused by name."""
    path = trained.inputs.folder().uri
    weights = [f"landmarks.weights={path}", "landmarks.source=per_image", "duration=2 steps"]
    done = run(tiny(tmp_path, face_set_path, *weights, DIRECT))
    network, expected = read_landmark_cnn(path)
    assert read_landmark_cnn(done.inputs.folder().uri)[1] == expected
    with pytest.raises(ConfigError, match="set model.landmark_scaling=direct"):
        check_run(tiny(tmp_path, face_set_path, *weights))
    start = [f"start.landmarks={path}", "duration=2 steps", "optim.warmup=0 steps", "run.name=tuned"]
    tuned = run(tiny(tmp_path, face_set_path, *start, DIRECT, kind=FinetuneConfig))
    changed, _ = read_landmark_cnn(tuned.inputs.folder().uri)
    name = "stn.features.0.0.weight"
    assert not torch.equal(changed.state_dict()[name], network.state_dict()[name])
    weights_file = load_for_inference(tuned.inputs.folder().uri)
    assert weights_file.architecture.landmark_scaling == "direct"
    with pytest.raises(CheckpointError, match="not scaled to 0…111"):
        write_published(str(tmp_path / "a.pth"), weights_file)


def test_direct_landmarks__are_free(trained: Result) -> None:
    """Given landmarks between 20 and 90 px are not stretched to the image's sides."""
    network, _ = read_landmark_cnn(trained.inputs.folder().uri)
    with torch.no_grad():
        found = network(torch.zeros(1, 3, 112, 112))
    assert found.min() > 5
    assert found.max() < 107


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("online_eval.pairs=x.bin", ConfigError, "embeds no faces"),
        ("compute.compile=true", ConfigError, "no transformer to compile"),
        ("augmentation.crop_area=[0.9, 0.2]", ConfigError, "crop_area"),
        ("model.num_landmarks=50", DataError, "49 positions"),
        ("landmarks.cache=/nowhere", DataError, r"(?s)no cached landmarks.*correct landmarks.cache"),
        ("data.held_back=0.999", DataError, "of which 120 are held back"),
    ],
)
def test_regression__impossible_settings(
    tmp_path: Path, face_set_path: str, cache: str, change: str, error: type[Any], words: str
) -> None:
    """What a regression cannot do is refused before it starts."""
    with pytest.raises(error, match=words):
        check_run(regression(tmp_path, face_set_path, cache, change))
