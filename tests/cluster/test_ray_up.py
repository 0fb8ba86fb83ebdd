"""A real `ray up` over sshd on hosts in network namespaces, a job over two of them, `ray down`.

`rehearsal.sh` goes the way once, with Ray's own command line; the tests read what it left behind.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lafs_ray.training.checkpoint.metrics_log import read_metrics
from tests.training.faces import ROOT, TINY_PRETRAIN, write_face_set

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(700)]

HERE = Path(__file__).parent
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
MISSING = 3
# A row of the table of ports in docs/cluster.md.
DOCUMENTED = re.compile(
    r"^\| (?P<port>\d+) \| (?P<host>head|every) \| (?P<bound>[a-z, ]+) \| .* "
    r"\| (?P<token>yes|no) \|$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a rehearsal that has ended well."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "faces").mkdir()
    write_face_set(folder / "faces" / "train.rec")
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv (util-linux), without which a killed pytest would leave hosts behind")
    command = ["setpriv", "--pdeathsig", "KILL", str(HERE / "hosts.sh"), str(folder), "1"]
    command += ["--", str(HERE / "rehearsal.sh"), str(folder), *TINY_PRETRAIN]
    # The environment's programs first: hosts.sh shows the hosts the environment that `python` has.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (
        (folder / "rehearsal.log").open("w") as log,
        subprocess.Popen(
            [*command, "duration=6 steps", "checkpoints.every=3 steps"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**clean, "PATH": path, "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        try:
            code = process.wait(timeout=620)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Its end is the end of all hosts and of every process on them.
            process.kill()
    if code == MISSING:
        pytest.skip((folder / "rehearsal.log").read_text().strip())
    logs = [f"\n--- {log.name}\n{log.read_text()[-1500:]}" for log in folder.glob("*.log")]
    assert code == 0, "".join(logs)
    return folder


def test_every_host__joins(rehearsal: Path) -> None:
    status = (rehearsal / "status.txt").read_text()
    assert "2 local.cluster.node" in status
    # Five each, as hosts.sh says.
    assert "0.0/10.0 CPU" in status


def test_job__trains_over_both_hosts_and_its_log_is_followed(rehearsal: Path) -> None:
    """Two workers of three CPUs fit on no host of five, and each did half of every step."""
    log = (rehearsal / "job.log").read_text()
    assert "Job 'rehearsal' succeeded" in log
    assert re.search(r"step +6/6", log), log[-2000:]
    run = rehearsal / "runs" / "rehearsal"
    assert [line["step"] for line in read_metrics(str(run / "metrics.jsonl"))] == [1, 2, 3, 4, 5, 6]
    assert (run / "checkpoints" / "step-00000006.pt").exists()


def test_mistake__reaches_the_status_and_the_message_of_the_job(rehearsal: Path) -> None:
    """debug.yaml keeps runs in ./runs, which on the head is the folder that Ray deletes."""
    log = (rehearsal / "mistake.log").read_text()
    assert "Job 'mistake' failed" in log
    assert "exit code 2" in log
    for part in ("error: run.storage", "/runs, below the folder", "expected: a path that remains", "to do:"):
        assert part in log, log
    assert "Traceback" not in log


@pytest.mark.parametrize("who", ["stranger", "forger"])
def test_submission__without_the_token_or_with_another_is_refused(who: str, rehearsal: Path) -> None:
    log = (rehearsal / f"{who}.log").read_text()
    assert "AuthenticationError" in log, log[-2000:]
    assert "submitted successfully" not in log
    assert not (rehearsal / "stranger-was-here").exists()


def documented(host: str) -> set[tuple[int, str]]:
    """(port, bound to) of the table in docs/cluster.md, for the head or for a worker."""
    return {
        (int(row["port"]), where)
        for row in DOCUMENTED.finditer((ROOT / "docs" / "cluster.md").read_text())
        if row["host"] in ("every", host)
        for where in row["bound"].split(", ")
    }


@pytest.mark.parametrize(("name", "address", "kind"), [("head", HEAD, "head"), ("worker1", WORKER, "worker")])
def test_listeners__are_those_that_the_documentation_names(name: str, address: str, kind: str, rehearsal: Path) -> None:
    """No more ports than in the table are reachable, and no fewer."""
    listening = set()
    for line in (rehearsal / name / "listening.txt").read_text().splitlines():
        where, port = line.split()[3].rsplit(":", 1)
        listening.add((int(port), bound_to(where.strip("[]"), address)))
    workers = {(port, "all") for port, where in listening if 20000 <= port <= 20999 and where == "all"}
    assert listening - workers - {(22, "all")} == documented(kind)


@pytest.mark.parametrize(("name", "kind"), [("head", "head"), ("worker1", "worker")])
def test_listeners__ask_for_the_token_where_the_documentation_says_so(name: str, kind: str, rehearsal: Path) -> None:
    """Without it, all but the pages of metrics refuse; 8265 cannot be reached from outside."""
    lines = (rehearsal / name / "answers.txt").read_text().splitlines()
    answers = {found["port"]: found["answer"] for found in map(json.loads, lines)}
    expected = {}
    for row in DOCUMENTED.finditer((ROOT / "docs" / "cluster.md").read_text()):
        if row["host"] in ("every", kind) and row["bound"] != "loopback":
            expected[int(row["port"])] = row["token"]
    workers = {port: "yes" for port in answers if port >= 20000 and port not in expected}
    assert len(workers) == (kind == "worker")
    assert answers.keys() == {*expected, *workers}
    refused = {"UNAUTHENTICATED", "401", "403"}
    for port, token in {**expected, **workers}.items():
        assert (answers[port] in refused) == (token == "yes"), (port, answers[port])


def bound_to(where: str, own: str) -> str:
    where = where.removeprefix("::ffff:").split("%")[0]
    if where in ("*", "0.0.0.0", "::"):
        return "all"
    if ipaddress.ip_address(where).is_loopback:
        return "loopback"
    return "own" if where == own else where


def test_ray_down__leaves_no_ray_and_the_end_no_process(rehearsal: Path) -> None:
    assert (rehearsal / "head" / "left.txt").read_text() == ""
    assert (rehearsal / "worker1" / "left.txt").read_text() == ""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    assert [command for command in commands if str(rehearsal) in command] == []
