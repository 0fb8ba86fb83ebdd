"""Pretraining on Ray from the command line: equal to debug mode, killed, continued, refused."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lafs_ray.cli.train import launch
from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.train import OnlineEval
from lafs_ray.data.sampler import EpochSampler
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.engine.online_eval import evaluate_checkpoint
from lafs_ray.errors import ConfigError
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.monitoring.metrics import TIMES
from tests import local_ray
from tests.training.faces import NO_IMAGE, PRETRAIN, ROOT, TINY_PRETRAIN, face_jpegs, tiny, write_face_set

# A test starts up to three runs of its own, each bounded below, and one for the fixture.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

# 120 faces in batches of 8: 15 steps an epoch, so the checkpoints at 6, 12, 18 lie inside epochs.
SETTINGS = [
    *TINY_PRETRAIN,
    "duration=24 steps",
    "checkpoints.every=6 steps",
    "compute.workers=2",
    "ingest.actors_per_worker=1",
]

# Two ranks draw other dropout masks than one process.
PLAIN = ["model.dropout=0", "model.drop_path=0"]


def settings(folder: Path, data: Path | str, *overrides: str) -> list[str]:
    # Relative, as users type them: Ray's workers run in another folder.
    paths = [os.path.relpath(path, ROOT) for path in (data, folder)]
    return [f"data.path={paths[0]}", f"run.storage={paths[1]}", "run.name=run", *SETTINGS, *overrides]


def command(folder: Path, data: Path | str, *overrides: str) -> list[str]:
    return [sys.executable, "jobs/pretrain.py", PRETRAIN, *settings(folder, data, *overrides)]


def run(folder: Path, data: Path | str, *overrides: str) -> str:
    """What the command prints, in this process and on its Ray."""
    local_ray.start()
    with pytest.MonkeyPatch.context() as there, contextlib.redirect_stdout(io.StringIO()) as out:
        there.chdir(ROOT)
        launch(load(PretrainConfig, PRETRAIN, settings(folder, data, *overrides)))
    return out.getvalue()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(str(folder / "run" / "metrics.jsonl"))
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_pairs(str(folder / "pairs.bin"), face_jpegs(20), [True, False] * 5)
    pairs = os.path.relpath(folder / "pairs.bin", ROOT)
    # Steps of milliseconds would delete a checkpoint before the evaluation's process has started.
    kept = "checkpoints.keep=9"
    evaluated = [f"online_eval.pairs={pairs}", "online_eval.every=12 steps", kept]
    printed = run(folder, face_set_path, *PLAIN, *evaluated)
    assert "step 24/24" in printed
    assert "evaluation of step 24: pair_accuracy" in printed
    return folder


def test_two_workers__train_like_one_process(uninterrupted: Path, tmp_path: Path, face_set_path: str) -> None:
    """Without dropout, the mean loss of two ranks is that of one process with the full batch."""
    run(tmp_path, face_set_path, *PLAIN, "compute.workers=0")
    two, one = metrics(uninterrupted), metrics(tmp_path)
    assert len(two) == len(one) == 24
    # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
    for mine, theirs in zip(two[:4], one[:4], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["center_norm"] == pytest.approx(theirs["center_norm"], rel=1e-3)


def test_killed_run__continues_mid_epoch_with_the_losses_of_the_uninterrupted_one(
    uninterrupted: Path, tmp_path: Path, face_set_path: str
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006.pt"
    with subprocess.Popen(
        command(tmp_path, face_set_path, *PLAIN),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 180
        while not checkpoint.exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline, "no checkpoint in 180 s"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    before = metrics(tmp_path)
    assert before[-1]["step"] < 24, "killed too late to show anything"
    assert "continuing run at step" in run(tmp_path, face_set_path, *PLAIN)
    assert metrics(tmp_path) == metrics(uninterrupted)


def test_online_eval__evaluates_checkpoints_beside_training(uninterrupted: Path) -> None:
    """Lines are ordered by step and end with the last one; its metrics are the checkpoint's."""
    lines = read_metrics(str(uninterrupted / "run" / "eval.jsonl"))
    # That of step 12 may still run when step 24 is reached, never the other way round.
    assert [line["step"] for line in lines] == [12, 24]
    online_eval = OnlineEval(pairs=str(uninterrupted / "pairs.bin"))
    newest = str(uninterrupted / "run" / "checkpoints" / "step-00000024.pt")
    expected = evaluate_checkpoint(newest, online_eval, "cpu")
    assert lines[-1]["pair_accuracy"] == expected["pair_accuracy"]
    # Another number of threads may sum in another order.
    assert lines[-1]["pair_auc"] == pytest.approx(expected["pair_auc"], abs=0.02)


def test_finished_run__ends_at_once_and_changes_nothing(uninterrupted: Path, face_set_path: str) -> None:
    before = metrics(uninterrupted)
    assert "run is finished" in run(uninterrupted, face_set_path, *PLAIN)
    assert metrics(uninterrupted) == before


@pytest.mark.long  # tests/engine/test_follower.py has two ranks without a pipeline
def test_user_error_of_a_worker__ends_all_after_saving(tmp_path: Path) -> None:
    """One rank finds too many damaged records between reports: the message crosses three processes, the steps before
    are saved. A rank that waited for the other would do so for compute.timeout_s, 600 s."""
    damaged = {*range(0, 120, 10)}
    data = tmp_path / "train.rec"
    write_face_set(data, replaced=dict.fromkeys(damaged, NO_IMAGE))
    sampler = EpochSampler(120, 8, 0, tiny(tmp_path, str(data)).data.chunk_records)

    def met(rank: int, steps: int) -> int:
        blocks = [block for blocks in sampler.blocks(0, steps, rank, 2) for block in blocks]
        return len(damaged.intersection(*[np.concatenate([sampler.indices(block).ravel() for block in blocks])]))

    ended = next(steps for steps in range(1, 15) if max(met(0, steps), met(1, steps)) > 2)
    assert met(0, ended) != met(1, ended), "one rank alone"
    step = ended - 1
    assert step > 0
    rarely = ["data.max_bad_records=2", "checkpoints.every=24 steps", "log.every_steps=24"]
    done = subprocess.run(
        command(tmp_path, data, *rarely), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "damaged records" in done.stderr
    assert "at most 2 (data.max_bad_records)" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "run" / "checkpoints") == [f"step-{step:08}.pt"]
    assert [line["step"] for line in metrics(tmp_path)] == [step]


def test_join_cluster__shows_the_arithmetic(
    tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from lafs_ray.engine import ray_session
    from lafs_ray.engine.resources import _cpu_arithmetic

    config = tiny(tmp_path, face_set_path, "compute.workers=2", "ingest.actors_per_worker=3")
    evaluated = tiny(tmp_path, face_set_path, "online_eval.pairs=a.bin", "online_eval.cpus=2")
    assert _cpu_arithmetic(evaluated).endswith("+ 1 for reading) + online_eval.cpus 2")
    monkeypatch.setattr(ray_session, "start_or_join", lambda _: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ConfigError, match="cluster's CPUs") as raised:
        ray_session.join_cluster(10.0, _cpu_arithmetic(config))
    message = str(raised.value)
    assert "found:    4" in message
    assert "at least 10: 2 workers × (compute.cpus_per_worker 1 + ingest.actors_per_worker 3" in (message)
