"""The winner of a sweep against its base: new seeds, and faces that nobody selected by."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lafs_ray.data.io import filesystem
from lafs_ray.tuning.outputs import say
from lafs_ray.tuning.preflight import refuse_no_trials
from lafs_ray.tuning.results import Report, Trial, comparison
from lafs_ray.tuning.space import Settings
from lafs_ray.tuning.sweep_dir import SweepDir
from lafs_ray.tuning.trial import Task
from lafs_ray.tuning.trial_config import Sweep

ARMS = ("winner", "default")


@dataclass(frozen=True)
class Confirmation:
    """Reruns of winner and base.

    Args:
        sweep: that has a winner.
        folder: of the sweep.
        attempt: the name of this start.
        tune: runs trials: numbers, settings of a number, task of a number and settings, no
            scheduler, who watches.
    """

    sweep: Sweep
    folder: SweepDir
    attempt: str
    tune: Callable[..., None]

    def run(self, winner: Trial) -> None:
        """Run what is left of the reruns, and print how they compare.

        Raises:
            UserError: one of them came to nothing.
        """
        settings: dict[str, Settings] = {"winner": winner.settings, "default": {}}
        reruns = [(arm, seed) for seed in self.sweep.config.confirm.seeds for arm in ARMS]
        for arm, seed in reruns:
            folder = self.folder.confirmation(arm, seed)
            # More trials may have brought another winner.
            if folder.read_settings() not in (None, settings[arm]):
                filesystem.delete_tree(folder.uri)
            if (folder.read_outcome() or ("", ""))[0] == "failed":
                folder.drop_outcome()
            folder.write_settings(settings[arm])
        folders = [self.folder.confirmation(arm, seed) for arm, seed in reruns]
        left = [n for n, folder in enumerate(folders) if folder.read_outcome() is None]
        if left:
            from lafs_ray.tuning.tuner import Watch

            say(f"\n{len(left)} runs of winner and default over new seeds")
            task = partial(_task, self.sweep, self.attempt, tuple(reruns))
            watch = Watch(partial(_reported, reruns), _ended)
            self.tune(left, lambda number: settings[reruns[number][0]], task, None, watch)
        self._compare(reruns)

    def _compare(self, reruns: list[tuple[str, int]]) -> None:
        config = self.sweep.config
        metric = config.confirm.metric or config.objective.metric
        figures: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for arm, seed in reruns:
            trial = self.folder.confirmation(arm, seed).trial(0)
            if trial is None or trial.objective is None:
                reason = "not judged" if trial is None else trial.message or "not judged"
                raise refuse_no_trials(f"{arm} with seed {seed}: {reason}")
            figures[arm].append(trial.objective)
        content = {"metric": metric, "seeds": list(config.confirm.seeds), **figures}
        self.folder.write("confirm.json", (json.dumps(content, indent=2) + "\n").encode())
        judged_on = config.confirm.pairs or config.confirm.identities
        seeds = len(config.confirm.seeds)
        say(f"\n{metric} over {seeds} new seeds on {judged_on}, which nobody selected by:")
        say("\n".join(comparison(figures, 1)))


def _task(
    sweep: Sweep, attempt: str, reruns: tuple[tuple[str, int], ...], number: int, settings: Settings
) -> Task:
    """What a rerun has to do."""
    config = sweep.config
    arm, seed = reruns[number]
    return Task(
        sweep,
        SweepDir(sweep).confirmation(arm, seed),
        settings,
        (seed,),
        1,
        config.confirm,
        config.confirm.metric or config.objective.metric,
        attempt,
        replays=False,
    )


def _reported(reruns: list[tuple[str, int]], number: int, report: Report, _: bool) -> None:
    arm, seed = reruns[number]
    say(f"{arm}, seed {seed}: {report.objective:.4f}")


def _ended(number: int, error: str) -> None:
    if error:
        say(f"rerun {number} of winner and default: {error}")
