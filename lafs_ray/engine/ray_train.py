"""A training job on Ray: TorchTrainer workers, each with its own Ray Data stream.

Checkpoints are written by `lafs_ray.training`, as in debug mode; Ray Train gets the metrics of each, and restarts
failed workers, which continue from the newest one. Ours: Ray Train gets no checkpoint object. It would write its record
of them to the run's storage during the step and without a retry; and a kill can leave that record truncated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from concurrent.futures import Future
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from lafs_ray.config.train import OnlineEval, TrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.engine.console import log_to
from lafs_ray.engine.driver_channel import ChannelHandler, DriverChannel, RequestListener
from lafs_ray.engine.follower import Follower
from lafs_ray.engine.online_eval import OnlineEvaluator, StartEvaluation, evaluate_checkpoint
from lafs_ray.engine.process_group import ProcessGroup
from lafs_ray.engine.prometheus import Gauges
from lafs_ray.engine.ray_ingest import Shared, rank_stream, share
from lafs_ray.engine.ray_session import QUIET, is_local
from lafs_ray.engine.resources import connect
from lafs_ray.engine.signals import StopRequest, stop_request
from lafs_ray.engine.train_controller import needed, run_controller
from lafs_ray.errors import TrainingError, UserError, find_user_error
from lafs_ray.training.distributed import SharedFailure, reduce_gradients
from lafs_ray.training.prepare import RunInputs
from lafs_ray.training.run_request import RunRequest
from lafs_ray.training.runner import Hooks, run_rank

logger = logging.getLogger(__name__)


def run_on_ray(inputs: RunInputs) -> None:
    """Train to the end of the run on Ray.

    Raises:
        ConfigError: the cluster is too small for the run.
        UserError: raised by a worker.
        Stopped: SIGTERM or Ctrl-C was received; the run has saved.
        TrainingFailedError: workers failed more often than compute.max_failures.
    """
    config = inputs.config
    connect(config)
    evaluator = None
    if config.online_eval.enabled:
        evaluator = OnlineEvaluator(inputs, _evaluate_on_ray(config))
    # After connecting, as Ray installs a handler of its own there.
    with stop_request(signal.SIGTERM, signal.SIGINT) as request:
        _fit(inputs, evaluator, request)
        request.raise_if_stopped(inputs)
    if evaluator is not None and request.signum is None:
        evaluator.finish()


def _fit(inputs: RunInputs, evaluator: OnlineEvaluator | None, request: StopRequest) -> None:
    # On the driver's node: elsewhere the loss of a worker's node could end the run with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    channel = ray.remote(num_cpus=0, scheduling_strategy=here)(DriverChannel).remote()
    if evaluator is not None:
        evaluator.catch_up()
    follower = Follower(channel, evaluator, request)
    try:
        with follower:
            _trainer(inputs, channel, follower).fit()
    except Exception as error:
        user_error = _user_error(channel) or find_user_error(error)
        if user_error is not None:
            raise user_error from None
        if follower.failure is None:
            raise
    if (user_error := _user_error(channel)) is not None:
        raise user_error
    if follower.failure is not None:
        raise follower.failure


def _user_error(channel: Any) -> UserError | None:
    with contextlib.suppress(ray.exceptions.RayError):  # its process may have died
        found: UserError | None = ray.get(channel.error.remote(), timeout=30)
        return found
    return None


def _trainer(inputs: RunInputs, channel: Any, follower: Follower) -> TorchTrainer:
    config, compute = inputs.config, inputs.config.compute
    fewest, workers = compute.min_workers, compute.workers
    uses_gpu = compute.device == "cuda"
    shared = share(inputs)
    # A new name for each start: no old record of Ray's can interfere with resuming.
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    trainer = _Trainer(
        train_worker,
        # References alone: the controller reads this too, and imports no torch.
        train_loop_config={"inputs": (shared.source, shared.rest), "channel": channel},
        scaling_config=ScalingConfig(
            num_workers=workers if fewest is None else (fewest, workers),
            use_gpu=uses_gpu,
            resources_per_worker={
                "CPU": config.compute.cpus_per_worker,
                **({"GPU": config.compute.gpus_per_worker} if uses_gpu else {}),
            },
            label_selector=dict(config.compute.node_labels) or None,
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=filesystem.join(inputs.folder().uri, "ray"),
            failure_config=FailureConfig(max_failures=config.compute.max_failures, controller_failure_limit=3),
            worker_runtime_env={} if is_local() else {"env_vars": QUIET},
        ),
        # With gloo beside NCCL, ranks share failures without waiting for their GPUs.
        torch_config=ProcessGroup("cpu:gloo,cuda:nccl" if uses_gpu else "gloo", int(config.compute.timeout_s)),
    )
    trainer.follower = follower
    return trainer


class _Trainer(TorchTrainer):  # type: ignore[misc] # Ray ships no types
    """Ours: Ctrl-C is a `StopRequest`, where Ray's handler would kill workers that have not saved; fewer processes."""

    follower: Follower

    def _create_default_callbacks(self) -> list[Any]:
        # An actor that trains is the trial of a sweep.
        owns_ray = is_local() and ray.get_runtime_context().get_actor_id() is None
        return needed(super()._create_default_callbacks(), owns_ray=owns_ray)

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        return run_controller(self._keep, is_local=is_local(), **arguments)

    def _keep(self, controller: Any) -> None:
        # It can end all workers.
        self.follower.controller = controller


