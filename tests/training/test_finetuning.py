from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.config.finetune import Augmentation
from lafs_ray.errors import ConfigError
from lafs_ray.training.build import build_cut
from tests.training.builds import NO_START, built, finetune
from tests.training.faces import face_jpegs, pixels_of

AUGMENTATIONS = {"flip": "0.0", "crop_area": "[0.2, 0.3]", "jitter": "0.9"}


def test_labelled_cut__every_key_of_augmentation_counts() -> None:
    """Changing any field of augmentation changes the view of a labelled face, labels stay."""
    assert AUGMENTATIONS.keys() == Augmentation.model_fields.keys()
    count = 6
    numbers = np.arange(count)
    faces = {
        "image": np.stack([pixels_of(jpeg) for jpeg in face_jpegs(count)]),
        "epoch": np.zeros(count, np.int64),
        "shard": np.zeros(count, np.int64),
        "key": numbers,
        "label": numbers * 2,
    }
    base = build_cut(finetune(), NO_START)(faces)
    assert base["images"].shape == (count, 112, 112, 3)
    assert base["label"].tolist() == (numbers * 2).tolist()
    for name, value in AUGMENTATIONS.items():
        other = build_cut(finetune(f"augmentation.{name}={value}"), NO_START)(faces)
        assert not np.array_equal(other["images"], base["images"]), name


@pytest.mark.parametrize("area", ["[0.9, 0.2]", "[0.0, 1.0]", "[0.5, 1.5]"])
def test_augmentation__impossible_area(area: str) -> None:
    """A crop that is empty, larger than the image or upside down is refused with its numbers."""
    with pytest.raises(ConfigError, match=r"crop_area: \[0\.\d, \d\.\d\]"):
        finetune(f"augmentation.crop_area={area}")


def test_schedules__supervised() -> None:
    """The rate is the configured one, unscaled, one step after the warm-up; decay is constant."""
    values = built(
        finetune("duration=4 epochs", "optim.warmup=1 epochs", "optim.lr=2e-3"), 12
    ).values
    assert [values(step)["lr"] for step in (0, 3, 15)] == pytest.approx([0, 4e-4, 2e-3])
    assert {values(step)["weight_decay"] for step in range(60)} == {0.1}
