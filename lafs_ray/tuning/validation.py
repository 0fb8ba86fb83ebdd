"""Validation of a sweep's settings before any data is read; all errors in one list."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import Section, Tuning, section_at, validation_errors
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.tuning.config import Objective, SweepConfig
from lafs_ray.tuning.search import grid_points, propose
from lafs_ray.tuning.search_space import Settings, Space, activating_settings
from lafs_ray.tuning.trial_config import TRIAL_CHECKPOINT, Sweep, with_settings

# Random settings that are validated where those of the trials are not known beforehand.
_NUM_SAMPLED = 100
# Points of a grid, at most.
_MAX_GRID = 4096
# A short finetuning takes over the trial's transformer and landmark CNN.
_SHARED = (
    *("size", "student", "num_landmarks", "patch_size", "token_features"),
    *("landmark_cnn", "landmark_cnn_width", "landmark_scaling"),
)


def find_errors(sweep: Sweep) -> list[str]:
    """Return a line for each error in the settings of a sweep."""
    config = sweep.config
    base = [*_base_errors(sweep)]
    found = [
        *base,
        *_condition_errors(config.space),
        *_key_errors(config, sweep.kind),
        *_objective_errors(config),
        *_searcher_errors(config),
        *_scheduler_errors(config),
    ]
    if not base:
        # Errors of the base would be repeated for every value.
        found += _value_errors(sweep)
    return found or [*_combination_errors(sweep)]


def edge_settings(space: Space) -> list[Settings]:
    """Return each key at its bounds or with each choice, and what makes it active."""
    return [
        {**activating_settings(space, key), key: value}
        for key, dimension in space.items()
        for value in dimension.edges()
    ]


def known_settings(config: SweepConfig) -> list[Settings]:
    """Return the settings of the trials as far as they are known in advance; for TPE a sample."""
    if config.searcher.kind == "grid":
        return grid_points(config.space)
    count = config.budget.trials if config.searcher.kind == "random" else _NUM_SAMPLED
    return [propose(config, number) for number in range(count)]


def _base_errors(sweep: Sweep) -> Iterator[str]:
    config = sweep.config
    for line in validation_errors(sweep.kind, sweep.base):
        yield f"{config.base} with settings: {line}"
    if sweep.finetune is None or config.finetune is None:
        return
    if config.task == "finetune":
        yield "finetune: requires task: pretrain; the trials of this sweep are finetunings"
    tree = with_settings(sweep.finetune, {"start.transformer": TRIAL_CHECKPOINT})
    for line in validation_errors(FinetuneConfig, tree):
        yield f"{config.finetune.base} with finetune.settings: {line}"


def _condition_errors(space: Space) -> Iterator[str]:
    keys = [*space]
    for index, key in enumerate(keys):
        earlier, where = keys[:index], f"space.{key}.when"
        for parent, values in space[key].when.items():
            if parent not in earlier:
                listed = ", ".join(earlier) or "none"
                yield f"{where}: {parent} is not a key of the space before {key}; those: {listed}"
            elif space[parent].kind in ("uniform", "log_uniform"):
                kind = space[parent].kind
                yield f"{where}: {parent} is {kind}; a condition requires choice or integer"
            else:
                never = [value for value in values if not space[parent].contains(value)]
                if never or not values:
                    listed = ", ".join(map(repr, never)) or "any value listed"
                    yield f"{where}: {parent} is never {listed}"


def marked_keys(kind: type[Section], mark: Tuning, prefix: str = "") -> list[str]:
    """Return the dotted keys of the fields of a configuration that carry a mark."""
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        section = section_at(kind, [name])
        if mark in field.metadata:
            keys.append(f"{prefix}{name}")
        elif section is not None:
            keys += marked_keys(section, mark, f"{prefix}{name}.")
    return keys


def _key_errors(config: SweepConfig, kind: type[Section]) -> Iterator[str]:
    operational, in_loss, mutable = (marked_keys(kind, mark) for mark in Tuning)
    for key in config.space:
        if _is_below(key, operational):
            yield f"space.{key}: {Tuning.OPERATIONAL.value}; move it to settings"
        if config.objective.metric == "loss" and _is_below(key, in_loss):
            yield (
                f"space.{key}: {Tuning.DEFINES_LOSS.value}; set objective.metric to pair_accuracy, tar_at_far or knn"
            )
        if config.scheduler.kind == "pbt" and not _is_below(key, mutable):
            yield (
                f"space.{key}: cannot change when training resumes from a checkpoint, as "
                f"scheduler.kind=pbt requires; keys that can: {', '.join(mutable)}"
            )
        for other in config.space:
            if other.startswith(f"{key}."):
                yield f"space.{other}: {key} is in the space as a whole; keep one of the two"


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _objective_errors(config: SweepConfig) -> Iterator[str]:
    objective, confirm = config.objective, config.confirm
    yield from _metric_errors("objective", objective)
    if objective.metric == "loss" and config.finetune is not None:
        yield "objective.metric: loss is that of pretraining; remove the finetune section"
    if not confirm.enabled:
        return
    if config.confirm_objective.metric == "loss":
        yield "confirm.metric: required, as objective.metric=loss is not a metric of a test set"
        return
    yield from _metric_errors("confirm", config.confirm_objective)
    both = sorted(set(objective.seeds) & set(confirm.seeds))
    if both:
        yield f"confirm.seeds: {both} are in objective.seeds; use other seeds"


def _metric_errors(section: str, objective: Objective) -> Iterator[str]:
    needed = {"knn": "identities", "loss": None}.get(objective.metric, "pairs")
    for name in ("pairs", "identities"):
        path = getattr(objective, name)
        if name == needed and path is None:
            yield f"{section}.{name}: required by {objective.metric}"
        if name != needed and path is not None:
            yield f"{section}.{name}: {path}, but {objective.metric} does not read it"


def _searcher_errors(config: SweepConfig) -> Iterator[str]:
    if config.searcher.kind != "grid":
        return
    ranges = [key for key, dimension in config.space.items() if dimension.is_numeric]
    if ranges:
        yield f"searcher.kind: grid requires choice, but not so: {', '.join(ranges)}"
        return
    trials, points = config.budget.trials, math.prod(len(d.values) for d in config.space.values())
    if points <= _MAX_GRID:
        points = len(grid_points(config.space))
    if trials != points:
        yield f"budget.trials: {trials}, but the grid has {points} points; write {points}"


def _scheduler_errors(config: SweepConfig) -> Iterator[str]:
    objective, scheduler, members = config.objective, config.scheduler, config.budget.trials
    last = objective.last_report
    if scheduler.kind in ("asha", "median") and scheduler.grace_period >= last:
        yield (
            f"scheduler.grace_period: {scheduler.grace_period}, but a trial's last report is "
            f"{objective.reports} reports + {len(objective.seeds)} seeds - 1 = {last}, so no trial "
            "would be stopped; lower it, or write scheduler.kind: none"
        )
    if scheduler.kind != "pbt":
        return
    if config.searcher.kind != "random":
        yield f"searcher.kind: {config.searcher.kind}, but pbt requires random"
    if len(objective.seeds) > 1:
        yield f"objective.seeds: {list(objective.seeds)}, but pbt trains one seed per member"
    if scheduler.perturbation_interval >= objective.reports:
        yield (
            f"scheduler.perturbation_interval: {scheduler.perturbation_interval}, but a trial has "
            f"{objective.reports} reports, so no member would copy another; lower it"
        )
    if members * scheduler.quantile_fraction < 1:
        yield (
            f"budget.trials: {members} × scheduler.quantile_fraction "
            f"{scheduler.quantile_fraction:g} is less than one member; raise one of the two"
        )
    concurrent = config.budget.max_concurrent
    if concurrent is not None and concurrent < members:
        yield (
            f"budget.max_concurrent: {concurrent}, but all {members} members of a population must "
            "run at once; remove it"
        )
    for key, dimension in config.space.items():
        if dimension.when:
            yield f"space.{key}.when: not supported by pbt; remove it"


def _value_errors(sweep: Sweep) -> Iterator[str]:
    """Yield values that the configuration refuses, one key at a time."""
    reported: set[str] = set()
    for settings in edge_settings(sweep.config.space):
        key = [*settings][-1]
        for line in validation_errors(sweep.kind, sweep.tree(settings)):
            if line not in reported:
                yield f"space.{line}" if line.startswith(key) else f"space.{key}: {line}"
            reported.add(line)


def _combination_errors(sweep: Sweep) -> Iterator[str]:
    """Yield errors of whole trials, each of whose values is valid."""
    reported: set[str] = set()
    for settings in known_settings(sweep.config):
        values = ", ".join(f"{key}={value}" for key, value in settings.items())
        for line in validation_errors(sweep.kind, sweep.tree(settings)) or _finetune_errors(sweep, settings):
            if line not in reported:
                yield f"space: {line} (with {values})"
            reported.add(line)


def _finetune_errors(sweep: Sweep, settings: Settings) -> list[str]:
    """Return where the short finetuning cannot load the trial's networks."""
    finetune = sweep.default_finetune
    if finetune is None:
        return []
    pretrain = PretrainConfig.model_validate(sweep.tree(settings))
    return [
        f"finetune: model.{name} is {theirs}, but {mine} in the pretraining"
        for name in _SHARED
        if (mine := getattr(pretrain.model, name)) != (theirs := getattr(finetune.model, name))
    ]
