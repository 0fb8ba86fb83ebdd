"""The commands of README.md run as they stand, with small sizes appended."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lafs_ray.cli.lafs import lafs
from tests.data.test_ijb import write_protocol
from tests.models.published import pretraining, small
from tests.training.faces import ROOT, face_jpegs

# Not run here, and why.
ELSEWHERE = {
    "make demo": "minutes; `make demo` is its own check",
    "make environment": "this test runs in that environment",
    "export RAY_AUTH_MODE": "tests/cluster runs ray up to ray down over ssh",
    "lafs align photos aligned": "tests/cli/test_align.py runs both commands",
    "lafs pretrain cpu data.path=aligned": "tests/cli/test_align.py runs both commands",
    "lafs pairs lfw lfw.bin --list pairs.txt": "tests/cli/test_evaluate.py runs both commands",
    "lafs evaluate runs/lafs_cpu": "tests/cli/test_evaluate.py runs both commands",
    "ray up": "tests/cluster runs ray up to ray down over ssh",
    "ray job submit": "tests/cluster runs ray up to ray down over ssh",
    "ray down": "tests/cluster runs ray up to ray down over ssh",
}

_TINY = "model.size=tiny model.landmark_cnn_width=0.25 'duration=4 steps'"
_CPU = "compute.workers=0 compute.device=cpu compute.precision=float32 log.every_steps=2"
_OPTIM = "batch_size=8 accumulation=1 'optim.warmup=1 steps' checkpoints.every='2 steps'"
_HEAD = "head.num_prototypes=64 head.hidden_dim=32 head.bottleneck_dim=16"
TRAIN = f"{_TINY} {_CPU} {_OPTIM}"
PRETRAIN = f"{TRAIN} {_HEAD} dino.teacher_temp.warmup_epochs=0"
SWEEP = " ".join(f"settings.{one}" for one in shlex.split(TRAIN)).replace(" steps", "\\ steps")

# Beginning of a command → what is appended to it; the first that fits.
SMALL = {
    "lafs make-faces": "--identities 4 --images 4 --pairs 20",
    "lafs pack": "--workers 0",
    "lafs cache-landmarks": "--workers 0",
    "lafs finetune": TRAIN,
    "lafs pretrain": PRETRAIN,
    "lafs sweep": f"--dry-run objective.reports=2 objective.metric=pair_accuracy {SWEEP}",
    "lafs ": "",
}


def commands() -> list[str]:
    """Each command of README's bash blocks on one line, without its comment."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines]
    return [command for command in commands if command]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what README's commands name: a set, pairs, photos, weights."""
    folder = tmp_path_factory.mktemp("readme")
    here(folder, "lafs make-faces . --identities 12 --images 4 --pairs 20")
    (folder / "photos").mkdir()
    for number, jpeg in enumerate(face_jpegs(6)):
        (folder / "photos" / f"{number}.jpg").write_bytes(jpeg)
    here(folder, "lafs make-faces others --identities 4 --images 2 --pairs 20 --seed 9")
    (folder / "pairs.bin").rename(folder / "lfw.bin")
    (folder / "others" / "pairs.bin").rename(folder / "select.bin")
    write_protocol(folder / "ijb" / "IJBC")
    torch.save({"teacher": pretraining()}, folder / "checkpoint.pth")
    torch.save(small("backbone_with_land_true"), folder / "part_fvit.pth")
    return folder


def shell(folder: Path, command: str) -> None:
    """Run a command line in a shell, or fail with what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def here(folder: Path, command: str) -> None:
    """Run a command line of `lafs` in this process, which has made the imports; a shell would take it as it stands."""
    assert not set(command) & set("$&|;<>*?`~#(){}[]"), command
    program, *arguments = shlex.split(command)
    assert program == "lafs"
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        lafs(arguments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_readme__commands_run(workspace: Path) -> None:
    """Every command is either run, in README's order, or named in `ELSEWHERE`."""
    ran = 0
    for command in commands():
        if any(command.startswith(start) for start in ELSEWHERE):
            continue
        small_size = next((v for start, v in SMALL.items() if command.startswith(start)), None)
        assert small_size is not None, f"README has a command that no test runs: {command}"
        # The last one shows that the program is there.
        (shell if command == "lafs status runs/lafs" else here)(workspace, f"{command} {small_size}")
        ran += 1
    assert ran >= 12
