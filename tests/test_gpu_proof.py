"""The proof on a GPU, on a CPU: that its stages run, skip and fail as they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_speed, gpu_stages
from benchmarks.gpu_proof import STAGES, run_stages, summary

ROOT = Path(__file__).parent.parent


def proof(folder: Path, *stages: str, path: Path | None = None, limit_s: float = 200) -> tuple[int, dict[str, Any]]:
    """Exit code, and the results by stage, of a proof on the CPU."""
    found = [str(each) for each in (path, ROOT) if each is not None]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_proof", "--device", "cpu", "--folder", str(folder), "--stages", *stages],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(found)},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    return done.returncode, {name: json.loads((folder / f"{name}.json").read_text()) for name in stages}


def test_proof__stages_are_written() -> None:
    """Every stage with a limit is there, and the limits leave time for most."""
    assert set(STAGES) == set(gpu_stages.STAGES | gpu_speed.STAGES)


def test_proof__on_a_cpu(tmp_path: Path) -> None:
    """Four stages pass, each with a file; the summary has their tables."""
    code, found = proof(tmp_path, "environment", "no_host_sync", "attention", "neighbors")
    assert code == 0, found
    assert {result["status"] for result in found.values()} == {"passed"}, found
    assert found["no_host_sync"]["steps"] == 3
    assert found["neighbors"]["faces"] == 2000
    rows = found["attention"]["rows"]
    assert [row["keys"] for row in rows] == [197, 37, 197, 37]
    assert all(row["math"] > 0 for row in rows)
    text = (tmp_path / "summary.md").read_text()
    assert "| attention | passed |" in text
    assert "| views | queries | keys |" in text


@pytest.mark.ray
@pytest.mark.long
def test_proof__ray_on_a_cpu(tmp_path: Path) -> None:
    """The loop inside TorchTrainer runs beside the bare one, with equal losses, and their steps' ratio is kept."""
    pytest.importorskip("ray")
    code, found = proof(tmp_path, "ray", limit_s=400)
    assert code == 0, found
    assert found["ray"]["status"] == "passed"
    assert found["ray"]["step_to_bare"] > 0
    assert "equal losses in all runs" in found["ray"]["printed"]


def test_proof__without_pydantic(tmp_path: Path) -> None:
    """What imports the package is skipped and says why; the rest runs."""
    missing = tmp_path / "pydantic.py"
    missing.write_text("raise ModuleNotFoundError(\"No module named 'pydantic'\", name='pydantic')\n")
    code, found = proof(tmp_path, "environment", "resume", path=tmp_path)
    assert code == 0, found
    assert found["environment"]["status"] == "passed"
    assert found["resume"]["status"] == "skipped"
    assert "pydantic" in found["resume"]["reason"]


def test_proof__a_stage_that_fails(tmp_path: Path) -> None:
    """A GPU that is not there is an error of its stage, and of the command; the others run."""
    assert not run_stages(["environment", "ceilings"], "nowhere", tmp_path)
    (result,) = (json.loads((tmp_path / "ceilings.json").read_text()),)
    assert result["status"] == "failed"
    assert "| ceilings | failed |" in summary(tmp_path)
