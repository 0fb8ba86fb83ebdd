from __future__ import annotations

import pytest

from lafs_ray.data.face_set import open_faces
from lafs_ray.errors import ConfigError
from lafs_ray.training.run_length import build_sampler, run_length
from tests.training.builds import SAMPLER, finetune, pretrain
from tests.training.faces import tiny


def test_run_length__in_steps() -> None:
    """Epochs, steps and shares of the run are counted in optimizer steps of this set."""
    length = run_length(pretrain("duration=2.5 epochs", "checkpoints.every=0.5 run"), SAMPLER)
    assert (length.steps_per_epoch, length.total_steps, length.save_every) == (15, 38, 19)
    assert length.num_epochs == 3
    short = run_length(pretrain("duration=3 steps", "checkpoints.every=0.001 epochs"), SAMPLER)
    assert (short.total_steps, short.save_every, short.num_epochs) == (3, 1, 1)


def test_build_sampler__batch_larger_than_the_set(face_set_path: str) -> None:
    """A batch that no epoch can fill is refused with both numbers."""
    config = tiny("nowhere", face_set_path, "batch_size=128")
    with pytest.raises(ConfigError) as raised:
        build_sampler(config, open_faces(face_set_path))
    assert raised.value.subject == "batch_size"
    assert "128" in raised.value.found
    assert "120 images" in raised.value.found


@pytest.mark.parametrize(
    ("settings", "key", "numbers"),
    [
        (["duration=20 steps", "optim.warmup=2 epochs"], "optim.warmup", ("30", "20 steps")),
        (
            ["duration=20 steps", "dino.teacher_temp.warmup_epochs=3"],
            "dino.teacher_temp.warmup_epochs",
            ("3", "2 epochs"),
        ),
    ],
)
def test_run_length__warm_up_longer_than_the_run(settings: list[str], key: str, numbers: tuple[str, str]) -> None:
    """A warm-up that the set's size makes too long is refused with both lengths."""
    with pytest.raises(ConfigError) as raised:
        run_length(pretrain(*settings), SAMPLER)
    assert raised.value.subject == key
    for number in numbers:
        assert number in raised.value.found


def test_finetune__warm_up_longer_than_the_run() -> None:
    """Stage 1 checks its warm-up as well."""
    with pytest.raises(ConfigError, match="optim.warmup"):
        run_length(finetune("duration=20 steps", "optim.warmup=2 epochs"), SAMPLER)