def _evaluate_on_ray(config: TrainConfig) -> StartEvaluation:
    """Return a function that evaluates each checkpoint in a Ray task of its own."""
    online_eval = config.online_eval
    task = ray.remote(num_cpus=online_eval.cpus, num_gpus=int(online_eval.device == "cuda"), max_retries=0)(
        _evaluate_task
    )

    def start(uri: str) -> Future[dict[str, float]]:
        future: Future[dict[str, float]] = task.remote(uri, online_eval).future()
        return future

    return start


def _evaluate_task(uri: str, online_eval: OnlineEval) -> dict[str, float]:
    torch.set_num_threads(online_eval.cpus)
    return evaluate_checkpoint(uri, online_eval, online_eval.device)


def train_worker(loop_config: dict[str, Any]) -> None:
    """Train on one rank; the function that each Ray Train worker runs."""
    channel = loop_config["channel"]
    if ray.get(channel.error.remote()) is not None:
        return
    try:
        _train_worker(Shared(*loop_config["inputs"]), channel)
    except Exception as error:
        # Those that all ranks raise are shared; of others, the ranks that wait for this one know nothing.
        is_shared = isinstance(error, (SharedFailure, TrainingError))
        user_error = find_user_error(error)
        if user_error is not None:
            # A restart would meet the same error: keep it, end this rank, and let the others follow.
            ray.get(channel.fail.remote(user_error, alone=not is_shared))
            return
        rank = ray.train.get_context().get_world_rank()
        if rank == 0 or not is_shared:
            with log_to(ChannelHandler(channel)):
                logger.warning("rank %d failed: %s: %s", rank, type(error).__name__, " ".join(str(error).split())[:500])
        raise


def _train_worker(shared: Shared, channel: Any) -> None:
    inputs = shared.inputs()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()

    def wrap(network: nn.Module) -> nn.Module:
        return network if world == 1 else reduce_gradients(network, device, inputs.config.compute.reduce_precision)

    def report(line: dict[str, Any]) -> None:
        # The checkpoint is being written; Ray Train keeps the metrics and its future path.
        uri = inputs.folder().checkpoint_uri(line["step"])
        ray.train.report({**line, "checkpoint_path": uri})

    listener = RequestListener(channel) if rank == 0 else None
    evaluates = inputs.config.online_eval.enabled
    logs = log_to(ChannelHandler(channel)) if rank == 0 else contextlib.nullcontext()
    with logs:
        run_rank(
            inputs,
            lambda first, stop: rank_stream(inputs, shared, rank, world, first, stop),
            device=device,
            rank=rank,
            wrap=wrap,
            hooks=Hooks(
                on_report=Gauges(inputs.config.run.name).set,
                after_save=report,
                after_write=channel.saved.remote if evaluates else lambda _: None,
                protected_steps=((lambda: ray.get(channel.protected_steps.remote())) if evaluates else tuple),
                run_request=(lambda: RunRequest.NOTHING) if listener is None else listener.take,
            ),
        )
