"""What a sweep leaves behind: results.parquet, pictures, the winner as an ordinary YAML."""

from __future__ import annotations

from collections.abc import Sequence

from lafs_ray.config.loader import apply_overrides, write_yaml
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.plots import as_png
from lafs_ray.tuning.results import Trial, importances, write_parquet
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.sweep_plots import (
    curves_figure,
    importance_figure,
    interaction_figure,
    objective_figure,
)
from lafs_ray.tuning.trial_config import Sweep


def write_pictures(sweep: Sweep, folder: SweepDir, trials: Sequence[Trial]) -> None:
    """objective.png, curves.png, importance.png and, of two keys or more, interaction.png."""
    space, objective = sweep.config.space, sweep.config.objective
    metric, sign = objective.metric, objective.sign
    found = importances(trials, space)
    figures = {
        "objective": objective_figure(trials, space, metric, sign),
        "curves": curves_figure(trials, metric, sign, objective.reports),
        "importance": importance_figure(found),
    }
    if len(found) > 1:
        figures["interaction"] = interaction_figure(trials, space, [one.key for one in found[:2]])
    for name, figure in figures.items():
        folder.write(f"{name}.png", as_png(figure))


def write_results(sweep: Sweep, folder: SweepDir, trials: Sequence[Trial]) -> None:
    """results.parquet, a row for each trial."""
    write_parquet(filesystem.join(folder.uri, "results.parquet"), trials, sweep.config.space)


def write_winner(sweep: Sweep, folder: SweepDir, winner: Trial, num_trials: int) -> list[str]:
    """The winner's configuration as files that a job runs as they are.

    Returns:
        The commands that run them.
    """
    config = sweep.config
    name = f"{config.name}_winner"
    tree = apply_overrides(sweep.tree(winner.settings), {"run.name": name})
    files = {"winner.yaml": (config.job, tree)}
    if sweep.finetune is not None:
        transformer = filesystem.join(sweep.default.run.storage, name)
        settings = {"run.name": f"{name}_finetune", "start.transformer": transformer}
        files["winner_finetune.yaml"] = ("finetune", apply_overrides(sweep.finetune, settings))
    commands = []
    for file, (job, content) in files.items():
        commands.append(f"python jobs/{job}.py {filesystem.join(folder.uri, file)}")
        lines = [
            f"# Winner of the sweep {config.name}: trial {winner.number} of {num_trials}, "
            f"{config.objective.metric} {winner.objective:.4f}",
            f"# over seeds {', '.join(map(str, config.objective.seeds))}. Status: {winner.status}.",
            f"# Command:  {commands[-1]}",
        ]
        if config.scheduler.kind == "pbt":
            copies = winner.reports[-1].generation
            lines.insert(2, f"# Its last settings; it went on from {copies} copies of others.")
        folder.write(file, ("\n".join(lines) + "\n" + write_yaml(content)).encode())
    return commands


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201
