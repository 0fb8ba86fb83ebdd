"""Fail fast: the inputs of a run are validated before workers are started.

`check_run` opens the set, samples a subset and reads pretrained weights; `prepare_run` also claims the run's folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.config import IMAGE_SIZE
from lafs_ray.config.finetune import FinetuneConfig, Subset
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.classes import number_classes
from lafs_ray.data.face_set import FaceSet, open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.data.subset import fraction_of_images, images_per_identity, write_subset
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.training.checkpoint.run_dir import Origin, RunDir
from lafs_ray.training.fingerprint import crop_fingerprint
from lafs_ray.training.input_pipeline import Preprocessor
from lafs_ray.training.monitoring.trackers import require_trackers
from lafs_ray.training.run_length import Length, build_sampler, run_length
from lafs_ray.training.tasks.build import build_transform
from lafs_ray.training.tasks.build_landmark_cache import with_cached_landmarks
from lafs_ray.training.tasks.continue_pretraining import adopt_settings, with_start
from lafs_ray.training.tasks.init_weights import InitWeights, as_tensors, load_init_weights
from lafs_ray.training.tasks.landmarks import training_images


@dataclass(frozen=True)
class RunInputs:
    """The validated inputs of a run, which are sent to every worker.

    Args:
        config: the run's configuration.
        faces: the opened set; of a few-shot run, its subset.
        sampler: order of its records.
        length: of the run.
        num_classes: identities of the whole set of a labeled run.
        num_identities: identities among `faces`; None if the set does not list them.
        init_weights: weights from other runs.
        extend: whether the run in the folder may become longer, and its schedule another.
    """

    config: TrainConfig
    faces: FaceSet
    sampler: EpochSampler
    length: Length
    num_classes: int | None
    num_identities: int | None
    init_weights: InitWeights
    extend: bool = False

    def preprocessor(self) -> Preprocessor:
        """Return what decodes and transforms; every ingest process builds its own."""
        config = self.config
        transform = build_transform(config, self.init_weights)
        source = self.faces, config.data.color_order, config.run.seed
        return Preprocessor(*source, transform, self.num_classes, crop_fingerprint())

    def frozen_landmarks(self) -> dict[str, Tensor] | None:
        """Return the landmark CNN of a pretraining run; None if the run trains it or has none."""
        if not isinstance(self.config, PretrainConfig) or self.init_weights.landmarks is None:
            return None
        return as_tensors(self.init_weights.landmarks)

    def folder(self) -> RunDir:
        """Return the run's folder."""
        return RunDir(self.config, self.faces.fingerprint, extend=self.extend)

    def origin(self) -> Origin:
        """Return the hashes of the weights read, and the run's length."""
        start = self.init_weights
        return Origin(start.landmarks_hash, start.transformer_hash, asdict(self.length))


def prepare_run(config: TrainConfig, *, extend: bool = False) -> RunInputs:
    """Run `check_run`, then claim the run's folder and record the subset there.

    Raises:
        UserError: as in `check_run`, or the folder belongs to another run.
    """
    inputs = check_run(config, extend=extend)
    config, folder = inputs.config, inputs.folder()
    folder.claim(inputs.origin())
    if isinstance(config, FinetuneConfig) and config.data.subset is not None:
        uri = filesystem.join(folder.uri, "subset.parquet")
        if not filesystem.exists(uri):
            write_subset(uri, inputs.faces)
    return inputs


def check_run(config: TrainConfig, *, extend: bool = False) -> RunInputs:
    """Open the set, sample its subset, read pretrained weights and validate all of them.

    Args:
        config: of the run; what it takes from the checkpoint of `start.student` is filled in.
        extend: whether the run in the folder may become longer, and its schedule another.

    Raises:
        UserError: one of them is missing, damaged or contradicts the configuration.
    """
    if isinstance(config, PretrainConfig):
        config = adopt_settings(config)
    color_order = config.data.color_order
    faces = open_faces(config.data.path, color_order, IMAGE_SIZE)
    require_trackers(config)
    num_classes = None
    num_identities = faces.num_identities
    if isinstance(config, FinetuneConfig):
        labeled = number_classes(config.data.path, faces)
        faces, labels, num_classes = labeled.faces, labeled.labels, labeled.num_classes
        _check_labels(config, labels)
        if config.compute.workers > num_classes:
            raise ConfigError(
                "compute.workers",
                found=f"{config.compute.workers} workers for {num_classes} identities",
                expected="at least one identity per worker, as workers share the class centers",
                fix=f"reduce compute.workers to at most {num_classes}",
            )
        if config.data.subset is not None:
            chosen = chosen_images(config.data.subset, faces, labels)
            faces, labels = faces.subset(chosen), labels[chosen]
        num_identities = len(np.unique(labels[labels >= 0]))
    init_weights = load_init_weights(config)
    if isinstance(config, PretrainConfig):
        init_weights = with_start(config, init_weights)
    if isinstance(config, PretrainConfig | LandmarkConfig):
        faces = with_cached_landmarks(config, faces, init_weights)
    if isinstance(config, LandmarkConfig):
        faces = training_images(config, faces)
    sampler = build_sampler(config, faces)
    length = run_length(config, sampler)
    return RunInputs(config, faces, sampler, length, num_classes, num_identities, init_weights, extend)


def chosen_images(subset: Subset, faces: FaceSet, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the images that a few-shot run trains on, ascending.

    Raises:
        DataError: identities have too few images.
    """
    if subset.images_per_identity is not None:
        count, short = subset.images_per_identity, subset.short_identities
        return images_per_identity(faces, labels, count, subset.seed, short)
    assert subset.fraction is not None, "the configuration requires one of the two"
    return fraction_of_images(faces, subset.fraction, subset.seed, subset.order)


def _check_labels(config: TrainConfig, labels: NDArray[np.int64]) -> None:
    # Records without a label are damaged ones: `Preprocessor` replaces and reports them.
    unlabeled = int((labels < 0).sum())
    if unlabeled == len(labels):
        raise DataError(
            config.data.path,
            found=f"no labels: none of {len(labels)} records has an identity",
            expected="labeled faces; stages 1 and 3 learn from identities",
            fix="without labels, start with stage 2, on landmarks of one of three kinds (docs/routes.md): fixed ones, "
            "lafs pretrain lafs data.path=… landmarks.source=template; another tool's, lafs cache-landmarks --from …; "
            "or those of a CNN that learns them on synthetic faces, lafs train-landmarks",
        )
    if unlabeled > config.data.max_bad_records:
        raise DataError(
            config.data.path,
            found=f"{unlabeled} of {len(labels)} records have no label",
            expected=f"a label in all but {config.data.max_bad_records} records (data.max_bad_records)",
            fix="give each identity a number from 0, or leave those records out",
        )
