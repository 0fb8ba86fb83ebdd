"""Where a run stands, read from its folder alone: no faces, no network, no Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lafs_ray.data.io import filesystem
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.checkpoint_file import checkpoint_steps
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.monitoring import nonfinite_report
from lafs_ray.training.monitoring.monitor import WARNINGS, duration

# A run is silent when its next report is this many times as late as its reports are apart.
_PATIENCE = 4
_LEAST_PATIENCE_S = 120.0
_SHOWN = 5


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Args:
        run: its folder.
        kind: pretraining or supervised.
        state: not started; running; silent, which means stopped or hanging; not finite, stopped
            there; finished.
        step: of the last report; 0 before the first.
        total_steps: of the run; None for runs of older versions.
        last: the last report.
        report_age_s: seconds since it was written; None before the first.
        left_s: seconds still to go, if the run goes on as fast.
        checkpoint: path of the newest checkpoint.
        checkpoint_step: its step; what comes after would be done again.
        warnings: lines of warnings.jsonl but those of damaged records.
        damaged: damaged records met.
        bad_step: path of the file on the last step that was not finite, if the run stopped there.
        evaluation: the last line of eval.jsonl.
    """

    run: str
    kind: str
    state: str
    step: int
    total_steps: int | None
    last: dict[str, Any] | None
    report_age_s: float | None
    left_s: float | None
    checkpoint: str | None
    checkpoint_step: int
    warnings: list[dict[str, Any]]
    damaged: list[str]
    bad_step: str | None
    evaluation: dict[str, Any] | None

    def as_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def read_status(run: str, now: float | None = None) -> Status:
    """Look at a run's folder.

    Args:
        run: a path or URI.
        now: seconds since 1970; None asks the clock.

    Raises:
        ConfigError: the folder is not there, or not of a run.
        DataError: a file in it cannot be read.
    """
    description = _read_description(run)
    config, length = description["config"], description.get("length") or {}
    reports = read_metrics(filesystem.join(run, "metrics.jsonl"))
    last = reports[-1] if reports else None
    step, total = (last["step"] if last else 0), length.get("total_steps")
    steps = checkpoint_steps(run)
    saved = steps[-1] if steps else 0
    age = _age(filesystem.join(run, "metrics.jsonl"), now) if last else None
    step_s = config["batch_size"] / last["images_per_s"] if last else None
    bad = _bad_step(run, step)
    noted = read_metrics(filesystem.join(run, WARNINGS))
    evaluations = read_metrics(filesystem.join(run, "eval.jsonl"))
    is_finished = total is not None and saved >= total
    return Status(
        run=run,
        kind="pretraining" if description["kind"] == "PretrainConfig" else "supervised",
        state="finished" if is_finished else _state(config, bad, age, step_s),
        step=step,
        total_steps=total,
        last=last,
        report_age_s=age,
        left_s=(total - step) * step_s if total is not None and step_s is not None else None,
        checkpoint=filesystem.join(run, "checkpoints", f"step-{saved:08d}.pt") if steps else None,
        checkpoint_step=saved,
        warnings=[line for line in noted if line["kind"] != "damaged record"],
        damaged=[line["text"] for line in noted if line["kind"] == "damaged record"],
        bad_step=bad,
        evaluation=evaluations[-1] if evaluations else None,
    )


def _read_description(run: str) -> dict[str, Any]:
    fix = "give the folder <run.storage>/<run.name> of a run"
    if not filesystem.exists(run):
        found = "no such folder"
    elif not filesystem.is_folder(run):
        found = "a file"
    elif not filesystem.exists(filesystem.join(run, "config.json")):
        found = "no config.json in it"
        path = filesystem.local_path(run)
        below = sorted(Path(path).glob("*/config.json")) if path is not None else []
        if below:
            names = ", ".join(str(one.parent) for one in below[:_SHOWN])
            fix = f"give one of the runs in it: {names}"
    else:
        try:
            content = json.loads(filesystem.read_bytes(filesystem.join(run, "config.json")))
        except ValueError:
            content = None
        if isinstance(content, dict) and {"kind", "config"} <= content.keys():
            return content
        found = "a config.json that is not of a run"
    raise ConfigError(run, found=found, expected="the folder of a run", fix=fix)


def _age(uri: str, now: float | None) -> float:
    written = filesystem.file_stamp(uri)[1] / 1e9
    return max((time.time() if now is None else now) - written, 0.0)


def _bad_step(run: str, step: int) -> str | None:
    """The file on a step that was not finite, unless the run has got beyond it since."""
    names = [
        name for name in filesystem.list_names(run) if name.startswith(nonfinite_report.PREFIX)
    ]
    for name in sorted(names, reverse=True):
        number = name.removeprefix(nonfinite_report.PREFIX).removesuffix(".json")
        if number.isdigit() and int(number) > step:
            return filesystem.join(run, name)
    return None


def _state(
    config: Mapping[str, Any], bad: str | None, age: float | None, step_s: float | None
) -> str:
    if bad is not None:
        return "not finite"
    if age is None or step_s is None:
        return "not started"
    apart = config["log"]["every_steps"] * step_s
    return "running" if age < max(_PATIENCE * apart, _LEAST_PATIENCE_S) else "silent"


_MEANING = {
    "not started": "no report yet",
    "running": "it reports",
    "silent": "stopped, or it hangs; the same command continues it",
    "not finite": "a loss or gradient was not finite; the run stopped there",
    "finished": "all steps are done",
}


def _lines(status: Status) -> list[str]:
    """The status for people."""
    of = "" if status.total_steps is None else f"/{status.total_steps}"
    lines = [
        f"{status.run} ({status.kind})",
        f"state       {status.state}: {_MEANING[status.state]}",
    ]
    if status.last is not None and status.report_age_s is not None:
        last = status.last
        lines += [
            f"step        {status.step}{of}, epoch {last['epoch']}, "
            f"{duration(status.report_age_s)} ago",
            f"loss        {last['loss']:.4f}, learning rate {last['lr']:.2e}",
            f"speed       {last['images_per_s']:.0f} images/s, waits {last['wait_share']:.0%}",
        ]
    if status.left_s is not None and status.state == "running":
        lines.append(f"left        {duration(status.left_s)}")
    lines.append(f"checkpoint  {status.checkpoint or 'none yet'}")
    if status.evaluation is not None:
        figures = [
            f"{name} {value:.4f}"
            for name, value in status.evaluation.items()
            if name not in ("step", "eval_s")
        ]
        lines.append(f"evaluation  of step {status.evaluation['step']}: {', '.join(figures)}")
    if status.bad_step is not None:
        lines.append(f"not finite  {status.bad_step}")
    lines += [f"warning     step {w['step']}, {w['kind']}: {w['text']}" for w in status.warnings]
    if status.damaged:
        lines.append(f"damaged     {len(status.damaged)} records")
        lines += [f"            {record}" for record in status.damaged[:_SHOWN]]
        if len(status.damaged) > _SHOWN:
            lines.append(f"            … all in {filesystem.join(status.run, WARNINGS)}")
    return lines
