"""The whitening that a finetuning starts with: of the weights file that it starts from, if it is the configured one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.state_dicts import load_weights
from lafs_ray.training.tasks.networks import build_whitening


def whitening_state(
    config: FinetuneConfig, made: Architecture | None, state: Mapping[str, Tensor], path: str
) -> dict[str, NDArray[Any]] | None:
    """Return the whitening as arrays; None if the run has none.

    Args:
        config: of the run.
        made: architecture of the file; None: published.
        state: tensors of its whitening; empty where it has none.
        path: of the file, for the message.

    Raises:
        CheckpointError: the file has none, or it is of another readout or size.
    """
    model = config.model
    network = build_whitening(config)
    if network is None:
        return None
    found = (made.readout, made.whitened_dim) if made is not None and state else None
    if found != (model.readout, model.whitened_dim):
        has = "no whitening" if found is None else f"readout {found[0]}, whitened to {found[1]} numbers"
        settings = "" if found is None else f"set model.readout={found[0]} model.whitened_dim={found[1]}, or "
        raise CheckpointError(
            f"start.transformer={path}",
            found=has,
            expected=f"readout {model.readout}, whitened to {model.whitened_dim} numbers",
            fix=f"{settings}name a file of `lafs whiten`",
        )
    load_weights(network, {**network.state_dict(), **state})
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
