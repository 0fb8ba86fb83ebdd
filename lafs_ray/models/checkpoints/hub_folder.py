"""A network as a Hugging Face folder: config.json, model.safetensors, and the model card README.md.

model.safetensors is a weights file, whose header describes it; config.json repeats the description for readers and for
tools that rewrite safetensors without a header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from lafs_ray.data.io import filesystem
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.architecture import Architecture, require_fit
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, describe_network, encode_weights, read_weights
from lafs_ray.models.checkpoints.state_dicts import published_state, read_checkpoint

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_MODEL_TYPE = "lafs_ray"

CITATION = """\
@inproceedings{sun2024lafs,
  title     = {LAFS: Landmark-based Facial Self-supervised Learning for Face Recognition},
  author    = {Sun, Zhonglin and Feng, Chen and Patras, Ioannis and Tzimiropoulos, Georgios},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024}
}"""


@dataclass(frozen=True)
class Card:
    """What the model card says besides architecture and input.

    Args:
        license: an identifier of the Hub, such as mit; None leaves a line to fill in.
        data: what the network was trained on, in a sentence.
        metrics: figures by name, such as {"LFW accuracy": 0.997}.
        notes: text added at the end.
    """

    license: str | None = None
    data: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""


def write_hub_folder(folder: str, weights: NetworkWeights, card: Card, *, force: bool = False) -> None:
    """Write the three files of a folder, each atomically.

    Raises:
        DataError: a file exists and `force` is false, or the folder cannot be written to.
    """
    weights = weights.without_heads()
    config = {
        "model_type": _MODEL_TYPE,
        "architecture": asdict(weights.architecture),
        "input": {k: v for k, v in describe_network(weights).items() if k not in ("architecture", "weights_hash")},
        "training": dict(weights.settings or {}),
    }
    contents = {
        WEIGHTS: encode_weights(weights),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        CARD: _card_text(weights, card).encode(),
    }
    for name in contents:
        filesystem.require_output(filesystem.join(folder, name), force=force)
    for name, content in contents.items():
        with filesystem.atomic_write(filesystem.join(folder, name)) as file:
            file.write(content)


def is_hub_folder(path: str) -> bool:
    """Return whether a path is such a folder on this machine."""
    return os.path.isfile(os.path.join(path, CONFIG)) and os.path.isfile(os.path.join(path, WEIGHTS))


def read_hub_folder(folder: str) -> NetworkWeights:
    """Read a folder; config.json gives the architecture where the weights have no description of their own.

    Raises:
        CheckpointError: a file is missing, damaged, of another program, or the two descriptions differ.
    """
    path = filesystem.join(folder, CONFIG)
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if config["model_type"] != _MODEL_TYPE:
            raise ValueError(f"model_type {config['model_type']!r}")
        architecture = TypeAdapter(Architecture).validate_python(config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            path,
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            expected="the config.json that lafs_ray writes",
            fix="save the network again with save_pretrained, or `lafs export --formats huggingface`",
        ) from None
    uri = filesystem.join(folder, WEIGHTS)
    weights = read_weights(uri)
    if weights is None:
        state = published_state(read_checkpoint(uri))
        require_fit(architecture, state.backbone, uri)
        return NetworkWeights(architecture, state, uri)
    if weights.architecture != architecture:
        raise CheckpointError(
            path,
            found="; ".join(architecture.lines()),
            expected="; ".join(weights.architecture.lines()),
            fix="both files have to be of the same network: save it again",
        )
    return weights


def _card_text(weights: NetworkWeights, card: Card) -> str:
    front: dict[str, Any] = {"library_name": "lafs_ray", "pipeline_tag": "image-feature-extraction"}
    front |= {"license": card.license} if card.license else {}
    front |= {"tags": ["face-recognition", "self-supervised", "lafs"]}
    described = describe_network(weights)
    rows = [f"| {name} | {described[name]} |" for name in ("image_size", "alignment", "color_order", "normalization")]
    step = f", step {weights.step}" if weights.step is not None else ""
    settings = yaml.safe_dump(dict(weights.settings), sort_keys=False) if weights.settings else ""
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# Face embedder of lafs_ray",
        "\n".join(f"- {line}" for line in weights.architecture.lines()),
        '```python\nimport lafs_ray\n\nmodel = lafs_ray.load("THIS FOLDER OR ITS HUB ID")\n'
        "embeddings = model.embed(faces)  # aligned, uint8 [B, 112, 112, 3], RGB\n```",
        "## Input\n\n| property | value |\n|---|---|\n" + "\n".join(rows),
        f"## Training\n\nFrom {os.path.basename(weights.source)}{step}. Data: {card.data or 'not stated'}.",
        f"```yaml\n{settings}```" if settings else "",
        "## Figures\n\n" + ("\n".join(f"- {k}: {v:.4f}" for k, v in card.metrics.items()) or "None were given."),
        f"## License\n\n{card.license or 'Not stated. Weights inherit the terms of the faces they were trained on.'}",
        card.notes,
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
