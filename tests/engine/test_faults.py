"""Runs on Ray from the command line that are hurt while they train, beside one that is not.

What a run reports is compared bit by bit with the run that nothing disturbed: a sample lost, repeated or taken from
another place in the order would change the losses from there on. Recovery times go to the log (`pytest -o log_cli=true
--log-cli-level=INFO`); docs/reliability.md lists them.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from lafs_ray.training.checkpoint.checkpoint_file import load_checkpoint
from tests.engine.jobs import INGEST, WORKER, Job, Nodes, command, kill, metrics, until
from tests.training.faces import NO_IMAGE, write_face_set

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1200)]

logger = logging.getLogger(__name__)

# Enough that preprocessing actors still have work when the first fault comes.
STEPS = 200
# 120 faces in batches of 8: 15 steps an epoch, so checkpoints lie inside epochs.
SETTINGS = [f"duration={STEPS} steps", "checkpoints.every=4 steps", "compute.workers=2", "ingest.actors_per_worker=1"]
# A worker that hangs is noticed after this long.
HANG_S = 30


# In every process of the cluster: the next fsync of a checkpoint fails once the file EIO is there.
EIO = """
import errno, os
fsync = os.fsync
def fails(descriptor):
    if ".pt." in os.readlink(f"/proc/self/fd/{descriptor}"):
        try:
            os.unlink(os.path.join(os.path.dirname(__file__), "EIO"))
        except FileNotFoundError:
            pass
        else:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    fsync(descriptor)
os.fsync = fails
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a file EIO makes the disk refuse a checkpoint."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "sitecustomize.py").write_text(EIO)
    return folder


