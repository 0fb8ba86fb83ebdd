"""Settings of a sweep: task and base, search space, objective, budget, scheduler and searcher.

Whether they fit the base's own settings is checked in `validation.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lafs_ray.config.loader import Real, Section
from lafs_ray.config.paths import AbsolutePath
from lafs_ray.config.train import Positive, Rate
from lafs_ray.tuning.search_space import KINDS, Dimension, flatten

Metric = Literal["pair_accuracy", "tar_at_far", "knn", "loss"]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{list(seeds)} - write each once")
    return seeds


_Seeds = Annotated[
    tuple[Seed, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
    AfterValidator(_each_once),
]
# Rates that `evaluation/protocols.py` computes.
FARS = (0.1, 0.01, 0.001)


class EvalSets(Section):
    """Faces to evaluate on; their identities must not be trained on."""

    pairs: AbsolutePath | None = None
    """Pair file (.bin), for pair_accuracy and tar_at_far."""
    identities: AbsolutePath | None = None
    """Labeled set (.rec), for knn."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """What the images of these files decode to."""


class Objective(EvalSets):
    """What the sweep optimizes."""

    metric: Metric = "pair_accuracy"
    """pair_accuracy: 10-fold; tar_at_far: share of same pairs accepted at `far`; knn: share of faces whose nearest
    neighbor has the same identity; loss: the training loss, minimized."""
    far: Real = 0.01
    """False accept rate of tar_at_far: 0.1, 0.01 or 0.001."""
    centered: bool = False
    """Subtract the mean embedding first: fairer to networks trained without labels."""
    seeds: _Seeds = (0,)
    """Seeds (`run.seed`) to average over. Intermediate reports come from the first; the others are trained and
    evaluated at their end, in trials that the scheduler has not stopped by then."""
    reports: Positive = 4
    """Evaluations of the first seed's run, evenly spaced; the scheduler's unit of time."""
    cpus: Positive = 1
    """CPUs for evaluation besides those of training; with compute.workers=0 evaluation alternates with training, on the
    same device."""
    gpus: Annotated[Real, Field(ge=0.0)] = 0.0
    """GPUs, or share of one, for evaluation besides training's; 0 evaluates on the CPU."""

    @property
    def sign(self) -> int:
        """1 to maximize, -1 to minimize."""
        return -1 if self.metric == "loss" else 1

    @property
    def last_report(self) -> int:
        """Number of a finished trial's last report."""
        return self.reports + len(self.seeds) - 1

    @model_validator(mode="after")
    def _check_values(self) -> Objective:
        if self.metric == "tar_at_far" and self.far not in FARS:
            raise ValueError(f"far: {self.far:g} is never reported; write one of 0.1, 0.01, 0.001")
        return self


class Budget(Section):
    """Limits of the sweep."""

    trials: Positive = 20
    """Number of trials; for pbt, the population size. May be raised when a sweep is continued."""
    hours: Annotated[Real, Field(gt=0.0)] | None = None
    """Hours of all starts together; running trials are then interrupted, and continue when the sweep is started with
    more."""
    gpus: Annotated[Real, Field(gt=0.0)] | None = None
    """GPUs of the cluster to use, at most; none: all."""
    cpus: Annotated[Real, Field(gt=0.0)] | None = None
    """CPUs of the cluster to use, at most; none: all."""
    max_concurrent: Positive | None = None
    """Concurrent trials, at most; none: as many as the cluster fits."""


SCHEDULER_OPTIONS: dict[str, tuple[str, ...]] = {
    "asha": ("grace_period", "reduction_factor"),
    "median": ("grace_period", "min_samples_required"),
    "pbt": ("perturbation_interval", "quantile_fraction", "resample_probability"),
    "none": (),
}
SEARCHER_OPTIONS: dict[str, tuple[str, ...]] = {"tpe": ("startup_trials",)}


