from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lafs_ray.data.images import encode_jpeg
from lafs_ray.errors import ConfigError
from lafs_ray.evaluation import whitening
from lafs_ray.evaluation.mined_pairs import discriminate
from lafs_ray.evaluation.whitening import WhiteningOptions, fit_whitening, sample_faces, small_faces, whitened_network
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, read_weights, write_weights
from lafs_ray.models.checkpoints.state_dicts import PublishedState
from lafs_ray.models.fvit import FViTSize
from lafs_ray.synthetic.datasets import contact_sheet

ARCHITECTURE = Architecture(49, FViTSize(16, 1, 2, 8, 12), 16, grid=True, token_features="orientations")


def vectors(count: int, dim: int) -> NDArray[np.float64]:
    """Correlated vectors with a mean far from 0."""
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, dim)) @ generator.normal(size=(dim, dim)) + 5


@pytest.mark.parametrize(("count", "dim"), [(300, 12), (40, 100)])
def test_fit_whitening__gives_uncorrelated_components_of_variance_one(count: int, dim: int) -> None:
    """Also where there are fewer vectors than numbers; the components are the strongest, strongest first."""
    rows = vectors(count, dim)
    found = fit_whitening(rows, 8, "x")(torch.from_numpy(rows).float()).double().numpy()
    assert np.abs(found.mean(axis=0)).max() < 1e-4
    # Directions are found in float64 from float32 products of some hundred terms.
    assert np.abs(np.cov(found.T) - np.eye(8)).max() < 1e-3
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    assert (np.diff(values) < 0).all()
    cosines = np.abs((found / np.linalg.norm(found, axis=0) * left[:, :8]).sum(axis=0))
    assert cosines.min() > 0.999


def test_fit_whitening__strongest_of_many_directions() -> None:
    """Of 2,500 numbers the strongest directions are found without all others: variances as of the exact fit, and
    the same in a second call."""
    rng = np.random.default_rng(0)
    deviations = np.arange(1, 2501) ** -0.5
    rows = (rng.standard_normal((3000, 2500)) * deviations).astype(np.float32)
    fitted = fit_whitening(rows, 40, "faces")
    centered = rows - rows.mean(axis=0)
    exact = np.linalg.eigvalsh((centered.T @ centered).astype(np.float64) / 2999)[::-1][:40]
    found = 1 / fitted.matrix.square().sum(dim=0).numpy()
    # Sorted alike; the spectrum falls slowly here, so the last ones are mixed with those beyond.
    np.testing.assert_allclose(found, exact, rtol=0.02)
    whitened = torch.cov(fitted(torch.from_numpy(rows)).T)
    assert (whitened - torch.eye(40)).abs().max() < 0.01
    again = fit_whitening(rows, 40, "faces")
    # Threads add in another order.
    np.testing.assert_allclose(again.matrix, fitted.matrix, atol=1e-3 * float(fitted.matrix.abs().max()))


def test_fit_whitening__more_components_than_directions() -> None:
    """Too many components, or vectors that do not differ in so many directions, are named with the number possible."""
    with pytest.raises(ConfigError, match=r"1 to 12: faces gives 300 vectors of 12 numbers"):
        fit_whitening(vectors(300, 12), 13, "faces")
    with pytest.raises(ConfigError, match="at most 4: vectors of faces do not differ in more directions"):
        fit_whitening(vectors(300, 4) @ np.random.default_rng(1).normal(size=(4, 12)), 5, "faces")


def test_fit_whitening__fewer_where_vectors_do_not_differ_in_more() -> None:
    """A fit that may have fewer components has as many as there are directions; the message names what was asked."""
    flat = vectors(300, 12)
    flat[:, 5:] = flat[:, :1]
    assert fit_whitening(flat.copy(), 10, "faces", at_least=5).matrix.shape == (12, 5)
    with pytest.raises(ConfigError, match=r"(?s)found: +6.*at most 5"):
        fit_whitening(flat.copy(), 10, "faces", at_least=6)


