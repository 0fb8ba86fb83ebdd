from __future__ import annotations

import os
import subprocess
import sys

import cv2
import torch

from lafs_ray.training.fingerprint import crop_fingerprint
from tests.training.faces import ROOT

PRINT = "from lafs_ray.training.fingerprint import crop_fingerprint as f; print(f())"


def in_a_process(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_crop_fingerprint__of_any_number_of_threads() -> None:
    """One to four threads, torch's and OpenCV's, and another process give the same fingerprint."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    found = {in_a_process(OMP_NUM_THREADS="2")}
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            crop_fingerprint.cache_clear()
            found.add(crop_fingerprint())
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert len(found) == 1
    assert len(found.pop()) == 8


def test_crop_fingerprint__of_another_cpu() -> None:
    """Kernels without AVX round otherwise, and the fingerprint shows it."""
    old = in_a_process(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    new = in_a_process(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    assert old != new
