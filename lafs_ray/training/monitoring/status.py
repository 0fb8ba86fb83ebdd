"""The status of a run, read from its folder alone: no faces, no network, no Ray."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.checkpoint_file import checkpoint_path, checkpoint_steps
from lafs_ray.training.checkpoint.metrics_log import read_lines
from lafs_ray.training.checkpoint.run_description import read_description
from lafs_ray.training.checkpoint.run_dir import is_locked
from lafs_ray.training.monitoring import nonfinite_report
from lafs_ray.training.monitoring.monitor import DAMAGED, WARNINGS, duration

# A run is silent when its next report is later than this many intervals between reports.
_PATIENCE = 4
_KINDS = {"PretrainConfig": "pretraining", "LandmarkConfig": "landmark regression"}
_MIN_PATIENCE_S = 120.0
_SHOWN = 5


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Args:
        run: its folder.
        kind: pretraining, landmark regression or supervised.
        state: not started; running; stopped, no process trains it; silent, which means stopped or hanging; not finite,
            stopped there; finished.
        step: of the last report; 0 before the first.
        total_steps: of the run.
        last: the last report.
        report_age_s: seconds since it was written; None before the first.
        left_s: estimated seconds to the end; None before the first report.
        checkpoint: path of the newest checkpoint.
        checkpoint_step: its step; later steps would be repeated.
        warnings: lines of warnings.jsonl except those of damaged records.
        damaged: a line for each damaged record met.
        bad_step: path of the report of the last non-finite step, if the run stopped there.
        evaluation: the last line of eval.jsonl.
        left_out: a text for each line of these files that is not as a run writes it.
        sets: of a run on several: path, images, share, and passes in the whole run.
    """

    run: str
    kind: str
    state: str
    step: int
    total_steps: int
    last: dict[str, Any] | None
    report_age_s: float | None
    left_s: float | None
    checkpoint: str | None
    checkpoint_step: int
    warnings: list[dict[str, Any]]
    damaged: list[str]
    bad_step: str | None
    evaluation: dict[str, Any] | None
    left_out: list[str]
    sets: list[dict[str, Any]]

    def as_json(self) -> str:
        """Return all fields as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    def __str__(self) -> str:
        return "\n".join(f"{label:12}{text}" if label else text for label, text in _lines(self))


def read_status(run: str, now: float | None = None) -> Status:
    """Read the status of a run from its folder.

    Args:
        run: a path or URI.
        now: seconds since 1970; None is the present time.

    Raises:
        ConfigError: the folder is missing, or not of a run.
        DataError: a file in it cannot be read.
    """
    description = _read_description(run)
    config, total = description["config"], description["length"]["total_steps"]
    metrics = filesystem.join(run, "metrics.jsonl")
    names = ("metrics.jsonl", WARNINGS, "eval.jsonl")
    logs = [read_lines(filesystem.join(run, name)) for name in names]
    reports, warnings, evaluations = (lines for lines, _ in logs)
    step, age, step_s = 0, None, None
    if reports:
        step = reports[-1]["step"]
        written = filesystem.file_stamp(metrics)[1] / 1e9
        age = max((time.time() if now is None else now) - written, 0.0)
        step_s = config["batch_size"] / reports[-1]["images_per_s"]
    steps = checkpoint_steps(run)
    saved = steps[-1] if steps else 0
    bad = _bad_step(run, step)
    if saved >= total:
        state = "finished"
    elif bad is not None:
        state = "not finite"
    elif age is None or step_s is None:
        state = "not started"
    else:
        patience = max(_PATIENCE * config["log"]["every_steps"] * step_s, _MIN_PATIENCE_S)
        state = "running" if age < patience else "silent"
    if state in ("running", "silent") and is_locked(run) is False:
        state = "stopped"
    return Status(
        run=run,
        kind=_KINDS.get(description["kind"], "supervised"),
        state=state,
        step=step,
        total_steps=total,
        last=reports[-1] if reports else None,
        report_age_s=age,
        left_s=None if step_s is None else (total - step) * step_s,
        checkpoint=checkpoint_path(run, saved) if steps else None,
        checkpoint_step=saved,
        warnings=[line for line in warnings if line["kind"] != DAMAGED],
        damaged=[line["text"] for line in warnings if line["kind"] == DAMAGED],
        bad_step=bad,
        evaluation=evaluations[-1] if evaluations else None,
        left_out=[text for _, texts in logs for text in texts],
        sets=list(description.get("sets") or ()),
    )


def _read_description(run: str) -> dict[str, Any]:
    fix = "give the folder <run.storage>/<run.name> of a run"
    if not filesystem.exists(run):
        found = "no such folder"
    elif not filesystem.is_folder(run):
        found = "a file"
    elif not filesystem.exists(filesystem.join(run, "config.json")):
        found = "no config.json in it"
        path = reading.local_path(run)
        if checkpoint_steps(run):
            fix = "run its training command again: it writes config.json as the newest checkpoint describes the run"
        below = sorted(Path(path).glob("*/config.json")) if path is not None else []
        if below:
            names = ", ".join(str(one.parent) for one in below[:_SHOWN])
            fix = f"give one of the runs in it: {names}"
    else:
        try:
            content = read_description(run)
            if content.get("length") is not None:
                return content
            found = "a config.json without the run's length"
        except ValueError as error:
            found = f"a config.json that is not of a run ({error})"
    raise ConfigError(run, found=found, expected="the folder of a run", fix=fix)


def _bad_step(run: str, step: int) -> str | None:
    """Return the report of a non-finite step, unless the run is beyond that step by now."""
    for name in sorted(filesystem.list_names(run), reverse=True):
        number = name.removeprefix(nonfinite_report.PREFIX).removesuffix(".json")
        if name.startswith(nonfinite_report.PREFIX) and number.isdigit() and int(number) > step:
            return filesystem.join(run, name)
    return None


def as_number(value: float | None) -> str:
    """Return four decimals, or a dash for a metric that is not defined."""
    return "–" if value is None else f"{value:.4f}"


def _lines(status: Status) -> list[tuple[str, str]]:
    """Return label and text of each line for the terminal."""
    age = "" if status.report_age_s is None else f"last report {duration(status.report_age_s)} ago"
    meaning = {
        "not started": "no report yet",
        "running": age,
        "stopped": f"{age}; the same command continues it from step {status.checkpoint_step}",
        "silent": f"{age}: stopped or hanging; the same command continues it",
        "not finite": "stopped at a non-finite loss or gradient",
        "finished": f"all {status.total_steps} steps",
    }
    lines = [("", f"{status.run} ({status.kind})"), ("state", f"{status.state} ({meaning[status.state]})")]
    if (last := status.last) is not None:
        lines += [
            ("step", f"{status.step}/{status.total_steps}, epoch {last['epoch']}"),
            ("loss", f"{last['loss']:.4f}, learning rate {last['lr']:.2e}"),
            ("speed", f"{last['images_per_s']:.0f} images/s, data wait {last['wait_share']:.0%}"),
        ]
    if status.left_s is not None and status.state == "running":
        lines.append(("left", duration(status.left_s)))
    done = status.step / status.total_steps
    for one in status.sets:
        passes = f"pass {one['passes'] * done:.3g} of {one['passes']:.3g}"
        lines.append(("faces", f"{one['path']}: {one['share']:.4g} of each batch, {passes}"))
    lines.append(("checkpoint", status.checkpoint or "none yet"))
    if (evaluation := status.evaluation) is not None:
        names = [name for name in evaluation if name not in ("step", "eval_s")]
        metrics = ", ".join(f"{name} {as_number(evaluation[name])}" for name in names)
        lines.append(("evaluation", f"of step {evaluation['step']}: {metrics}"))
    if status.bad_step is not None:
        lines.append(("not finite", status.bad_step))
    lines += [("left out", text) for text in status.left_out[:_SHOWN]]
    if len(status.left_out) > _SHOWN:
        lines.append(("left out", f"{len(status.left_out) - _SHOWN} more lines"))
    lines += [("warning", f"step {w['step']}, {w['kind']}: {w['text']}") for w in status.warnings]
    if status.damaged:
        count = len(status.damaged)
        lines.append(("damaged", f"{count} {'record' if count == 1 else 'records'}"))
        lines += [("", f"{'':12}{record}") for record in status.damaged[:_SHOWN]]
        if count > _SHOWN:
            lines.append(("", f"{'':12}… all in {filesystem.join(status.run, WARNINGS)}"))
    return lines
