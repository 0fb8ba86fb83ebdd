"""What can be wrong with a sweep before any data is read: all of it, in one list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import Section, Tuning, find_mistakes, section_at
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.tuning.config import EvalSets, SweepConfig
from lafs_ray.tuning.space import Dimension, Settings, draw_settings, grid_points, reaching
from lafs_ray.tuning.trial_config import TRIAL, Sweep, with_settings

# Random settings that are tried out where the trials are not known beforehand.
_TRIED = 100

# A short finetuning takes over the trial's transformer and landmark CNN.
_SHARED = ("size", "num_landmarks", "patch_size", "landmark_cnn", "landmark_cnn_width")


def mistakes_in(sweep: Sweep) -> list[str]:
    """A line for each mistake in the settings of a sweep; none reads any data."""
    base = [*_base_mistakes(sweep)]
    found = [
        *base,
        *_condition_mistakes(sweep.config.space),
        *_key_mistakes(sweep.config, sweep.kind),
        *_objective_mistakes(sweep.config),
        *_search_mistakes(sweep.config),
        *_scheduler_mistakes(sweep.config),
    ]
    if not base:
        # With a wrong base every value would be named as well.
        found += _value_mistakes(sweep)
    return found or [*_combination_mistakes(sweep)]


def edge_settings(space: Mapping[str, Dimension]) -> list[Settings]:
    """Each key at the ends of its range or with each value listed, with what it is drawn after."""
    return [
        {**reaching(space, key), key: value}
        for key, dimension in space.items()
        for value in dimension.edges()
    ]


def known_settings(config: SweepConfig) -> list[Settings]:
    """Settings of the trials, as far as they can be known before the first has been run."""
    if config.searcher.kind == "grid":
        return grid_points(config.space)
    count = config.budget.trials if config.searcher.kind == "random" else _TRIED
    return [draw_settings(config.space, config.seed, number) for number in range(count)]


def _base_mistakes(sweep: Sweep) -> Iterator[str]:
    config = sweep.config
    for line in find_mistakes(sweep.kind, sweep.base):
        yield f"{config.base} with settings: {line}"
    if sweep.finetune is None or config.finetune is None:
        return
    if config.job == "finetune":
        yield "finetune: goes with job: pretrain; the trials of this sweep are finetunings"
    tree = with_settings(sweep.finetune, {"start.transformer": TRIAL})
    for line in find_mistakes(FinetuneConfig, tree):
        yield f"{config.finetune.base} with finetune.settings: {line}"


def _condition_mistakes(space: Mapping[str, Dimension]) -> Iterator[str]:
    above: dict[str, Dimension] = {}
    for key, dimension in space.items():
        for parent, values in dimension.when.items():
            yield from _mistakes_of_condition(key, dimension, parent, values, above)
        above[key] = dimension


def _mistakes_of_condition(
    key: str,
    dimension: Dimension,
    parent: str,
    values: tuple[Any, ...],
    above: dict[str, Dimension],
) -> Iterator[str]:
    where = f"space.{key}.when"
    if parent not in above:
        listed = ", ".join(above) or "none"
        yield f"{where}: {parent} is no key of the space above {key}; those are: {listed}"
        return
    if above[parent].kind in ("uniform", "log_uniform"):
        yield f"{where}: {parent} is {above[parent].kind}; a condition needs a list or integers"
    elif dimension.kind == "grid" and above[parent].kind != "grid":
        yield f"{where}: {key} is a grid, so {parent} has to be one, not {above[parent].kind}"
    else:
        never = [value for value in values if not above[parent].holds(value)]
        if never or not values:
            yield f"{where}: {parent} is never {', '.join(map(repr, never)) or 'anything listed'}"


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


def _key_mistakes(config: SweepConfig, kind: type[Section]) -> Iterator[str]:
    operational, in_loss, mutable = (
        marked_keys(kind, mark)
        for mark in (Tuning.OPERATIONAL, Tuning.DEFINES_LOSS, Tuning.MUTABLE)
    )
    for key in config.space:
        if _is_below(key, operational):
            yield f"space.{key}: {Tuning.OPERATIONAL.value}; move it to settings"
        if config.objective.metric == "loss" and _is_below(key, in_loss):
            yield (
                f"space.{key}: {Tuning.DEFINES_LOSS.value}; set objective.metric to "
                "pair_accuracy, tar_at_far or knn"
            )
        if config.scheduler.kind == "pbt" and not _is_below(key, mutable):
            yield (
                f"space.{key}: cannot change when training resumes from a checkpoint, as "
                f"scheduler.kind=pbt requires; keys that can: {', '.join(mutable)}"
            )
    for one, other in ((a, b) for a in config.space for b in config.space if b.startswith(f"{a}.")):
        yield f"space.{other}: {one} is in the space as a whole; keep one of the two"


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _objective_mistakes(config: SweepConfig) -> Iterator[str]:
    objective, confirm = config.objective, config.confirm
    yield from _judging_mistakes("objective", objective.metric, objective)
    if objective.metric == "loss" and config.finetune is not None:
        yield "objective.metric: loss is the pretraining's own; it needs no finetune section"
    if not confirm.enabled:
        return
    metric = confirm.metric or objective.metric
    if metric == "loss":
        yield "confirm.metric: required, as objective.metric=loss is no figure of a test set"
        return
    yield from _judging_mistakes("confirm", metric, confirm)
    both = sorted(set(objective.seeds) & set(confirm.seeds))
    if both:
        yield f"confirm.seeds: {both} belong to objective.seeds; confirm with new ones"
    if len(set(confirm.seeds)) < len(confirm.seeds):
        yield f"confirm.seeds: {list(confirm.seeds)} - write each once"
    for name in ("pairs", "identities"):
        path = getattr(confirm, name)
        if path is not None and path == getattr(objective, name):
            yield f"confirm.{name}: {path} is what the sweep selects by; name another file"


def _judging_mistakes(section: str, metric: str, judges: EvalSets) -> Iterator[str]:
    """A metric that would never be reported, or a file that nothing would read."""
    needed = {"knn": "identities", "loss": None}.get(metric, "pairs")
    for name in ("pairs", "identities"):
        path = getattr(judges, name)
        if name == needed and path is None:
            yield f"{section}.{name}: required, or {metric} will never be reported"
        if name != needed and path is not None:
            yield f"{section}.{name}: {path}, but {metric} does not read it"


def _search_mistakes(config: SweepConfig) -> Iterator[str]:
    grid = [key for key, dimension in config.space.items() if dimension.kind == "grid"]
    others = [key for key in config.space if key not in grid]
    kind, trials = config.searcher.kind, config.budget.trials
    if kind == "grid" and others:
        yield f"searcher.kind: grid, but {', '.join(others)} is not of kind grid; list its values"
        return
    if kind == "optuna" and grid:
        yield f"searcher.kind: optuna, but {', '.join(grid)} is of kind grid; write choice"
    num_points = 1
    for key in grid:
        num_points *= len(config.space[key].values)
    num_points = min(num_points, len(grid_points(config.space)) if num_points <= 4096 else 4096)
    if kind != "optuna" and grid and trials < num_points:
        yield f"budget.trials: {trials}, but the grid has {num_points} points"
    if kind == "grid" and trials > num_points:
        yield f"budget.trials: {trials}, but the grid has {num_points} points; write {num_points}"


def _scheduler_mistakes(config: SweepConfig) -> Iterator[str]:
    objective, scheduler = config.objective, config.scheduler
    last = objective.last_report
    counted = f"{objective.reports} reports + {len(objective.seeds)} seeds - 1 = {last}"
    if scheduler.kind in ("asha", "median") and scheduler.grace >= last:
        yield (
            f"scheduler.grace: {scheduler.grace}, but a trial's last report is {counted}: nobody "
            "would be stopped; lower it, or write scheduler.kind: none"
        )
    if scheduler.kind != "pbt":
        return
    if config.searcher.kind != "random":
        yield f"searcher.kind: {config.searcher.kind}, but pbt makes its own proposals; random"
    if len(objective.seeds) > 1:
        yield f"objective.seeds: {list(objective.seeds)}, but a member of pbt has one seed"
    if scheduler.every >= objective.reports:
        yield (
            f"scheduler.every: {scheduler.every}, but a trial has {objective.reports} reports: "
            "nothing would be exchanged"
        )
    if config.budget.trials * scheduler.quantile < 1:
        yield (
            f"budget.trials: {config.budget.trials} × scheduler.quantile {scheduler.quantile:g} is "
            "less than one member; raise one of the two"
        )
    members, together = config.budget.trials, config.budget.concurrent
    if together is not None and together < members:
        yield (
            f"budget.concurrent: {together}, but the {members} members of pbt exchange with those "
            "that run beside them; leave it out"
        )
    for key, dimension in config.space.items():
        if dimension.when:
            yield f"space.{key}.when: has no meaning in a population; leave it out"


def _value_mistakes(sweep: Sweep) -> Iterator[str]:
    """Values that the job refuses, each end by itself."""
    named: set[str] = set()
    for settings in edge_settings(sweep.config.space):
        key = [*settings][-1]
        for line in find_mistakes(sweep.kind, sweep.tree(settings)):
            if line not in named:
                yield f"space.{line}" if line.startswith(key) else f"space.{key}: {line}"
            named.add(line)


def _combination_mistakes(sweep: Sweep) -> Iterator[str]:
    """Trials that the job refuses, though it takes each of their values."""
    named: set[str] = set()
    for settings in known_settings(sweep.config):
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        for line in find_mistakes(sweep.kind, sweep.tree(settings)) or _finetune_misfit(
            sweep, settings
        ):
            if line not in named:
                yield f"space: {line} (with {shown})"
            named.add(line)


def _finetune_misfit(sweep: Sweep, settings: Settings) -> list[str]:
    """Where a short finetuning would not take over the trial's networks."""
    finetune = sweep.default_finetune
    if finetune is None:
        return []
    job = PretrainConfig.model_validate(sweep.tree(settings))
    return [
        f"finetune: model.{name} is {theirs}, but {mine} in the pretraining"
        for name in _SHARED
        if (mine := getattr(job.model, name)) != (theirs := getattr(finetune.model, name))
    ]