@pytest.fixture(scope="module")
def nodes(disk: Path) -> Iterator[Nodes]:
    """A cluster for all jobs of this module, with room for three workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{disk}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        nodes = Nodes(9)
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def uninterrupted(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with nodes.job(command(folder, face_set_path, *SETTINGS)) as job:
        assert job.end() == 0, job.output
        job.assert_nothing_left()
    assert len(metrics(folder)) == STEPS
    return folder


def recovered(job: Job, since: float) -> float:
    """Wait until the workers have restarted and done a step.

    Returns:
        Seconds from `since` to then.
    """
    again = job.wait_for("continuing run at step", since)
    return job.wait_for(r"^step +\d+/", again) - since


def beyond(job: Job, step: int, since: float = 0.0) -> float:
    """Wait until this step, or one up to 20 later, is reported after a time."""
    steps = "|".join(str(number) for number in range(step, step + 20))
    return job.wait_for(rf"^step +({steps})/", since)


def kill_ingest(job: Job) -> float:
    """Kill a cropping process in its work; seconds until another one stands in for it."""
    running = set(job.processes(INGEST))
    since = kill(min(running))

    def another() -> set[int]:
        found = set(job.processes(INGEST)) - running
        assert found or job.process.poll() is None, f"ended without another one:\n{job.output}"
        return found

    until(another, "a new cropping process")
    return time.monotonic() - since


def kill_worker(job: Job) -> float:
    """Kill a training worker in its step."""
    return recovered(job, kill(job.processes(WORKER)[-1]))


def hang_worker(job: Job) -> float:
    """Stop a training worker in its step without ending it: the other one waits for it."""
    return recovered(job, kill(job.processes(WORKER)[-1], signal.SIGSTOP))


def lose_storage(job: Job, folder: Path) -> float:
    """Take the folder of checkpoints away until a checkpoint has missed it, then give it back."""
    there, away = folder / "run" / "checkpoints", folder / "run" / "away"
    there.rename(away)
    # Not just missing, which would be fixed: something that is not a folder.
    there.touch()
    try:
        refused = job.wait_for(r"checkpoint of step \d+ not written")
    finally:
        there.unlink()
        away.rename(there)
    return job.wait_for(r"checkpoint of step \d+ written on attempt", refused) - refused


def fail_fsync(job: Job, disk: Path) -> float:
    """Let the disk refuse the next checkpoint at its last step, fsync."""
    (disk / "EIO").touch()
    refused = job.wait_for(r"checkpoint of step \d+ not written .*Input/output error.*trying again", time.monotonic())
    return job.wait_for(r"checkpoint of step \d+ written on attempt 2", refused) - refused


@dataclass
class Battered:
    """What a run went through.

    Args:
        folder: of the run.
        output: all that it printed.
        seconds: that it took to recover from each fault.
    """

    folder: Path
    output: str
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def battered(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory, face_set_path: str, disk: Path) -> Battered:
    """One run that meets one fault after the other: starting Ray for each would take minutes."""
    folder = tmp_path_factory.mktemp("battered")
    patience = [f"compute.timeout_s={HANG_S}", "checkpoints.retry_s=20"]
    seconds = {}
    with nodes.job(command(folder, face_set_path, *SETTINGS, *patience)) as job:
        faults: list[tuple[int, str, Callable[[Job], float]]] = [
            (2, "ingest actor killed", kill_ingest),
            (9, "worker killed", kill_worker),
            (14, "storage fails", partial(lose_storage, folder=folder)),
            (18, "EIO from fsync", partial(fail_fsync, disk=disk)),
            (26, "worker hangs", hang_worker),
        ]
        since = 0.0
        for step, fault, happen in faults:
            beyond(job, step, since)
            since = time.monotonic()
            seconds[fault] = happen(job)
            logger.info("%s: recovered after %.1f s", fault, seconds[fault])
        assert job.end() == 0, job.output
        job.assert_nothing_left()
    return Battered(folder, job.output, seconds)


def test_faults__cost_no_sample_and_change_no_loss(battered: Battered, uninterrupted: Path) -> None:
    """Every step is reported once, with the losses of the run that nothing disturbed, to the bit; the checkpoints are
    complete, and no partial file is left."""
    assert metrics(battered.folder) == metrics(uninterrupted)
    names = sorted(os.listdir(battered.folder / "run" / "checkpoints"))
    assert names == [f"step-{step:08}.pt" for step in (STEPS - 4, STEPS)]
    for name in names:
        load_checkpoint(str(battered.folder / "run" / "checkpoints" / name))


def test_ingest_actor_killed__training_goes_on(battered: Battered) -> None:
    """Ray Data starts another preprocessing actor; the workers do not restart."""
    before_the_kill_of_a_worker = battered.output.partition("continuing run at step")[0]
    assert "ingest actor killed" in battered.seconds
    assert re.search(r"^step +9/", before_the_kill_of_a_worker, re.MULTILINE), battered.output


@pytest.mark.parametrize(("fault", "number"), [("worker killed", 1), ("worker hangs", 2)])
def test_worker_lost__continues_from_the_newest_checkpoint(battered: Battered, fault: str, number: int) -> None:
    """All workers restart by themselves, from at most four steps before; a hanging one is abandoned after
    compute.timeout_s."""
    pieces = re.split(r"^continuing run at step (\d+) of \d+$", battered.output, flags=re.M)
    assert len(pieces) == 5, "two restarts"
    last = int(re.findall(r"^step +(\d+)/", pieces[2 * number - 2], re.M)[-1])
    restored = int(pieces[2 * number - 1])
    # A checkpoint may still have been on its way.
    assert 0 <= last - restored <= 2 * 4
    assert battered.seconds[fault] < (90 if fault == "worker killed" else 90 + HANG_S)


def test_storage_fails_for_a_while__training_goes_on(battered: Battered) -> None:
    """The checkpoint is retried until it is written; no worker restarts."""
    assert re.search(r"checkpoint of step \d+ not written .*; trying again in 1 s", battered.output)
    assert re.search(r"checkpoint of step \d+ written on attempt \d+", battered.output)


def test_disk_refuses_a_checkpoint__it_is_written_again(battered: Battered) -> None:
    """EIO from the fsync of a checkpoint: tried again, no worker restarts, no partial file is left."""
    refused = re.search(r"checkpoint of step \d+ not written \(.*Input/output error", battered.output)
    assert refused
    assert "continuing run" not in battered.output[refused.start() :].partition("written on attempt")[0]


def test_sigterm__saves_at_once_and_the_same_command_continues_even_behind_a_cut_checkpoint(
    nodes: Nodes, tmp_path: Path, face_set_path: str, uninterrupted: Path
) -> None:
    """A spot notice: saved within seconds, exit code 143. Its checkpoint is then truncated on the disk: the run names
    it and continues from the one before, to the same losses."""
    folder = tmp_path / "run" / "checkpoints"
    with nodes.job(command(tmp_path, face_set_path, *SETTINGS)) as job:
        beyond(job, 5)
        since = kill(job.process.pid, signal.SIGTERM)
        assert job.end() == 143, job.output
        logger.info("SIGTERM: saved and ended after %.1f s", time.monotonic() - since)
        job.assert_nothing_left()
    stopped = re.search(rf"stopped by SIGTERM, saved after step (\d+) of {STEPS}; the same", job.output)
    assert stopped, job.output
    assert "Traceback" not in job.output
    newest = folder / f"step-{int(stopped[1]):08}.pt"
    assert sorted(os.listdir(folder))[-1] == newest.name
    assert [line["step"] for line in metrics(tmp_path)] == [*range(1, int(stopped[1]) + 1)]
    os.truncate(newest, newest.stat().st_size // 2)
    since = time.monotonic()
    with nodes.job(command(tmp_path, face_set_path, *SETTINGS)) as job:
        logger.info("checkpoint truncated: trains after %.1f s", recovered(job, since))
        assert job.end() == 0, job.output
    assert f"skipped a damaged checkpoint: {newest}" in job.output
    before = (int(stopped[1]) - 1) // 4 * 4
    assert f"continuing run at step {before} of {STEPS}" in job.output
    assert metrics(tmp_path) == metrics(uninterrupted)


def test_user_error_of_one_rank__ends_all_after_saving(nodes: Nodes, tmp_path: Path) -> None:
    """One rank finds more damaged records than allowed: all ranks end within seconds, not after compute.timeout_s, with
    its message and a checkpoint of the last step; nothing is restarted."""
    data = tmp_path / "train.rec"
    write_face_set(data, replaced=dict.fromkeys(range(0, 120, 10), NO_IMAGE))
    rarely = [*SETTINGS, "checkpoints.every=200 steps", "compute.timeout_s=500", "data.max_bad_records=8"]
    with nodes.job(command(tmp_path, data, *rarely)) as job:
        assert job.end() == 2, job.output
        ended = time.monotonic()
        job.assert_nothing_left()
    last = max(at for at, line in job.lines if line.startswith("step "))
    logger.info("user's error of one rank: all ended %.1f s after the last step", ended - last)
    assert ended - last < 120, "a quarter of the timeout, on any machine"
    assert "damaged records" in job.output
    assert "continuing run" not in job.output
    assert "Traceback" not in job.output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == f"step-{metrics(tmp_path)[-1]['step']:08}.pt"


def test_run_on_three_workers__continues_on_two(nodes: Nodes, tmp_path: Path, face_set_path: str) -> None:
    """Killed on three, continued on two: the losses of one process, as the global batch and the order of records stay
    the same."""
    # Dropout depends on the rank.
    plain = ["model.dropout=0", "model.drop_path=0", "batch_size=12", "duration=24 steps"]
    plain += ["checkpoints.every=4 steps", "ingest.actors_per_worker=1"]
    folder = tmp_path / "several"
    with nodes.job(command(folder, face_set_path, *plain, "compute.workers=3")) as job:
        beyond(job, 5)
        kill(job.process.pid)
        logger.info("driver killed: its processes gone after %.1f s", job.assert_nothing_left())
    assert metrics(folder)[-1]["step"] < 24, "killed too late to show anything"
    since = time.monotonic()
    with nodes.job(command(folder, face_set_path, *plain, "compute.workers=2")) as job:
        logger.info("driver killed: same command trains after %.1f s", recovered(job, since))
        assert job.end() == 0, job.output
    with nodes.job(command(tmp_path / "one", face_set_path, *plain, "compute.workers=0")) as job:
        assert job.end() == 0, job.output
    ours, theirs = metrics(folder), metrics(tmp_path / "one")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [*range(1, 25)]
    for mine, other in zip(ours, theirs, strict=True):
        # float32 sums in another order; Adam magnifies rounding of small gradients step by step.
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3), mine["step"]
