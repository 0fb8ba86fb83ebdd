"""What the runs are: settings that differ, data, hardware, versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lafs_ray.report import html
from lafs_ray.report.runs import RunRecord
from lafs_ray.training.checkpoint.run_description import set_paths

_SHORTEST = 12


def overview(runs: Sequence[RunRecord]) -> str:
    """Return a table of facts, and one of the settings that are not at their default."""
    facts: dict[str, list[str | None]] = {
        "kind": [run.kind for run in runs],
        "folder": [run.uri for run in runs],
        "steps": [_steps(run) for run in runs],
        "faces": [", ".join(set_paths(run.config)) for run in runs],
        "fingerprint of the faces": [_short(run.description.get("faces")) for run in runs],
        "weights of the transformer": [_short(run.description.get("transformer")) for run in runs],
        "weights of the landmark CNN": [_short(run.description.get("landmarks")) for run in runs],
    }
    for key in ("lafs_ray", "commit", "torch", "numpy", "python", "cpu", "cores", "gpus"):
        facts[key] = [_short((run.description.get("environment") or {}).get(key), 60) for run in runs]
    rows = [[name, *values] for name, values in facts.items() if any(value is not None for value in values)]
    names = [run.name for run in runs]
    unknown = [] if any(run.description.get("environment") for run in runs) else [_UNKNOWN]
    settings = html.heading("Settings that are not at their default")
    return html.table(["", *names], rows) + html.notes(unknown) + settings + _settings(runs)


_UNKNOWN = "These runs were made by a version that did not record hardware, versions and commit."


def _settings(runs: Sequence[RunRecord]) -> str:
    changed = [run.changed_settings() for run in runs]
    keys = list(dict.fromkeys(key for one in changed for key in one))
    rows = []
    for key in keys:
        default = next(one[key][0] for one in changed if key in one)
        values = [_text(one[key][1]) if key in one else "" for one in changed]
        rows.append([key, _text(default), *values])
    return html.table(["setting", "default", *(run.name for run in runs)], rows)


def _steps(run: RunRecord) -> str:
    done = run.metrics[-1]["step"] if run.metrics else 0
    return f"{done:,} of {run.total_steps:,}" if run.total_steps else f"{done:,}"


def _short(value: Any, length: int = _SHORTEST) -> str | None:
    if value in (None, "", []):
        return None
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= length else f"{text[:length]}…"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value)
