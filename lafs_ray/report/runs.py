"""A run as its folder describes it: kind, settings, metrics, evaluations, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError, UserError
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.checkpoint.run_description import DESCRIPTION, read_description

_KINDS: dict[str, type[BaseModel]] = {kind.__name__: kind for kind in (PretrainConfig, FinetuneConfig, LandmarkConfig)}


@dataclass(frozen=True, eq=False)
class RunRecord:
    """Everything that the folder of a run says.

    Args:
        uri: the folder.
        name: short, and different from that of other runs on the page.
        description: content of config.json.
        metrics: lines of metrics.jsonl.
        evaluations: lines of eval.jsonl.
        warnings: lines of warnings.jsonl.
    """

    uri: str
    name: str
    description: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    warnings: list[dict[str, Any]]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings."""
        return dict(self.description["config"])

    @property
    def is_pretraining(self) -> bool:
        """Whether it trains without labels."""
        return bool(self.description["kind"] == "PretrainConfig")

    @property
    def is_landmark_regression(self) -> bool:
        """Whether it trains a landmark CNN alone, so that there is no network that embeds."""
        return bool(self.description["kind"] == "LandmarkConfig")

    @property
    def kind(self) -> str:
        """What the run does, in words."""
        if self.is_landmark_regression:
            return "landmark regression"
        if self.is_pretraining:
            grid = self.config["landmarks"].get("source") == "grid"
            return "DINO-face pretraining" if grid else "LAFS pretraining"
        return "finetuning" if (self.config.get("start") or {}).get("transformer") else "stage 1"

    @property
    def total_steps(self) -> int | None:
        """Length of the run; None where it is not known."""
        return (self.description.get("length") or {}).get("total_steps")

    def changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """Return default and value of each setting that is not at its default, by dotted key."""
        kind = _KINDS.get(str(self.description["kind"]))
        if kind is None:
            return {}
        return {key: pair for key, *pair in _changes(_defaults(kind), self.config)}  # type: ignore[misc]


def is_run(uri: str) -> bool:
    """Return whether a folder is that of a run."""
    return filesystem.exists(filesystem.join(uri, DESCRIPTION))


def read_run(uri: str, name: str) -> RunRecord:
    """Read the folder of a run.

    Raises:
        ConfigError: it is not the folder of a run.
    """
    try:
        description = read_description(uri)
    except (UserError, ValueError) as error:
        raise ConfigError(
            uri,
            found=str(error).splitlines()[0],
            expected="the folder of a run, or of a sweep",
            fix="give the folder that `lafs pretrain`, `finetune` or `sweep` wrote",
        ) from None
    lines = (read_metrics(filesystem.join(uri, f"{one}.jsonl")) for one in ("metrics", "eval", "warnings"))
    return RunRecord(uri, name, description, *lines)


def short_names(uris: list[str]) -> list[str]:
    """Return the last part of each path, or as many parts as tell them apart."""
    parts = [filesystem.absolute(uri).rstrip("/").split("/") for uri in uris]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number + 1})" for number, part in enumerate(parts)]


def _defaults(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the default of every setting; None for those that have none."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if not field.is_required():
            found[name] = _plain(field.get_default(call_default_factory=True))
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found[name] = _defaults(annotation)
        else:
            found[name] = None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, int | float | str | bool | dict) or value is None else str(value)


def _changes(default: Any, value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        for key in value:
            yield from _changes(default.get(key), value[key], f"{prefix}{key}.")
    elif default != value:
        yield prefix.rstrip("."), default, value
