"""`configs/cluster/slurm.sbatch`: its logic with a stand-in for Ray, and a run on hosts in network namespaces.

In both, stand-ins take the place of srun and scontrol. `slurm_rehearsal.sh` is a run whose time is up, on a real Ray of
two hosts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lafs_ray.training.checkpoint.metrics_log import read_metrics
from tests.training.faces import ROOT, TINY_PRETRAIN, write_face_set

HERE = Path(__file__).parent
SCRIPT = ROOT / "configs" / "cluster" / "slurm.sbatch"
MISSING = 3

# On one node: options away, then the command with what Slurm sets in a step.
SRUN = 'while [[ $1 == --* ]]; do shift; done\nSLURM_CPUS_ON_NODE=$SLURM_CPUS_PER_TASK exec "$@"'
SCONTROL = 'echo "$@" >> "$0.log"; [ "$1" != show ] || printf "node%s\\n" 1 2'
# `ray symmetric-run` on the first node: options to a file, then the command.
RAY = 'echo "$@" > "$0.log"; while [ "$1" != -- ]; do shift; done; shift; "$@"'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with stand-ins for srun, scontrol and ray."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def submit(programs: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Start the script as Slurm would, on the first node of two."""
    job = f"test-{os.getpid()}-{time.monotonic_ns()}"
    slurm = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    environment = {**os.environ, **slurm, "SLURM_CPUS_PER_TASK": "5", "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, **variables},
        cwd=programs.parent,
    )


@pytest.fixture(autouse=True)
def _no_folders_left() -> Iterator[None]:
    yield
    for folder in Path("/tmp").glob(f"lafs-test-{os.getpid()}-*"):
        shutil.rmtree(folder)


def requeued(programs: Path) -> bool:
    return "requeue test-" in (programs / "scontrol.log").read_text()


def test_command__gets_its_arguments_and_the_address_of_the_first_node(programs: Path) -> None:
    """Arguments with spaces and quotes arrive as they are; Ray has the nodes, processors, ports and the token."""
    program = "import os, sys; print(sys.argv[1:], os.environ['RAY_ADDRESS'], os.environ['RAY_AUTH_MODE'])"
    with submit(programs, sys.executable, "-c", program, "duration=10 epochs", "a='{b: c}'", "--") as job:
        out, _ = job.communicate(timeout=30)
    assert job.returncode == 0, out
    assert """['duration=10 epochs', "a='{b: c}'", '--'] node1:6379 token""" in out
    options = (programs / "ray.log").read_text().partition(" -- ")[0].split()
    assert options[:5] == [*("symmetric-run", "--address=node1:6379", "--min-nodes=2", "--num-cpus=5", "--num-gpus=0")]
    assert "--labels=pool=cpu" in options
    documented = (ROOT / "docs" / "cluster.md").read_text()
    ports = re.findall(r"--[a-z-]*port=(\d+)", " ".join(options))
    assert len(ports) == 8
    assert [port for port in ports if not re.search(rf"^\| .*\b{port}\b", documented, re.MULTILINE)] == []
    assert not requeued(programs)


def test_gpus__are_those_that_slurm_gives(programs: Path) -> None:
    with submit(programs, "true", SLURM_GPUS_ON_NODE="4") as job:
        job.communicate(timeout=30)
    options = (programs / "ray.log").read_text()
    assert "--num-gpus=4" in options
    assert "--labels=pool=gpu" in options


# A command that saves for a moment when its time is up, and says so.
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(int(sys.argv[1]))
signal.signal(signal.SIGTERM, save)
print("trains", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("signum", "code", "again"),
    [(signal.SIGUSR1, 143, True), (signal.SIGUSR1, 2, False), (signal.SIGUSR1, 0, False), (signal.SIGTERM, 143, False)],
)
def test_time_is_up__saved_and_requeued(programs: Path, signum: int, code: int, again: bool) -> None:
    """The command alone gets SIGTERM; only one that time ended starts again, not one that a user stopped."""
    with submit(programs, sys.executable, "-c", SAVES, str(code)) as job:
        assert job.stdout is not None
        while "trains" not in job.stdout.readline():
            pass
        job.send_signal(signum)
        out, _ = job.communicate(timeout=30)
    assert "saved" in out
    assert job.returncode == code, out
    assert requeued(programs) == again


