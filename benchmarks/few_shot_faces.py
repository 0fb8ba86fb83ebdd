"""Sets of `benchmarks.few_shot`: synthetic faces, or those of AT&T."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lafs_ray.data import recordio
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.synthetic import datasets


def copy_labels_below(source: str, target: Path, limit: int) -> str:
    """Write a set with only the records of the first labels; return its path."""
    faces = open_faces(source)
    if not target.exists():
        chosen = np.flatnonzero(faces.labels() < limit)
        rows = faces.read(chosen)
        with recordio.RecordWriter(str(target)) as writer:
            for key, (label, image) in enumerate(zip(rows.label, rows.images, strict=True)):
                header = recordio.Header(flag=0, label=float(label), id=key, id2=0)
                writer.write(key, recordio.pack(header, image))
    return str(target)


def generated_faces(work: Path) -> dict[str, str]:
    """Write the sets of the main table; identities of different seeds are different."""
    many = {"num_identities": 600, "images_per_identity": 20, "seed": 0}
    datasets.write_faces(str(work / "faces"), **many, workers=2)
    few = {"num_identities": 100, "images_per_identity": 10, "seed": 12}
    datasets.write_faces(str(work / "few"), **few, workers=2)
    pairs = str(work / "pairs.bin")
    datasets.write_pair_file(pairs, num_pairs=1000, identities=range(600, 750), seed=0, workers=2)
    return {
        "pretraining_faces": str(work / "faces" / "train.rec"),
        "labeled_faces": str(work / "few" / "train.rec"),
        "pairs": pairs,
    }


def att_faces(work: Path, folder: str) -> dict[str, str]:
    """Return the sets of AT&T: labels 0-29 for training, pairs of 30-39 for evaluation."""
    faces = copy_labels_below(filesystem.join(folder, "train.rec"), work / "att.rec", 30)
    pairs = filesystem.join(folder, "att_10id.bin")
    return {"pretraining_faces": faces, "labeled_faces": faces, "pairs": pairs}
