"""Jobs as a user types them, in a process of their own: exit codes, messages, Ctrl-C."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.errors import ConfigError, DataError
from tests.forked import run_script
from tests.training.faces import ROOT, arguments, run, tiny, write_face_set

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def job(*command: str) -> subprocess.CompletedProcess[str]:
    return run_script(command, ROOT, ENVIRONMENT, limit_s=120)


def main_of(name: str) -> Callable[[Sequence[str]], None]:
    """A job's main function, to be called in this process."""
    main: Callable[[Sequence[str]], None] = runpy.run_path(str(ROOT / "jobs" / f"{name}.py"))["main"]
    return main


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, a message with these words, and nothing of Python's."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in (*words, "found:", "expected:", "to do:"):
        assert word in done.stderr


def test_job__unknown_key_and_impossible_value(tmp_path: Path, face_set_path: str) -> None:
    """All configuration errors are reported at once, with the keys and values typed."""
    wrong = ["optim.lrr=1e-3", "views.flip=1.5", "batch_size=many"]
    done = job(*arguments("pretrain", tmp_path, face_set_path, *wrong))
    assert_refused(done, "3 configuration errors", "optim.lrr: unknown key; did you mean 'lr'?")
    assert "views.flip: 1.5" in done.stderr
    assert "batch_size: 'many'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_job__argument_without_a_value(tmp_path: Path, face_set_path: str) -> None:
    """An override that assigns nothing is shown as it was typed."""
    done = job(*arguments("finetune", tmp_path, face_set_path, "optim.lr"))
    assert_refused(done, "argument 'optim.lr'", "optim.lr=1e-3")


def test_job__missing_data(tmp_path: Path) -> None:
    """A path without faces is named."""
    done = job(*arguments("pretrain", tmp_path, tmp_path / "nowhere" / "train.rec"))
    assert_refused(done, str(tmp_path / "nowhere" / "train.rec"), "no such file")
    assert list(tmp_path.iterdir()) == []


def test_job__index_without_records(tmp_path: Path) -> None:
    """An .idx whose .rec is missing is reported as such."""
    write_face_set(tmp_path / "train.rec", 2, 4)
    (tmp_path / "train.rec").unlink()
    done = job(*arguments("pretrain", tmp_path / "runs", tmp_path / "train.rec"))
    assert_refused(done, str(tmp_path / "train.rec"), "an .idx without its .rec")
    assert not (tmp_path / "runs").exists()