@pytest.mark.parametrize(("command", "code"), [(["bash", "-c", "exit 2"], 2), ([], 2)])
def test_mistake__ends_the_job_with_its_code(programs: Path, command: list[str], code: int) -> None:
    with submit(programs, *command) as job:
        out, _ = job.communicate(timeout=30)
    assert job.returncode == code
    assert ("usage: " in out) == (not command)


def test_ray_that_does_not_start__is_an_error(programs: Path) -> None:
    """`ray symmetric-run` ends with 0 when Ray does not start."""
    (programs / "ray").write_text("#!/usr/bin/env bash\necho 'Failed to start Ray: port 6379 is taken'\n")
    with submit(programs, "true") as job:
        out, _ = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "port 6379 is taken" in out
    assert "error: Ray did not start on all nodes" in out


def test_options__of_sbatch_come_before_the_first_command() -> None:
    """sbatch reads them up to there; the batch script alone gets the signal, and lines are appended on a restart."""
    head, _, _ = SCRIPT.read_text().partition("\nset -euo")
    options = dict(line.partition("=")[::2] for line in re.findall("^#SBATCH --(.*)$", head, re.MULTILINE))
    assert options["signal"].startswith("B:USR1@")
    assert options["open-mode"] == "append"
    assert {"requeue", "exclusive"} <= set(options)
    assert "#SBATCH" not in SCRIPT.read_text().removeprefix(head)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(700)
def test_run_whose_time_is_up__continues_when_the_job_starts_again(tmp_path: Path) -> None:
    """On a real Ray of two hosts: saved with code 143 and requeued; the same job finishes the run, with every step."""
    pytest.importorskip("ray")
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv (util-linux), without which a killed pytest would leave hosts behind")
    (tmp_path / "faces").mkdir()
    write_face_set(tmp_path / "faces" / "train.rec")
    # Long enough to be stopped, and without a checkpoint of its own before the end.
    length = ["duration=40 steps", "checkpoints.every=100 steps"]
    command = ["setpriv", "--pdeathsig", "KILL", str(HERE / "slurm.sh"), str(tmp_path), "1"]
    command += ["--", str(HERE / "slurm_rehearsal.sh"), str(tmp_path), *TINY_PRETRAIN, *length]
    log = run(command, {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"})
    job = tmp_path / "jobs" / "1"
    first, second = (job / "first.log").read_text(), (job / "log").read_text()
    assert (job / "code").read_text() == "143\n", log + first[-3000:]
    saved = re.search(r"stopped by SIGTERM, saved after step (\d+) of 40; the same command continues", first)
    assert saved is not None, first[-3000:]
    assert (job / "requeued").exists()
    assert (job / "second.code").read_text() == "0\n", second[-3000:]
    assert "slurm is finished" in second
    assert int(saved[1]) < 40
    run_folder = tmp_path / "runs" / "slurm"
    assert (run_folder / "checkpoints" / f"step-{int(saved[1]):08d}.pt").exists()
    assert (run_folder / "checkpoints" / "step-00000040.pt").exists()
    assert [line["step"] for line in read_metrics(str(run_folder / "metrics.jsonl"))] == list(range(1, 41))
    # Ray's own lines on every process are left out, and no line is cut into them.
    assert " VINFO " not in first + second
    assert "worker1: " in first


def run(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a script on hosts of its own; skips where they are not possible.

    Returns:
        What it printed.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # Its end is the end of all hosts and of every process on them.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean, **environment},
        timeout=620,
        check=False,
    )
    if done.returncode == MISSING:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