def test_whitened_network__is_stored_and_read_again(tmp_path: Path) -> None:
    """A weights file with a whitening gives the fitted network's embeddings; another readout drops the whitening."""
    faces = tmp_path / "faces"
    faces.mkdir()
    for number, image in enumerate(contact_sheet(0, range(30), 1).reshape(30, 112, 112, 3)):
        (faces / f"{number:02}.jpg").write_bytes(encode_jpeg(image, 95))
    torch.manual_seed(0)
    state = PublishedState(dict(ARCHITECTURE.build_transformer().state_dict()))
    weights = NetworkWeights(ARCHITECTURE, state, "here")
    network = whitened_network(weights, WhiteningOptions(str(faces), "all", 20))
    assert network.whitening is not None
    fitted = weights.read_by("all").whitened(network.whitening)
    write_weights(str(tmp_path / "w.safetensors"), fitted)
    again = read_weights(str(tmp_path / "w.safetensors"))
    assert again is not None
    assert again.architecture.embedding_dim == 20
    images = torch.rand(3, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.embedder()(images), network(images))
        assert torch.equal(again.read_by("class").embedder()(images), weights.embedder()(images))
        assert again.embedder(trained=False)(images).shape == (3, 50 * 16)


def test_sample_faces__is_spread_and_bounded(tmp_path: Path) -> None:
    """All of a small set; of wide vectors only as many faces as fit 1 GB, from the first to the last chunk."""
    image = encode_jpeg(np.zeros((112, 112, 3), dtype=np.uint8), 50)
    for number in range(200):
        (tmp_path / f"{number:03}.jpg").write_bytes(image)
    assert sample_faces(str(tmp_path), 100).num_faces == 200
    few = sample_faces(str(tmp_path), 1 << 20)
    assert few.starts == (0, 192)
    assert few.num_faces == 72


def test_small_faces__are_free_of_light() -> None:
    """Brightness and contrast of a face change nothing; the mirror image's vector is the mirrored one."""
    faces = contact_sheet(0, range(2), 1).reshape(2, 112, 112, 3)
    found = small_faces(faces)
    darker = small_faces((faces // 2 + 20).astype(np.uint8))
    # Half of a gray value is lost by the division, of a deviation of some ten.
    assert np.abs(darker - found).max() < 0.1
    assert np.array_equal(found[:, 1].reshape(2, 32, 32), found[:, 0].reshape(2, 32, 32)[..., ::-1])


def test_fit__neighbors_of_faces_that_were_read_once(tmp_path: Path) -> None:
    """Of a set that is read whole, each face is described once, and neighbors are mined among the same vectors."""
    generator = np.random.default_rng(0)
    for group in range(8):
        face = generator.integers(0, 256, (8, 8, 3)).repeat(14, 0).repeat(14, 1)
        for number in range(20):
            noisy = (face + generator.normal(0, 12, face.shape)).clip(0, 255).astype(np.uint8)
            (tmp_path / f"{group}-{number:02}.jpg").write_bytes(encode_jpeg(noisy, 95))
    calls = []

    def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(images))
        both = np.stack([images, images[:, :, ::-1]], axis=1)[:, :, 7::14, 7::14].mean(axis=-1)
        return (both / 255).reshape(len(images), 2, 64).astype(np.float32)

    found = whitening._fit(describe, 64, WhiteningOptions(str(tmp_path), "all", 4, neighbors=True), "rgb")
    assert sum(calls) == 160
    sample = sample_faces(str(tmp_path), 64)
    described = np.concatenate([describe(sample.faces.read(s, min(s + 64, 160))) for s in sample.starts])
    base = fit_whitening(described.reshape(-1, 64).copy(), 16, "faces")
    expected = discriminate(base, base(torch.from_numpy(described).mean(dim=1)), 4, "faces")
    torch.testing.assert_close(found.matrix, expected.matrix)
    torch.testing.assert_close(found.mean, expected.mean)
