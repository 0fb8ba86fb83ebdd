"""Finetuning that starts from a whitened network: its embedding is the file's, then whitened components are mapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import CheckpointError, ConfigError
from lafs_ray.evaluation.whitening import WhiteningOptions, whitened_network
from lafs_ray.models.checkpoints.convert import write_published
from lafs_ray.models.checkpoints.export import export_embedder
from lafs_ray.models.checkpoints.safetensors_file import write_weights
from lafs_ray.training.checkpoint.inference import load_embedder, load_for_inference
from lafs_ray.training.prepare import prepare_run
from tests.training.faces import ROOT, run, tiny

FEW_SHOT = str(ROOT / "configs/finetune/few_shot.yaml")
DIM = 6


@pytest.fixture(scope="module", params=["all", "mean"])
def whitened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """A weights file: a network of a short stage 1 and the whitening of its readout."""
    folder = tmp_path_factory.mktemp("stage1")
    run(tiny(folder, face_set_path, "duration=1 steps", "optim.warmup=0 steps", kind=FinetuneConfig))
    weights = load_for_inference(str(folder / "part_fvit"))
    fitted = whitened_network(weights, WhiteningOptions(face_set_path, request.param, DIM)).whitening
    assert fitted is not None
    path = folder / f"{request.param}.safetensors"
    write_weights(str(path), weights.read_by(request.param).whitened(fitted).without_heads())
    return path


def few_shot(folder: Path, data: str, start: Path, *more: str) -> FinetuneConfig:
    settings = [f"model.readout={start.stem}", f"model.whitened_dim={DIM}", "optim.warmup=0 steps", "duration=2 steps"]
    settings += ["data.subset=null", f"start.transformer={start}", *more]
    return tiny(folder, data, *settings, kind=FinetuneConfig, file=FEW_SHOT)


def embeddings(path: Path) -> torch.Tensor:
    images = torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        return load_embedder(str(path))(images)


def test_start__embeds_as_the_file_and_trains_its_whitening(tmp_path: Path, face_set_path: str, whitened: Path) -> None:
    """Without a learning rate the run's embedding is the file's; with one, network and whitening change."""
    # A landmark CNN that is not frozen moves by its batch statistics.
    frozen = ("optim.lr=1e-30", "optim.min_lr=0", "freeze.landmarks=1 run")
    still = few_shot(tmp_path / "still", face_set_path, whitened, *frozen)
    run(still)
    network = load_for_inference(str(tmp_path / "still" / "few_shot")).architecture
    assert (network.readout, network.whitened_dim, network.embedding_dim) == (whitened.stem, DIM, DIM)
    expected, found = embeddings(whitened), embeddings(tmp_path / "still" / "few_shot")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    run(few_shot(tmp_path / "moved", face_set_path, whitened, "freeze.landmarks=1 run", "freeze.transformer=1 run"))
    before = load_for_inference(str(whitened)).state.backbone
    after = load_for_inference(str(tmp_path / "moved" / "few_shot")).state.backbone
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"whitening.matrix"}


def test_start__whitening_of_another_embedding(tmp_path: Path, face_set_path: str, whitened: Path) -> None:
    """Another number, another readout, none in the file, or no file: each is one message with what to set."""
    for setting, found in ((f"model.whitened_dim={DIM + 1}", f"whitened to {DIM}"), ("model.readout=class", "readout")):
        with pytest.raises(CheckpointError, match=rf"found: .*{found}"):
            prepare_run(few_shot(tmp_path, face_set_path, whitened, setting))
    with pytest.raises(CheckpointError, match=r"found: +no whitening"):
        prepare_run(few_shot(tmp_path, face_set_path, whitened, f"start.transformer={whitened.parent / 'part_fvit'}"))
    with pytest.raises(ConfigError, match=r"whitening is fitted, not trained from scratch"):
        few_shot(tmp_path, face_set_path, whitened, "start.transformer=null")


def test_start__without_its_whitening_is_said(tmp_path: Path, face_set_path: str, whitened: Path) -> None:
    """A whitened file gives its transformer alone where the run has no whitening, and a line says so."""
    plain = few_shot(tmp_path, face_set_path, whitened, "model.whitened_dim=null", "model.readout=class")
    assert "without its whitening" in " ".join(prepare_run(plain).init_weights.report)


def test_other_programs__get_no_whitened_network(tmp_path: Path, whitened: Path) -> None:
    """Published names and timm's would be read as the class token's embedding: refused, before anything is written."""
    weights = load_for_inference(str(whitened))
    with pytest.raises(CheckpointError, match=rf"readout {whitened.stem}, whitened to {DIM}"):
        write_published(str(tmp_path / "out.pth"), weights)
    with pytest.raises(CheckpointError, match=rf"readout {whitened.stem}, whitened to {DIM}"):
        export_embedder(weights, str(tmp_path / "out.safetensors"), "timm")
    assert not list(tmp_path.iterdir())
