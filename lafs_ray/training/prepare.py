"""Fail fast: the inputs of a run are validated before workers are started.

`check_run` opens the sets, samples subsets and reads pretrained weights; `prepare_run` also claims the run's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from lafs_ray.config import MIX_PERIOD
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.data.face_set import FaceSet
from lafs_ray.data.io import filesystem
from lafs_ray.data.mixed_faces import MixedFaces, TrainingFaces
from lafs_ray.data.neighbor_pairs import read_neighbors
from lafs_ray.data.sampler import EpochSampler, PairDraws
from lafs_ray.data.subset import write_subset
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.checkpoint.run_description import MixedSetSize, Origin
from lafs_ray.training.checkpoint.run_dir import RunDir
from lafs_ray.training.fingerprint import crop_fingerprint
from lafs_ray.training.input_pipeline import Preprocessor
from lafs_ray.training.monitoring.trackers import require_trackers
from lafs_ray.training.open_sets import join_sets, open_sets
from lafs_ray.training.run_length import Length, build_sampler, run_length
from lafs_ray.training.tasks.build import build_transform
from lafs_ray.training.tasks.build_landmark_cache import with_cached_landmarks
from lafs_ray.training.tasks.continue_pretraining import adopt_settings, with_start
from lafs_ray.training.tasks.distillation import with_frozen
from lafs_ray.training.tasks.finetune import require_blocks
from lafs_ray.training.tasks.init_weights import InitWeights, as_tensors, load_init_weights
from lafs_ray.training.tasks.landmarks import training_images


@dataclass(frozen=True)
class RunInputs:
    """The validated inputs of a run, which are sent to every worker.

    Args:
        config: the run's configuration.
        faces: the opened set, or sets; of a few-shot run, the subset.
        sampler: order of its records.
        length: of the run.
        num_classes: identities of the whole sets of a labeled run.
        num_identities: identities among `faces`; None if a set does not list them.
        init_weights: weights from other runs.
        extend: whether the run in the folder may become longer, and its schedule another.
    """

    config: TrainConfig
    faces: TrainingFaces
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

    @property
    def sets(self) -> tuple[FaceSet, ...]:
        """The sets that `faces` are made of."""
        faces = self.faces
        return tuple(one.faces for one in faces.sets) if isinstance(faces, MixedFaces) else (faces,)

    def mixed_sets(self) -> tuple[MixedSetSize, ...]:
        """Return size and passes of each set of a mix; none of a single set."""
        if not isinstance(self.faces, MixedFaces):
            return ()
        passes = self.faces.mix.passes(self.length.total_steps * self.config.batch_size)
        return tuple(
            MixedSetSize(one.path, one.faces.num_images, one.count / MIX_PERIOD, times)
            for one, times in zip(self.faces.sets, passes, strict=True)
        )

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
        start, neighbors = self.init_weights, self.sampler.neighbors
        pairs = None if neighbors is None else neighbors.pairs.hash
        return Origin(start.landmarks_hash, start.transformer_hash, pairs, asdict(self.length), self.mixed_sets())


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
            write_subset(uri, inputs.sets)
    return inputs


def check_run(config: TrainConfig, *, extend: bool = False) -> RunInputs:
    """Open the sets, sample their subsets, read pretrained weights and validate all of them.

    Args:
        config: of the run; what it takes from the checkpoint of `start.student` is filled in.
        extend: whether the run in the folder may become longer, and its schedule another.

    Raises:
        UserError: one of them is missing, damaged or contradicts the configuration.
    """
    if isinstance(config, PretrainConfig):
        config = adopt_settings(config)
    configured_size(config.model)  # of a name that timm has, whatever starts from scratch
    if isinstance(config, FinetuneConfig):
        require_blocks(config)
    opened = open_sets(config)
    require_trackers(config)
    init_weights = load_init_weights(config)
    if isinstance(config, PretrainConfig):
        init_weights = with_frozen(config, with_start(config, init_weights))
    faces = join_sets(config.data, _with_landmarks(config, opened.faces, init_weights))
    sampler = build_sampler(config, faces, _neighbors(config, faces))
    length = run_length(config, sampler)
    return RunInputs(config, faces, sampler, length, opened.num_classes, opened.num_identities, init_weights, extend)


def _neighbors(config: TrainConfig, faces: TrainingFaces) -> PairDraws | None:
    """Read the pairs of a pretraining run that has some."""
    if not isinstance(config, PretrainConfig) or config.neighbors.pairs is None:
        return None
    pairs = read_neighbors(config.neighbors.pairs, faces.fingerprint, faces.num_images)
    return PairDraws(pairs, config.neighbors.share)


def _with_landmarks(config: TrainConfig, opened: Sequence[FaceSet], init_weights: InitWeights) -> list[FaceSet]:
    """Return the sets with cached landmarks where the run uses them, and without images that it holds back."""
    sets = []
    for one, faces in zip(config.data.sets, opened, strict=True):
        found = faces
        if isinstance(config, PretrainConfig | LandmarkConfig):
            found = with_cached_landmarks(config, one, found, init_weights)
        if isinstance(config, LandmarkConfig):
            found = training_images(config, one.path, found)
        sets.append(found)
    return sets