def test_job__records_cut_short(tmp_path: Path) -> None:
    """A truncated .rec is refused at start with the bytes that are missing."""
    write_face_set(tmp_path / "train.rec", 4, 4)
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(content[: len(content) // 2])
    done = job(*arguments("finetune", tmp_path / "runs", tmp_path / "train.rec"))
    assert_refused(done, str(tmp_path / "train"), f"{len(content) // 2}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_job__gpu_where_there_is_none(tmp_path: Path, face_set_path: str) -> None:
    """compute.device=cuda without a GPU names the settings to debug on a CPU; no folder is made."""
    done = job(*arguments("pretrain", tmp_path, face_set_path, "compute.device=cuda"))
    assert_refused(done, "compute.device=cpu compute.precision=float32")
    assert list(tmp_path.iterdir()) == []


def test_job__finetune_then_another_configuration(tmp_path: Path, face_set_path: str) -> None:
    """A job trains, exits 0 and leaves its files; with other settings its folder is refused."""
    done = job(*arguments("finetune", tmp_path, face_set_path, "duration=2 steps"))
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    folder = tmp_path / "part_fvit"
    left = {".lock", "checkpoints", "config.json", "metrics.jsonl"}
    assert set(os.listdir(folder)) == left
    assert os.listdir(folder / "checkpoints") == ["step-00000002.pt"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    other = job(*arguments("finetune", tmp_path, face_set_path, "duration=3 steps"))
    assert_refused(other, str(folder), "duration: 2 steps -> 3 steps")
    assert (folder / "metrics.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize(("output", "flags"), [("pipe", []), ("pipe", ["-u"]), ("full", ["-u"]), ("closed", [])])
def test_job__output_that_is_lost(tmp_path: Path, face_set_path: str, output: str, flags: list[str]) -> None:
    """A run whose output is closed, full or not read any more goes on; listings end quietly."""
    name = "part_fvit"
    redirect = {"pipe": "| head -n 1", "full": "> /dev/full", "closed": ">&- 2>&-"}[output]
    train = [sys.executable, *flags, *arguments("finetune", tmp_path, face_set_path, "duration=3 steps")]
    listing = [sys.executable, *flags, "jobs/status.py", str(tmp_path / name)]
    for command in (train, listing):
        line = f"set -o pipefail; {shlex.join(command)} {redirect}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert ("No space left" in done.stderr) == (output == "full")
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert os.listdir(tmp_path / name / "checkpoints") == ["step-00000003.pt"]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_job__dry_run(tmp_path: Path, face_set_path: str, kind: str) -> None:
    """A dry run prints the size of the run, wherever the flag is, and writes nothing."""
    command = [*arguments(kind, tmp_path, face_set_path, "duration=2 epochs")]
    subset = ["data.subset.images_per_identity=2"] if kind == "finetune" else []
    done = job(*command, "--dry-run", *subset)
    assert done.returncode == 0, done.stderr
    sizes = {
        "pretrain": "120 faces of 12 identities, 15 steps per epoch, 30 steps",
        "finetune": "24 faces of 12 identities, 3 steps per epoch, 6 steps",
    }
    assert sizes[kind] in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_pack__then_verify_and_train(tmp_path: Path, face_set_path: str) -> None:
    """Packed, verified and inspected by command, a set trains with its folder as data.path."""
    out = tmp_path / "set"
    done = job("jobs/pack.py", face_set_path, str(out), "--shards", "2", "--check")
    assert done.returncode == 0, done.stderr
    assert "120 images of 12 identities in 2 shards, 0.5 MB; 0 re-encoded, 0 left out" in done.stdout
    verified = job("jobs/pack.py", "--verify", str(out))
    assert (verified.returncode, verified.stdout.startswith("verified 120 images")) == (0, True)
    sheet = str(tmp_path / "sheet.png")
    inspected = job("jobs/pack.py", "--inspect", str(out), "--sheet", sheet)
    assert (inspected.returncode, "shuffled (" in inspected.stdout) == (0, True)
    assert (tmp_path / "sheet.png").exists()
    settings = ["duration=2 steps", "data.chunk_records=256"]
    trained = job(*arguments("finetune", tmp_path / "runs", out, *settings))
    assert trained.returncode == 0, trained.stderr
    wrong = job(*arguments("finetune", tmp_path / "runs", out, *settings, "data.color_order=bgr"))
    assert_refused(wrong, "packed as rgb", "data.color_order=rgb")


def test_pack__refusals(tmp_path: Path, face_set_path: str) -> None:
    """Errors on the command line and a damaged set end with code 2 and a message."""
    assert_refused(job("jobs/pack.py", face_set_path), "SOURCE … OUT")
    assert_refused(job("jobs/pack.py", face_set_path, "x", "--memory", "much"), "'much'")
    nowhere = str(tmp_path / "nowhere")
    assert_refused(job("jobs/pack.py", nowhere, str(tmp_path / "set")), nowhere, "no such file")
    assert job("jobs/pack.py", face_set_path, str(tmp_path / "set")).returncode == 0
    shard = tmp_path / "set" / "train-00000-of-00001.rec"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert_refused(job("jobs/pack.py", "--verify", str(tmp_path / "set")), f"{shard.name}: ")


def test_status__of_a_run_and_of_what_is_none(tmp_path: Path, face_set_path: str) -> None:
    """A run's state is printed as text and as JSON; another folder is refused."""
    run(tiny(tmp_path, face_set_path, "duration=2 steps"))
    folder = str(tmp_path / "debug")
    done = job("jobs/status.py", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder} (pretraining)\nstate       finished (all 2 steps)\n")
    main_of("status")([folder, "--json"])
    assert_refused(job("jobs/status.py", str(tmp_path)), f"give one of the runs in it: {folder}")


def test_job__diverges(tmp_path: Path, face_set_path: str) -> None:
    """A learning rate that breaks training ends it with code 2; what is saved is finite."""
    settings = ["optim.lr=1e38", "optim.warmup=0 steps", "log.every_steps=4"]
    done = job(*arguments("pretrain", tmp_path, face_set_path, *settings))
    assert_refused(done, " of run debug", "records of rank 0: train.rec ", "learning rate ")
    folder = tmp_path / "debug"
    (named,) = folder.glob("not-finite-*.json")
    written = json.loads(named.read_text())
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{written['steps_done']:08d}.pt"
    content = torch.load(checkpoint, weights_only=True)
    assert all(weight.isfinite().all() for weight in content["model"].values())
    status = job("jobs/status.py", str(folder)).stdout
    assert "state       not finite" in status
    assert f"not finite  {named}" in status


def test_job__ctrl_c(tmp_path: Path, face_set_path: str) -> None:
    """Ctrl-C saves and ends a run in debug mode, with code 130; what it says is true; no half-written file is left."""
    settings = ["duration=500 steps", "checkpoints.every=2 steps"]
    process = subprocess.Popen(
        [sys.executable, *arguments("pretrain", tmp_path, face_set_path, *settings)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint = tmp_path / "debug" / "checkpoints" / "step-00000002.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in output + errors
    names = os.listdir(tmp_path / "debug" / "checkpoints")
    assert all(name.endswith(".pt") and name.startswith("step-") for name in names)
    step = int(max(names).removeprefix("step-").removesuffix(".pt"))
    assert errors.splitlines()[-1] == f"stopped by SIGINT, saved after step {step} of 500; the same command continues"
    assert "state       stopped (last report " in job("jobs/status.py", str(tmp_path / "debug")).stdout
    torch.load(checkpoint.parent / max(names), weights_only=True)


def test_job__ctrl_c_while_python_imports(tmp_path: Path, face_set_path: str) -> None:
    """Before a run begins, Ctrl-C ends it with code 130 and one line, whatever is being imported."""
    process = subprocess.Popen(
        [sys.executable, *arguments("pretrain", tmp_path, face_set_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while "libtorch" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert len(errors.splitlines()) <= 2
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> Path:
    """The folder of a supervised run of one step."""
    folder = tmp_path_factory.mktemp("stage_one")
    settings = ["run.name=net", "duration=1 steps", "optim.warmup=0 steps"]
    run(tiny(folder, face_set_path, *settings, kind=FinetuneConfig))
    return folder / "net"


def test_job__convert_then_pretrain(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """A weights file made on the command line serves landmarks.weights=; it is not overwritten."""
    made = tmp_path / "made.safetensors"
    done = job("jobs/convert_weights.py", str(stage_one), str(made))
    assert done.returncode == 0, done.stderr
    assert "landmark CNN: mobilenetv3, width 0.25" in done.stdout
    assert f"written: {made}" in done.stdout
    with pytest.raises(DataError, match="made.safetensors") as caught:
        main_of("convert_weights")([str(stage_one), str(made)])
    assert "--force" in caught.value.fix
    settings = [
        "landmarks.source=per_view",
        f"landmarks.weights={made}",
        "model.landmark_cnn_width=0.25",
        "duration=1 steps",
        "optim.warmup=0 steps",
    ]
    pretrained = job(*arguments("pretrain", tmp_path / "runs", face_set_path, *settings))
    assert pretrained.returncode == 0, pretrained.stderr


def test_job__embed(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """A run embeds a set into a file that names its checkpoint and input."""
    out = tmp_path / "a.parquet"
    done = job("jobs/embed.py", str(stage_one), face_set_path, str(out), "--flip")
    assert done.returncode == 0, done.stderr
    assert "120 faces, vectors of 128" in done.stdout
    metadata = pq.read_metadata(out).metadata
    assert metadata[b"source"].decode().endswith("step-00000001.pt")
    assert (metadata[b"flip_test"], metadata[b"color_order"]) == (b"true", b"rgb")
    assert (metadata[b"step"], metadata[b"input_range"]) == (b"1", b"[-1, 1]")


def test_job__output_is_an_input(tmp_path: Path, face_set_path: str, stage_one: Path) -> None:
    """No command replaces what it reads, even with --force, nor any file without it."""
    faces = tmp_path / "train.rec"
    for suffix in (".rec", ".idx"):
        faces.with_suffix(suffix).write_bytes(Path(face_set_path).with_suffix(suffix).read_bytes())
    (tmp_path / "other").write_text("precious")
    weights = tmp_path / "teacher.safetensors"
    main_of("convert_weights")([str(stage_one), str(weights)])
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    commands = [
        *(["embed", str(stage_one), str(faces), str(faces.with_suffix(one)), "--force"] for one in (".rec", ".idx")),
        ["embed", str(weights), str(faces), str(weights), "--force"],
        ["embed", str(stage_one), str(faces), str(stage_one / "config.json"), "--force"],
        ["convert_weights", str(weights), str(weights), "--force"],
        ["pack", "--inspect", str(faces), "--sheet", str(faces), "--force"],
        ["pack", "--inspect", str(faces), "--sheet", str(tmp_path / "other")],
    ]
    for name, *rest in commands:
        with pytest.raises(DataError, match="found:    an (input|existing)"):
            main_of(name)(rest)
    assert before == {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}


def test_export__unknown_format(tmp_path: Path, stage_one: Path) -> None:
    """Formats are checked before anything is read or written."""
    with pytest.raises(ConfigError, match="'onxx'") as caught:
        main_of("export")([str(stage_one), str(tmp_path / "out"), "--formats", "safetensors,onxx"])
    assert "torch_export" in caught.value.expected
    assert list(tmp_path.iterdir()) == []


def test_convert_weights__unknown_ending(tmp_path: Path, stage_one: Path) -> None:
    """The suffix gives the direction; another one is refused."""
    with pytest.raises(ConfigError, match=r"a\.onnx"):
        main_of("convert_weights")([str(stage_one), str(tmp_path / "a.onnx")])
