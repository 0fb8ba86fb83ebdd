"""A run whose transformer starts from timm's own weights of a ViT, given as a local file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.state_dicts import load_weights
from lafs_ray.models.checkpoints.timm_weights import TokenLayout, adapt_timm_weights
from lafs_ray.models.timm_transformer import configured_size
from lafs_ray.training.tasks.networks import build_transformer, seed_weights


def start_from_timm(
    config: PretrainConfig | FinetuneConfig, state: Mapping[str, Tensor], source: str, landmarks: Tensor | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt timm's weights to the configured student.

    Args:
        config: of the run.
        state: under timm's names.
        source: the setting and the file, for messages.
        landmarks: positions [N, 2] in pixels of a template, or the mean of given ones; None: of a CNN, or over the
            grid.

    Returns:
        All tensors of the student, new ones from the run's seed; and what became of each part.

    Raises:
        CheckpointError: the student is another, or the file is of no plain ViT.
    """
    model = config.model
    if model.student is None:
        raise CheckpointError(
            source,
            found="weights of a ViT under timm's names",
            expected="those of the fViT, as model.student is not set",
            fix="set model.student=timm/<the model's name>",
        )
    grid = config.landmarks.source == "grid"
    layout = TokenLayout(model.num_landmarks, model.patch_size, model.token_features, grid, landmarks)
    found, report = adapt_timm_weights(state, configured_size(model), layout, source)
    seed_weights(config.run.seed)
    network = build_transformer(config)
    try:
        load_weights(network, {**_new(network.state_dict(), found), **found})
    except CheckpointError as error:
        raise CheckpointError(
            f"{source}: {error.subject}",
            found=error.found,
            expected=error.expected,
            fix=f"name weights of {model.student}, or set model.student to the model that the file is of",
        ) from None
    taken = sum(name in found for name in network.state_dict())
    return network.state_dict(), [f"{taken} tensors taken from timm's", *report]


def _new(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the adapted weights leave to a new network: the parts that depend on tokens and their positions."""
    parts = ("pos_embedding", "patch_to_embedding.weight", "patch_to_embedding.bias")
    return {name: own[name] for name in parts if name not in found}
