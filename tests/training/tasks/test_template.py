"""Runs on template landmarks: no labels, no stage 1, no landmark CNN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.data.landmark_template import grid_template
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.errors import CheckpointError, ConfigError, DataError
from lafs_ray.models.patch_sampling import extract_patches
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.prepare import check_run
from lafs_ray.training.tasks.build_landmark_cache import read_landmark_cnn
from tests.training.faces import Result, face_jpegs, run, tiny

TEMPLATE = "landmarks.source=template"


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of 40 faces of which none has a label."""
    path = tmp_path_factory.mktemp("unlabeled") / "train.rec"
    with RecordWriter(str(path)) as writer:
        for number, jpeg in enumerate(face_jpegs(40)):
            writer.write(number, pack(Header(0, -1.0, number), jpeg))
    return str(path)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, unlabeled: str) -> Result:
    """A short run without labels and without a stage 1."""
    return run(tiny(tmp_path_factory.mktemp("template"), unlabeled, TEMPLATE, "landmarks.weights=null"))


def test_pretraining__without_labels_or_stage_one(pretrained: Result) -> None:
    """A set without labels is pretrained on; the checkpoint holds the positions, and embeds faces at them."""
    assert len(pretrained.metrics) == 4
    assert all(np.isfinite(line["loss"]) for line in pretrained.metrics)
    weights = load_for_inference(pretrained.inputs.folder().uri)
    assert weights.architecture.landmark_cnn == "template"
    network = weights.embedder()
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    positions = torch.from_numpy(grid_template(49)).expand(2, -1, -1)
    with torch.inference_mode():
        expected = network.transformer.encode(extract_patches(images, positions, 16))
        assert torch.equal(network(images), expected)


def test_finetuning__takes_over_the_template(pretrained: Result, tmp_path: Path, face_set_path: str) -> None:
    """Stage 3 keeps the positions of the pretraining run, and no step moves them."""
    start = f"start.transformer={pretrained.inputs.folder().uri}"
    result = run(tiny(tmp_path, face_set_path, start, TEMPLATE, kind=FinetuneConfig))
    assert "landmark_spread" not in result.metrics[-1]
    weights = load_for_inference(result.inputs.folder().uri)
    assert np.array_equal(weights.state.backbone["output_layer.positions"].numpy(), grid_template(49))
    with pytest.raises(ConfigError, match="set landmarks.source=template"):
        check_run(tiny(tmp_path, face_set_path, start, kind=FinetuneConfig))


def test_run__continued_with_another_template(pretrained: Result, unlabeled: str, tmp_path: Path) -> None:
    """A run does not continue on other positions."""
    np.save(tmp_path / "a.npy", grid_template(49) + 1)
    folder = Path(pretrained.inputs.folder().uri).parent
    with pytest.raises(ConfigError, match="holds another run"):
        run(tiny(folder, unlabeled, TEMPLATE, "landmarks.weights=null", f"landmarks.template={tmp_path / 'a.npy'}"))


def test_landmark_cnn__of_a_template_run(pretrained: Result, unlabeled: str, tmp_path: Path) -> None:
    """A run on a template is no landmark CNN: refused as landmarks.weights and for a cache."""
    path = pretrained.inputs.folder().uri
    with pytest.raises(ConfigError, match="without a landmark CNN"):
        check_run(tiny(tmp_path, unlabeled, f"landmarks.weights={path}"))
    with pytest.raises(CheckpointError, match="need no cache"):
        read_landmark_cnn(path)


def test_stage_one__without_labels(unlabeled: str, tmp_path: Path) -> None:
    """A set without labels at stage 1 names the way without labels, not the set's header."""
    with pytest.raises(DataError, match=r"none of 40 records has an identity(.|\n)*landmarks.source=template"):
        check_run(tiny(tmp_path, unlabeled, kind=FinetuneConfig))
