"""Settings of a sweep: which job, which keys, judged how, at which expense.

Whether they go together with the job's own settings is checked in `sweep_checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lafs_ray.config.loader import Real, Section
from lafs_ray.config.train import Positive, Rate
from lafs_ray.tuning.space import Dimension, flat_space

Metric = Literal["pair_accuracy", "tar_at_far", "knn", "loss"]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
_Seeds = Annotated[
    tuple[Seed, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
]
# Rates that `evaluation/report.py` computes.
FARS = (0.1, 0.01, 0.001)


class EvalSets(Section):
    """The faces that networks are judged on; nobody on them is trained on."""

    pairs: str | None = None
    """Pair file (.bin), for pair_accuracy and tar_at_far."""
    identities: str | None = None
    """Labeled set (.rec), for knn."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """What the images of these files decode to."""


class Objective(EvalSets):
    """What the sweep selects by."""

    metric: Metric = "pair_accuracy"
    """pair_accuracy: 10-fold; tar_at_far: share of same pairs accepted at `far`; knn: share of
    faces whose nearest neighbor is the same person; loss: the training's own, to be made small."""
    far: Real = 0.01
    """False accept rate of tar_at_far: 0.1, 0.01 or 0.001."""
    centered: bool = False
    """Judge embeddings less their mean: fairer to networks that have seen no label."""
    seeds: _Seeds = (0,)
    """Seeds (`run.seed`) to average over. The first is judged on the way; the others are trained,
    and judged at their end, in trials that the scheduler has not stopped by then."""
    reports: Positive = 4
    """How often a trial is judged on the way, at equal distances; the scheduler's unit of time."""
    cpus: Positive = 1
    """CPUs that judging takes besides those of training; with compute.workers=0 it takes turns
    with the training, on its device."""
    gpus: Annotated[Real, Field(ge=0.0)] = 0.0
    """GPU, or share of one, that judging takes besides; 0 judges on the CPU."""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return -1 if self.metric == "loss" else 1

    @property
    def last_report(self) -> int:
        """Number of the report that finishes a trial."""
        return self.reports + len(self.seeds) - 1

    @model_validator(mode="after")
    def _seeds_differ(self) -> Objective:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} - write each once")
        if self.metric == "tar_at_far" and self.far not in FARS:
            raise ValueError(f"far: {self.far:g} is never reported; write one of 0.1, 0.01, 0.001")
        return self


class Budget(Section):
    """What the sweep may cost."""

    trials: Positive = 20
    """Trials; of a population, its members. May be raised when a sweep is continued."""
    hours: Annotated[Real, Field(gt=0.0)] | None = None
    """Hours of the sweep, all its starts together; trials that run then are broken off, and go on
    when it is started with more."""
    gpus: Annotated[Real, Field(gt=0.0)] | None = None
    """GPUs of the cluster that it may take; none: all."""
    cpus: Annotated[Real, Field(gt=0.0)] | None = None
    """CPUs of the cluster that it may take; none: all."""
    concurrent: Positive | None = None
    """Trials at a time, at most; none: as many as find room."""


class Scheduler(Section):
    """Who is stopped early."""

    kind: Literal["asha", "median", "pbt", "none"] = "asha"
    """asha: at each rung the best go on; median: stops who stays below the median; pbt:
    population-based training, the worst go on from copies of the best; none."""
    grace: Positive = 1
    """Reports before anybody is stopped (asha, median)."""
    reduction: Annotated[Real, Field(gt=1.0)] = 3.0
    """One in so many passes a rung; rungs lie at grace times its powers (asha)."""
    min_trials: Positive = 3
    """Other trials that the median needs (median)."""
    every: Positive = 1
    """Reports between two exchanges (pbt)."""
    quantile: Annotated[Real, Field(gt=0.0, le=0.5)] = 0.25
    """Share of the population that copies, and that is copied (pbt)."""
    resample: Rate = 0.25
    """Probability with which a copied setting is drawn anew, else it moves a little (pbt)."""

    @model_validator(mode="after")
    def _options_fit(self) -> Scheduler:
        options = {
            "asha": ("grace", "reduction"),
            "median": ("grace", "min_trials"),
            "pbt": ("every", "quantile", "resample"),
            "none": (),
        }
        own = options[self.kind]
        foreign = sorted(self.model_fields_set - {"kind", *own})
        if foreign:
            known = f"knows {', '.join(own)}" if own else "has no options"
            raise ValueError(f"{', '.join(foreign)}: no option of {self.kind}, which {known}")
        return self


class Searcher(Section):
    """Where settings come from."""

    kind: Literal["random", "grid", "optuna"] = "random"
    """random: draws that depend on seed, number and key; grid: all points, every key of kind grid;
    optuna: TPE, which learns from the trials before (`pip install lafs-ray[sweep]`)."""
    startup: Positive = 10
    """Trials drawn at random before TPE proposes any (optuna)."""

    @model_validator(mode="after")
    def _options_fit(self) -> Searcher:
        if self.kind != "optuna" and "startup" in self.model_fields_set:
            raise ValueError(f"startup: no option of {self.kind}, which has none")
        return self


class Confirm(EvalSets):
    """Winner against base on faces that the sweep has not seen; nothing unless a file is named."""

    metric: Literal["pair_accuracy", "tar_at_far", "knn"] | None = None
    """As in objective.metric; none: the same."""
    seeds: _Seeds = (101, 102, 103, 104, 105)
    """Seeds of both, other than those of the objective."""

    @property
    def enabled(self) -> bool:
        """Whether there is something to confirm on."""
        return self.pairs is not None or self.identities is not None


class ShortFinetune(Section):
    """What a pretraining sweep judges its networks by, besides looking at them as they are."""

    base: str
    """YAML file of a short finetuning run."""
    settings: dict[str, Any] = Field(default={})
    """Settings that differ from the file; start.transformer is the trial's checkpoint."""


class SweepConfig(Section):
    """A sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the sweep; starting the same name again continues it."""
    storage: str = "sweeps"
    """Folder or URI under which `<name>/` keeps trials, results, plots and winner; all nodes must
    reach it."""
    seed: Seed = 0
    """Seed of the settings drawn."""
    job: Literal["finetune", "pretrain"]
    """What a trial is."""
    base: str
    """YAML file of that job; its settings are the default that the winner is compared with."""
    settings: dict[str, Any] = Field(default={})
    """Settings of all trials and of the default that differ from the file, by section or by dotted
    key."""
    finetune: ShortFinetune | None = None
    """Of a pretraining sweep: judge after this finetuning; none: the frozen network."""
    space: Annotated[dict[str, Dimension], BeforeValidator(flat_space), Field(min_length=1)]
    """Dotted keys of the job, each with one of uniform, log_uniform, integer (ranges), choice, grid
    (lists), and `when`: {key above: [values]} if it is drawn only then."""
    objective: Objective = Objective()
    """What is selected by."""
    budget: Budget = Budget()
    """Expense."""
    scheduler: Scheduler = Scheduler()
    """Early stopping."""
    searcher: Searcher = Searcher()
    """Proposals."""
    confirm: Confirm = Confirm()
    """Rerun of the winner."""
