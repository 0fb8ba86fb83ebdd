"""Files that a sweep writes: results.parquet, plots, the winner's configuration."""

from __future__ import annotations

from collections.abc import Sequence

from lafs_ray.config.loader import apply_overrides, write_yaml
from lafs_ray.data.io import filesystem
from lafs_ray.tuning.results import Trial, to_parquet
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial_config import Sweep


def write_results(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Write results.parquet, one row per trial."""
    SweepDir(sweep).write("results.parquet", to_parquet(trials, sweep.config.space))


def write_winner(sweep: Sweep, winner: Trial, num_trials: int) -> list[str]:
    """Write the winner's configuration as files that run unchanged; return the commands."""
    config, sweep_dir = sweep.config, SweepDir(sweep)
    name = f"{config.name}_winner"
    tree = apply_overrides(sweep.tree(winner.settings), {"run.name": name})
    files = {"winner.yaml": (config.task, tree)}
    if sweep.finetune is not None:
        transformer = filesystem.join(sweep.default.run.storage, name)
        settings = {"run.name": f"{name}_finetune", "start.transformer": transformer}
        files["winner_finetune.yaml"] = ("finetune", apply_overrides(sweep.finetune, settings))
    commands = []
    for file, (task, content) in files.items():
        commands.append(f"python jobs/{task}.py {filesystem.join(sweep_dir.uri, file)}")
        lines = [
            f"# Winner of the sweep {config.name}: trial {winner.number} of {num_trials}, "
            f"{config.objective.metric} {winner.objective:.4f}",
            f"# over seeds {', '.join(map(str, config.objective.seeds))}. Status: {winner.status}.",
            f"# Command:  {commands[-1]}",
        ]
        if config.scheduler.kind == "pbt":
            copies = winner.reports[-1].generation
            lines.insert(2, f"# Its last settings, after {copies} copies of other members.")
        sweep_dir.write(file, ("\n".join(lines) + "\n" + write_yaml(content)).encode())
    return commands
