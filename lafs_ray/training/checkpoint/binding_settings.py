"""The settings that bind a run: with others it is another run, and does not continue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A run may continue on other machines, with other reporting: nothing here changes what it computes.
_FREE_SECTIONS = ("compute", "ingest", "log", "monitoring", "checkpoints", "crops", "online_eval")
# Of each set of a mix likewise.
_FREE_OF_SET = ("path", "landmarks")


def binding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what a run computes.

    Paths of faces, of cached landmarks, of neighbors and of the storage do not: fingerprints are compared, of several
    sets in their order.
    """
    kept = {name: value for name, value in config.items() if name not in _FREE_SECTIONS}
    free = ("path", "max_bad_records", "cache")
    kept["data"] = {k: v for k, v in config["data"].items() if k not in free}
    sets = enumerate(config["data"].get("mix") or ())
    kept["data"]["mix"] = {str(n): {k: v for k, v in one.items() if k not in _FREE_OF_SET} for n, one in sets}
    kept["landmarks"] = {k: v for k, v in config["landmarks"].items() if k != "cache"}
    kept["run"] = {k: v for k, v in config["run"].items() if k != "storage"}
    if "views" in config:
        # Runs from before there were these settings continue; so do those from before there was a distillation.
        kept["views"] = {k: v for k, v in config["views"].items() if (k, v) != ("opposite_flips", False)}
    if "dino" in config:
        kept["dino"] = {k: v for k, v in config["dino"].items() if (k, v) != ("koleo", 0.0)}
    if not is_distillation(config):
        kept.pop("distillation", None)
    if (neighbors := kept.pop("neighbors", None) or {}).get("pairs") is not None:
        # Where the file lies does not bind: its hash is compared.
        kept["neighbors"] = {"share": neighbors["share"]}
    return kept


def is_distillation(config: Mapping[str, Any]) -> bool:
    """Return whether the settings are those of a distillation."""
    return (config.get("distillation") or {}).get("teacher") is not None
