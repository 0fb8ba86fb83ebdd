"""The length of a run in steps, from the number of records of its set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.mixed_faces import MixedFaces, TrainingFaces
from lafs_ray.data.sampler import EpochSampler, PairDraws
from lafs_ray.errors import ConfigError


@dataclass(frozen=True)
class Length:
    """Steps per epoch, in total, and between checkpoints."""

    steps_per_epoch: int
    total_steps: int
    save_every: int

    @property
    def num_epochs(self) -> int:
        """Number of epochs, including an incomplete last one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)


def build_sampler(config: TrainConfig, faces: TrainingFaces, neighbors: PairDraws | None = None) -> EpochSampler:
    """Build the order of a run's records.

    Args:
        config: of the run.
        faces: its set, or sets.
        neighbors: pairs that are drawn in place of single faces.

    Raises:
        ConfigError: the batch is larger than the set, or the sets together.
    """
    if config.batch_size > faces.num_images:
        raise ConfigError(
            "batch_size",
            found=f"{config.batch_size}, but {config.data.named} has {faces.num_images} images",
            expected="a batch no larger than the set",
            fix=f"reduce batch_size to at most {faces.num_images}",
        )
    mix = faces.mix if isinstance(faces, MixedFaces) else None
    return EpochSampler(faces.num_images, config.batch_size, config.run.seed, config.data.chunk_records, mix, neighbors)


def run_length(config: TrainConfig, sampler: EpochSampler) -> Length:
    """Compute the steps of the run and between checkpoints.

    Raises:
        ConfigError: a warm-up is longer than the run.
    """
    per_epoch = sampler.steps_per_epoch
    total = max(config.duration.steps(per_epoch), 1)
    length = Length(per_epoch, total, max(config.checkpoints.every.steps(per_epoch, total), 1))
    if isinstance(config, PretrainConfig):
        _check_fits("dino.teacher_temp.warmup_epochs", config.teacher_warmup_epochs, length.num_epochs, "epochs")
    if isinstance(config, PretrainConfig | FinetuneConfig | LandmarkConfig):
        warmup = config.optim.warmup.steps(per_epoch, total)
        _check_fits("optim.warmup", warmup, total, f"steps ({per_epoch} per epoch)")
    return length


def _check_fits(key: str, warmup: int, run: int, unit: str) -> None:
    if warmup > run:
        raise ConfigError(
            key,
            found=f"{warmup} of a run of {run} {unit}",
            expected="a warm-up no longer than the run",
            fix=f"reduce {key}, or increase duration",
        )
