"""`lafs pretrain` and `lafs finetune`: in this process for debugging, or on Ray."""

from __future__ import annotations

import contextlib
import signal
from argparse import Namespace
from collections.abc import Iterator

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import load
from lafs_ray.config.presets import config_file
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import ON_CPU, TrainConfig
from lafs_ray.config.yaml_text import write_yaml
from lafs_ray.data.alignment_check import check_set
from lafs_ray.data.set_sample import row_group_note
from lafs_ray.engine.console import log_to, terminal_handler
from lafs_ray.engine.online_eval import OnlineEvaluator, check_online_eval, evaluate_in_process, evaluated_steps
from lafs_ray.engine.signals import stop_request
from lafs_ray.errors import Stopped
from lafs_ray.interrupt import exit_at_once
from lafs_ray.messages import show
from lafs_ray.training.cost import describe_cost
from lafs_ray.training.prepare import RunInputs, check_run, prepare_run
from lafs_ray.training.run_request import RunRequest
from lafs_ray.training.runner import Hooks, has_gpu, run_local, training_device


def pretrain(options: Namespace) -> None:
    """Pretrain with the configuration, or continue the run of that name."""
    _train_command(load(PretrainConfig, config_file("pretrain", options.config), options.overrides), options)


def finetune(options: Namespace) -> None:
    """Train on labels with the configuration, or continue the run of that name."""
    _train_command(load(FinetuneConfig, config_file("finetune", options.config), options.overrides), options)


def train_landmarks(options: Namespace) -> None:
    """Train a landmark CNN on given landmarks, or continue the run of that name."""
    _train_command(load(LandmarkConfig, config_file("landmarks", options.config), options.overrides), options)


def _train_command(config: TrainConfig, options: Namespace) -> None:
    if options.dry_run:
        check_online_eval(config.online_eval)
        dry_run(check_run(config, extend=options.extend))
    else:
        launch(config, extend=options.extend)


def describe(inputs: RunInputs) -> None:
    """Print the settings that differ from the defaults, the size of a run, and a warning if faces are not aligned."""
    config, length = inputs.config, inputs.length
    identities = ""
    if inputs.num_identities is not None:
        identities = f" of {inputs.num_identities} identities"
    show(write_yaml(config.model_dump(mode="json", exclude_defaults=True)).rstrip())
    show(
        f"{config.run.name}: {inputs.faces.num_images} faces{identities}, "
        f"{length.steps_per_epoch} {'step' if length.steps_per_epoch == 1 else 'steps'} per epoch, "
        f"{length.total_steps} {'step' if length.total_steps == 1 else 'steps'}; "
        f"results in {inputs.folder().uri}"
    )
    for size in inputs.mixed_sets():
        passes = f"{size.passes:.3g} {'pass' if size.passes == 1 else 'passes'}"
        show(f"  {size.path}: {size.images:,} images, {size.share:.4g} of each batch on average, {passes} in the run")
    has_pairs = inputs.sampler.neighbors is not None
    for one, faces in zip(config.data.sets, inputs.sets, strict=True):
        if warning := check_set(faces).warning(one.path):
            show(f"warning: {warning}")
        if note := row_group_note(faces.layouts, config.data.chunk_records, has_pairs=has_pairs):
            show(f"note: {note}")
    for line in inputs.init_weights.report:
        show(line)
    if inputs.sampler.neighbors is not None:
        drawn = inputs.sampler.neighbors.share * length.total_steps * config.batch_size
        show(inputs.sampler.neighbors.describe(inputs.faces.num_images, drawn))


def dry_run(inputs: RunInputs) -> None:
    """Print `describe`, what a run on GPUs needs, and where the run would begin, given its folder.

    Raises:
        ConfigError: the folder holds another run.
    """
    folder, last = inputs.folder(), inputs.length.total_steps
    folder.check(inputs.origin())
    describe(inputs)
    if isinstance(inputs.config, PretrainConfig) and inputs.config.compute.device == "cuda":
        for line in describe_cost(inputs.config, inputs.length, inputs.init_weights.frozen_architecture):
            show(line)
    steps = folder.steps()
    if is_finished(inputs):
        line = "the run is finished"
    elif steps:
        line = f"the run would continue at step {steps[-1]} of {last}"
    else:
        line = f"the run would begin at step 0 of {last}"
    show(line)
    if (device := inputs.config.compute.device) != "cpu" and not has_gpu():
        where = "in this process" if inputs.config.compute.workers == 0 else "unless a Ray cluster has some"
        show(f"compute.device={device}, but this machine has no GPU: the run fails {where}; without one, set {ON_CPU}")


def launch(config: TrainConfig, *, extend: bool = False) -> None:
    """Check a training job's inputs, then run it to its end.

    Args:
        config: of the run.
        extend: whether the run in the folder may become longer, and its schedule another.

    Raises:
        UserError: an error in the configuration, the data or the run's folder.
        Stopped: a signal ended the run early.
    """
    if config.compute.workers == 0:
        training_device(config)
    require_persistent_path("run.storage", config.run.storage)
    check_online_eval(config.online_eval)
    inputs = prepare_run(config, extend=extend)
    describe(inputs)
    with inputs.folder().lock(), log_to(terminal_handler(inputs)), _interruption(inputs):
        if not is_finished(inputs):
            _train(inputs)
    newest = inputs.folder().checkpoint_uri(inputs.length.total_steps)
    show(f"{config.run.name} is finished: {newest}")


def _train(inputs: RunInputs) -> None:
    if inputs.config.compute.workers == 0:
        run_in_process(inputs)
        return
    # Imported here: in debug mode, Ray need not be installed.
    with exit_at_once(_state_of(inputs)):
        from lafs_ray.engine.ray_train import run_on_ray

    run_on_ray(inputs)


@contextlib.contextmanager
def _interruption(inputs: RunInputs) -> Iterator[None]:
    """Turn a Ctrl-C that no handler took into `Stopped`, with what is saved."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, _state_of(inputs)) from None


def _state_of(inputs: RunInputs) -> str:
    steps, total = inputs.folder().steps(), inputs.length.total_steps
    if not steps:
        return "interrupted; nothing is saved yet, so the same command begins again"
    return f"interrupted; saved after step {steps[-1]} of {total}, where the same command continues"


def is_finished(inputs: RunInputs) -> bool:
    """Return whether the run's last checkpoint loads, and is evaluated if online_eval is on."""
    folder, last = inputs.folder(), inputs.length.total_steps
    if last not in folder.steps():
        return False
    if inputs.config.online_eval.enabled and last not in evaluated_steps(folder):
        return False
    checkpoint = folder.latest()
    return checkpoint is not None and checkpoint["step"] == last


def run_in_process(inputs: RunInputs) -> None:
    """Train to the end of the run without Ray, with its online evaluation (debug mode).

    Raises:
        Stopped: SIGTERM or Ctrl-C was received; the run has saved.
    """
    evaluator = None
    if inputs.config.online_eval.enabled:
        evaluator = OnlineEvaluator(inputs, evaluate_in_process(inputs.config))
    # The second Ctrl-C acts at once; so does the first in pdb, which has a handler of its own.
    with stop_request(signal.SIGTERM, signal.SIGINT) as request:
        hooks = Hooks(
            after_write=evaluator.saved if evaluator is not None else lambda _: None,
            run_request=lambda: RunRequest.NOTHING if request.signum is None else RunRequest.STOP,
        )
        if evaluator is not None:
            evaluator.catch_up()
        run_local(inputs, hooks)
        request.raise_if_stopped(inputs)
    if evaluator is not None and request.signum is None:
        evaluator.finish()
