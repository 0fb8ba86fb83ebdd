"""Ctrl-C while Ray starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.faces import ROOT, arguments


@pytest.mark.ray
@pytest.mark.parametrize("seconds", [pytest.param(0.2, marks=pytest.mark.long), 2.0])
def test_ctrl_c__while_ray_starts(tmp_path: Path, face_set_path: str, seconds: float) -> None:
    """The process ends with code 130 and says that nothing is saved; it neither crashes nor prints a traceback."""
    settings = ["compute.workers=1", "ingest.actors_per_worker=1", "ingest.cpus_per_actor=0.5"]
    process = subprocess.Popen(
        [sys.executable, *arguments("pretrain", tmp_path, face_set_path, *settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("starting Ray on this machine"):
                break
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, (process.returncode, errors)
    assert "Traceback" not in output + errors
    assert errors.splitlines()[-1] == "interrupted; nothing is saved yet, so the same command begins again"