class Scheduler(Section):
    """Early-stopping scheduler; its options have the names that Ray Tune gives them."""

    kind: Literal["asha", "median", "pbt", "none"] = "asha"
    """asha: the best trials of each rung continue; median: trials below the median stop; pbt:
    population-based training, the worst trials continue from copies of the best; none."""
    grace_period: Positive = 1
    """Reports before any trial is stopped (asha, median)."""
    reduction_factor: Annotated[Real, Field(gt=1.0)] = 3.0
    """One in so many trials passes a rung; rungs are at grace_period times its powers (asha)."""
    min_samples_required: Positive = 3
    """Other trials needed to compute the median (median)."""
    perturbation_interval: Positive = 1
    """Reports between two rounds of copying (pbt)."""
    quantile_fraction: Annotated[Real, Field(gt=0.0, le=0.5)] = 0.25
    """Share of the population that copies, and share that is copied (pbt)."""
    resample_probability: Rate = 0.25
    """Probability that a copied value is resampled; otherwise it is perturbed (pbt)."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of its kind."""
        return {name: getattr(self, name) for name in SCHEDULER_OPTIONS[self.kind]}

    @model_validator(mode="after")
    def _check_options(self) -> Scheduler:
        own = self.options
        foreign = sorted(self.model_fields_set - {"kind", *own})
        if foreign:
            known = f"has {', '.join(own)}" if own else "has no options"
            raise ValueError(f"{', '.join(foreign)}: not an option of {self.kind}, which {known}")
        return self


class Searcher(Section):
    """Source of the settings."""

    kind: Literal["random", "grid", "tpe"] = "random"
    """random; grid: all combinations, every key a choice; tpe: tree-structured Parzen estimator, which learns from
    earlier trials (Optuna)."""
    startup_trials: Positive = 10
    """Trials that must have ended before TPE replaces random sampling (tpe)."""

    @model_validator(mode="after")
    def _check_options(self) -> Searcher:
        if self.kind != "tpe" and "startup_trials" in self.model_fields_set:
            raise ValueError(f"startup_trials: not an option of {self.kind}, which has no options")
        return self


class Confirm(EvalSets):
    """Confirmation of the winner against the base on unseen faces; off unless a file is named."""

    metric: Literal["pair_accuracy", "tar_at_far", "knn"] | None = None
    """As in objective.metric; none: the same."""
    seeds: _Seeds = (101, 102, 103, 104, 105)
    """Seeds of both, other than those of the objective."""

    @property
    def enabled(self) -> bool:
        """Whether a file is named."""
        return self.pairs is not None or self.identities is not None


class ShortFinetune(Section):
    """Short finetuning by which a pretraining sweep evaluates its checkpoints."""

    base: str
    """YAML file of a short finetuning run."""
    settings: dict[str, Any] = Field(default={})
    """Settings that differ from the file; start.transformer is the trial's checkpoint."""


class SweepConfig(Section):
    """A sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the sweep; starting the same name again continues it."""
    storage: AbsolutePath = "sweeps"
    """Folder or URI under which `<name>/` keeps trials, results, plots and winner; all nodes must reach it."""
    seed: Seed = 0
    """Seed of the settings that are sampled."""
    task: Literal["finetune", "pretrain"]
    """What a trial runs."""
    base: str
    """YAML file of that task; its settings are the default that the winner is compared with."""
    settings: dict[str, Any] = Field(default={})
    """Settings of all trials and of the default that differ from the file, by section or by dotted key."""
    finetune: ShortFinetune | None = None
    """For task pretrain: evaluate after this finetuning; none: evaluate the frozen network."""
    space: Annotated[dict[str, Dimension], BeforeValidator(partial(flatten, leaf_keys=KINDS)), Field(min_length=1)]
    """Dotted keys of the base, each with one of uniform, log_uniform, integer (ranges) or choice (a list), and
    optionally `when`: {earlier key: [values]} for which it is active."""
    objective: Objective = Objective()
    """What is optimized."""
    budget: Budget = Budget()
    """Limits."""
    scheduler: Scheduler = Scheduler()
    """Early stopping."""
    searcher: Searcher = Searcher()
    """Sampling."""
    confirm: Confirm = Confirm()
    """Confirmation of the winner."""

    @property
    def confirm_objective(self) -> Objective:
        """The objective on the faces of the confirmation."""
        changes = self.confirm.model_dump(exclude={"seeds"})
        changes["metric"] = self.confirm.metric or self.objective.metric
        return self.objective.model_copy(update=changes)
