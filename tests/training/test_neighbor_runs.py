"""Runs with pairs of neighbors: what reaches the step, the same run again, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lafs_ray.cli.train import dry_run
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.neighbor_pairs import NeighborPairs, write_neighbors
from lafs_ray.data.sampler import EpochSampler, PairDraws
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.input_pipeline import Columns, Preprocessor, StepBatch, local_stream
from lafs_ray.training.prepare import check_run, prepare_run
from tests.training.faces import NO_IMAGE, run, tiny, write_face_set

FIRST = np.concatenate([np.arange(40), np.arange(60, 100)])
PAIRS = NeighborPairs.from_pairs(FIRST, np.where(FIRST < 60, FIRST + 60, FIRST - 60))
OTHER = NeighborPairs.from_pairs(np.array([0, 1]), np.array([1, 0]))


def write_pairs(path: Path, faces: str, pairs: NeighborPairs = PAIRS) -> str:
    opened = open_faces(faces)
    write_neighbors(str(path), pairs, opened.fingerprint, opened.num_images, {})
    return str(path)


def stream(path: str, share: float) -> list[StepBatch]:
    faces = open_faces(path)
    sampler = EpochSampler(faces.num_images, 8, 5, chunk_records=4, neighbors=PairDraws(PAIRS, share))

    def as_it_is(columns: Columns) -> Columns:
        return dict(columns)

    return list(local_stream(faces, sampler, Preprocessor(faces, "rgb", 5, as_it_is), 0, 20))


def test_batches__say_which_rows_are_pairs(face_set_path: str) -> None:
    """Records 1 … 40 and 61 … 100 are neighbors, 60 apart; paired rows are such two, the others come once an epoch."""
    batches = stream(face_set_path, 0.5)
    singles: list[int] = []
    for batch in batches:
        keys, paired = batch.columns["key"], batch.columns["paired"]
        assert paired.dtype == np.bool_
        assert (abs(np.diff(keys[paired].reshape(-1, 2), axis=1)) == 60).all()
        assert (batch.columns["epoch"][paired] == (batch.step * 8 + np.arange(8))[paired]).all()
        assert (batch.columns["epoch"][~paired] == batch.epoch).all()
        singles += keys[~paired].tolist() if batch.epoch == 0 else []
    assert len(singles) == len(set(singles))
    assert 0.3 < np.mean([batch.columns["paired"] for batch in batches]) < 0.7


def test_batches__of_a_damaged_face_have_its_partner_alone(tmp_path: Path) -> None:
    """What replaces a damaged record is no neighbor of its partner's."""
    write_face_set(tmp_path / "a.rec", replaced={7: NO_IMAGE})
    found = 0
    for batch in stream(str(tmp_path / "a.rec"), 1.0):
        keys, paired = batch.columns["key"], batch.columns["paired"]
        partner_of_damaged = np.flatnonzero(keys == 68)
        found += len(partner_of_damaged) if batch.skipped else 0
        if batch.skipped:
            assert not paired[partner_of_damaged].any()
            assert not paired[partner_of_damaged ^ 1].any()
        assert (~paired).sum() == 2 * len(partner_of_damaged)
    assert found > 0


def test_run__with_neighbors_continues_bit_by_bit(tmp_path: Path, face_set_path: str) -> None:
    """Killed and continued, a run's metrics are those of one that was not; and others than without neighbors."""
    settings = [f"neighbors.pairs={write_pairs(tmp_path / 'pairs.safetensors', face_set_path)}", "dino.koleo=1"]
    often = ["checkpoints.every=2 steps", "log.every_steps=1"]
    whole = run(tiny(tmp_path / "whole", face_set_path, *settings, *often))
    run(tiny(tmp_path / "parts", face_set_path, *settings, *often), killed_at=3)
    # Where the file lies does not bind the run.
    moved = write_pairs(tmp_path / "moved.safetensors", face_set_path)
    parts = run(tiny(tmp_path / "parts", face_set_path, f"neighbors.pairs={moved}", "dino.koleo=1", *often))
    assert parts.exact == whole.exact
    alone = run(tiny(tmp_path / "alone", face_set_path, "dino.koleo=1", *often))
    assert alone.exact != whole.exact


def test_dry_run__says_what_pairs_there_are(
    tmp_path: Path, face_set_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many, of how many faces, and how often each is drawn: 4 steps of 8 faces, all in pairs, of 80."""
    pairs = write_pairs(tmp_path / "pairs.safetensors", face_set_path)
    dry_run(check_run(tiny(tmp_path, face_set_path, f"neighbors.pairs={pairs}", "neighbors.share=1")))
    assert (
        "neighbors: 40 pairs of 80 of 120 faces, 100% of each batch on average, a face 0.4 times in the run on "
        "average; 40 have none"
    ) in capsys.readouterr().out


def test_run__continues_with_its_own_pairs_only(tmp_path: Path, face_set_path: str) -> None:
    """Other pairs, another share, or none are another run; the message says which."""
    file = tmp_path / "pairs.safetensors"
    settings = f"neighbors.pairs={write_pairs(file, face_set_path)}"
    prepare_run(tiny(tmp_path, face_set_path, settings))
    prepare_run(tiny(tmp_path, face_set_path, settings))
    with pytest.raises(ConfigError, match=r"neighbors\.share"):
        prepare_run(tiny(tmp_path, face_set_path, settings, "neighbors.share=0.25"))
    with pytest.raises(ConfigError, match=r"neighbors\.pairs: the file holds other pairs now"):
        prepare_run(tiny(tmp_path, face_set_path))
    write_pairs(file, face_set_path, OTHER)
    with pytest.raises(ConfigError, match=r"neighbors\.pairs: the file holds other pairs now"):
        prepare_run(tiny(tmp_path, face_set_path, settings))


def test_run__with_pairs_of_another_set(tmp_path: Path, face_set_path: str) -> None:
    """Numbers of another set's faces are refused before anything is written."""
    write_face_set(tmp_path / "other.rec", num_identities=11)
    pairs = write_pairs(tmp_path / "pairs.safetensors", str(tmp_path / "other.rec"), OTHER)
    with pytest.raises(DataError, match="another set of 110 images"):
        prepare_run(tiny(tmp_path / "runs", face_set_path, f"neighbors.pairs={pairs}"))
    assert not (tmp_path / "runs").exists()
