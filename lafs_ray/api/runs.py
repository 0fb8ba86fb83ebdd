"""Train and evaluate from a script or notebook, without Ray where `compute.workers` is 0."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lafs_ray.api.face_model import FaceModel, load
from lafs_ray.cli.train import launch
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import apply_overrides, resolve
from lafs_ray.config.presets import config_file
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import TrainConfig
from lafs_ray.config.yaml_text import read_yaml
from lafs_ray.data.eval_sets import open_labeled, open_pairs
from lafs_ray.data.images import ColorOrder
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.evaluation.neighbors import check_possible
from lafs_ray.evaluation.protocols import Embeddings, evaluate_identities, evaluate_pairs, local_embedding
from lafs_ray.evaluation.results import EvalResult
from lafs_ray.training.checkpoint.metrics_log import read_metrics

Faces = str | Path | Mapping[str, float] | Mapping[Path, float]


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Args:
        folder: its directory, a path or a URI.
        config: its settings.
    """

    folder: str
    config: TrainConfig

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl."""
        return read_metrics(filesystem.join(self.folder, "metrics.jsonl"))

    def model(self, device: str = "cpu") -> FaceModel:
        """Load the trained network: of a pretraining run, the teacher."""
        return load(self.folder, device=device)


def pretrain(*, data: Faces, out: str | Path, preset: str | None = None, **settings: Any) -> Run:
    """Pretrain without labels, or continue the run in `out`.

    Args:
        data: the faces, as `data.path`; or several sets by their shares, as `data.mix`:
            `{"ms1mv3": 0.7, "photos": 0.3}`.
        out: the run's folder: its name is `run.name`, its parent `run.storage`.
        preset: a preset such as debug, or a YAML file; None: the defaults, which are the `lafs` recipe.
        settings: that differ, by section (`optim={"lr": 1e-3}`) or by dotted key (`**{"optim.lr": 1e-3}`); those of
            section data by dotted key.

    Raises:
        UserError: an error in the settings or the data.
    """
    return _train(PretrainConfig, "pretrain", data, str(out), preset, settings)


def finetune(*, data: Faces, out: str | Path, preset: str | None = None, **settings: Any) -> Run:
    """Train on labels, or continue the run in `out`; arguments as of `pretrain`, defaults as of stage 1."""
    return _train(FinetuneConfig, "finetune", data, str(out), preset, settings)


def evaluate(
    model: FaceModel | str | Path,
    *,
    pairs: Sequence[str | Path] | str | Path = (),
    identities: Sequence[str | Path] | str | Path = (),
    ks: Sequence[int] = (1,),
    color_order: ColorOrder = "rgb",
) -> list[EvalResult]:
    """Evaluate a frozen network on pair files and labeled sets.

    Args:
        model: a model, or what `load` takes.
        pairs: pair files (.bin).
        identities: labeled sets (.rec), for nearest neighbors.
        ks: numbers of neighbors.
        color_order: of the decoded images.

    Returns:
        A result for each input, with rows of metrics; printing one shows its table.

    Raises:
        UserError: an input is missing or damaged, or none is named.
    """
    loaded = model if isinstance(model, FaceModel) else load(model)
    device = "cuda" if next(loaded.parameters()).is_cuda else "cpu"
    embeddings: Embeddings = {"trained network": local_embedding(loaded.network, device)}  # type: ignore[arg-type]
    results = [evaluate_pairs(open_pairs(path, color_order), embeddings) for path in _paths(pairs)]
    for path in _paths(identities):
        faces = open_labeled(path, color_order)
        check_possible(faces.labels, ks)
        results.append(evaluate_identities(faces, embeddings, ks=ks))
    if not results:
        raise ConfigError("evaluate", found="no input", expected="pairs or identities", fix="name a .bin or .rec file")
    return results


def _paths(given: Sequence[str | Path] | str | Path) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [*map(str, given)]


def _train(
    kind: type[TrainConfig], task: str, data: Faces, out: str, preset: str | None, settings: Mapping[str, Any]
) -> Run:
    folder = filesystem.absolute(out)
    tree = {} if preset is None else read_yaml(config_file(task, preset))
    where = {**_faces(data), "run.name": os.path.basename(folder), "run.storage": filesystem.parent(folder)}
    config = resolve(kind, apply_overrides(tree, {**_dotted(settings), **where}), f"lafs_ray.{task}")
    launch(config)
    return Run(folder, config)


def _faces(data: Faces) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return {"data.mix": [{"path": str(path), "share": share} for path, share in data.items()]}
    return {"data.path": str(data)}


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by section as dotted keys, so that a section's other keys stay."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
