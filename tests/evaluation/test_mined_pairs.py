from __future__ import annotations

import numpy as np
import pytest
import torch

from lafs_ray.errors import ConfigError
from lafs_ray.evaluation import mined_pairs
from lafs_ray.evaluation.mined_pairs import discriminate, mine_pairs, nearest
from lafs_ray.models.readout import Whitening

IDENTITIES, PHOTOS, DIM = 12, 40, 20


def faces(noise: float = 1.0) -> tuple[torch.Tensor, np.ndarray]:
    """Photographs of identities that differ by much in the first five directions, whoever is shown."""
    generator = np.random.default_rng(0)
    identities = generator.normal(size=(IDENTITIES, DIM))
    identities[:, :5] = 0
    labels = np.repeat(np.arange(IDENTITIES), PHOTOS)
    photos = identities[labels] + 0.05 * generator.normal(size=(len(labels), DIM))
    photos[:, :5] += noise * generator.normal(size=(len(labels), 5))
    order = generator.permutation(len(labels))
    return torch.from_numpy(photos[order]).float(), labels[order]


def test_nearest__by_cosine_without_the_face_itself() -> None:
    """Lengths do not count, and no face is its own neighbor."""
    vectors = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 9.0]])
    assert nearest(vectors, 1).tolist() == [[1], [0], [3], [2]]


@pytest.mark.parametrize("columns", [1, 7, 64, 480])
def test_nearest__of_any_blocks(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Blocks of queries and of others change nothing: the nearest of all are found, whichever blocks they are in."""
    vectors, _ = faces()
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    cosines.fill_diagonal_(-2)
    expected = cosines.topk(30).indices.sort(dim=1).values
    before = vectors.clone()
    monkeypatch.setattr(mined_pairs, "_ROWS", 100)
    monkeypatch.setattr(mined_pairs, "_COLUMNS", columns)
    assert (np.sort(nearest(vectors), axis=1) == expected.numpy()).all()
    assert torch.equal(vectors, before)


@pytest.mark.gpu
def test_nearest__on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU finds faces as near as a CPU does, in blocks of its own."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    vectors, _ = faces()
    monkeypatch.setattr(mined_pairs, "_GPU_ROWS", 100)
    monkeypatch.setattr(mined_pairs, "_COLUMNS", 64)
    directions = torch.nn.functional.normalize(vectors, dim=1)

    def cosines(numbers: np.ndarray) -> torch.Tensor:
        return torch.einsum("nk,nck->nc", directions, directions[torch.from_numpy(numbers).long()])

    found, expected = cosines(nearest(vectors, device=torch.device("cuda"))), cosines(nearest(vectors))
    # Sums of 20 products in float32: ties of a few 1e-7 may be broken otherwise.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_nearest__beyond_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that says for how much it has to have room, no traceback."""

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(mined_pairs, "_nearest_to", full)
    with pytest.raises(ConfigError, match="too little memory for 480 faces of 20 numbers"):
        nearest(faces()[0])


def test_mine_pairs__are_of_one_person_and_in_both_orders() -> None:
    """Of well separated identities, all pairs show one person, and (i, j) comes with (j, i)."""
    vectors, labels = faces(noise=0.2)
    first, second = mine_pairs(vectors, 16)
    assert len(first) > 1000
    assert (labels[first] == labels[second]).all()
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == set(
        zip(second.tolist(), first.tolist(), strict=True)
    )


def test_mine_pairs__of_too_few_faces() -> None:
    """Among no more faces than neighbors there are no pairs."""
    assert [len(part) for part in mine_pairs(torch.randn(30, 4), 16)] == [0, 0]


def test_discriminate__weakens_what_pairs_differ_in() -> None:
    """Directions in which photographs of a person differ count less than before; identities are found apart better."""
    vectors, labels = faces(noise=0.6)
    whitening = Whitening(DIM, DIM)
    whitening.matrix.copy_(torch.eye(DIM))
    found = discriminate(whitening, vectors, 15, "x")
    strength = found.matrix.norm(dim=1)
    assert strength[:5].max() < 0.5 * strength[5:].min()

    def same_nearest(embedded: torch.Tensor) -> float:
        return float((labels[nearest(embedded, 1)[:, 0]] == labels).mean())

    assert same_nearest(found(vectors)) == 1.0
    assert same_nearest(vectors[:, :8]) < 0.9


def test_discriminate__of_single_photographs() -> None:
    """Faces without neighbors are refused, with the number of pairs."""
    alone = torch.eye(200)
    with pytest.raises(ConfigError, match="pairs of neighbors among 200 faces of the set"):
        discriminate(Whitening(200, 200), alone + 1e-3 * torch.randn(200, 200), 10, "the set")
