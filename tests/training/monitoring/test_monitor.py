from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from lafs_ray.errors import ConfigError, TrainingError
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.monitoring.collapse import PATIENCE
from lafs_ray.training.monitoring.monitor import Monitor, duration
from lafs_ray.training.monitoring.tensorboard import TensorBoardLog
from lafs_ray.training.prepare import check_run
from lafs_ray.training.run_length import Length
from tests.training.builds import pretrain
from tests.training.faces import NO_IMAGE, logged, run, tiny, write_face_set

LENGTH = Length(steps_per_epoch=15, total_steps=1000, save_every=15)
REPORT: dict[str, Any] = {
    "step": 100,
    "epoch": 6,
    "loss": 1.0,
    "lr": 1e-3,
    "teacher_temp": 0.04,
    "teacher_entropy": 3.0,
    "kl": 1.0,
    "center_norm": 1.0,
    "used_prototypes": 0.9,
    "embedding_std": 0.7,
    "images_per_s": 100.0,
    "wait_share": 0.0,
    "read_ms": 1.0,
    "preprocess_ms": 100.0,
}
EQUAL = {"embedding_std": 0.01}
WAITING = {"wait_share": 0.5}
CLUSTER = ["compute.workers=2", "ingest.actors_per_worker=1"]


def monitor_of(folder: Path, *overrides: str, rank: int = 0, first_step: int = 0) -> Monitor:
    return Monitor(pretrain(*overrides), LENGTH, str(folder), first_step, rank)


def reports(monitor: Monitor, count: int, first: int = 1, **metrics: float) -> list[str]:
    with logged() as lines:
        for number in range(first, first + count):
            monitor.report({**REPORT, "step": 100 * number, **metrics})
    return lines


def warnings(folder: Path) -> list[tuple[int, str]]:
    lines = read_metrics(str(folder / "warnings.jsonl"))
    return [(line["step"], line["kind"]) for line in lines]


def test_report__nothing_to_warn_of(tmp_path: Path) -> None:
    """A healthy run has its lines of progress and no file of warnings."""
    monitor = monitor_of(tmp_path, *CLUSTER)
    lines = reports(monitor, 8)
    assert len(lines) == 8
    assert lines[0].startswith("step  100/1000  epoch 6  loss 1.0000  lr 1.00e-03  100 images/s")
    assert list(tmp_path.iterdir()) == []


def test_report__collapse_warns_once_and_goes_on(tmp_path: Path) -> None:
    """A sign is logged once with metrics and advice, and recorded."""
    monitor = monitor_of(tmp_path, *CLUSTER)
    lines = reports(monitor, 2 * PATIENCE, **EQUAL)
    (text,) = [line for line in lines if "collapse" in line]
    assert text.startswith("step 100, collapse, equal embeddings: embedding_std 0.01")
    assert "To do: a running center over 8 faces collapses slowly; dino.centering=sinkhorn" in text
    assert warnings(tmp_path) == [(100, "collapse, equal embeddings")]


@pytest.mark.parametrize("rank", [0, 1])
def test_report__collapse_may_stop_every_rank(tmp_path: Path, rank: int) -> None:
    """With monitoring.collapse=stop all ranks end at the same report; only rank 0 logs."""
    monitor = monitor_of(tmp_path, "monitoring.collapse=stop", rank=rank)
    lines = reports(monitor, PATIENCE - 1, **EQUAL)
    with pytest.raises(TrainingError, match=f"step {100 * PATIENCE} of run debug: the networks"):
        reports(monitor, 1, first=PATIENCE, **EQUAL)
    assert bool(lines) == (rank == 0)


def test_report__collapse_may_be_off(tmp_path: Path) -> None:
    """monitoring.collapse=off looks at nothing."""
    monitor = monitor_of(tmp_path, "monitoring.collapse=off")
    assert len(reports(monitor, 10, **EQUAL)) == 10


def test_monitor__uses_the_reports_before_a_restart(tmp_path: Path) -> None:
    """What counts as fallen is measured against the complete run, up to where it continues."""
    lines = [{**REPORT, "step": step, "embedding_std": std} for step, std in ((50, 0.6), (90, 9.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monitor = monitor_of(tmp_path, first_step=60)
    reports(monitor, 1, embedding_std=0.5)
    assert warnings(tmp_path) == []
    reports(monitor, 1, first=2, embedding_std=0.4)
    assert warnings(tmp_path) == [(200, "collapse, equal embeddings")]


def test_report__input_bottleneck_after_three_in_a_row(tmp_path: Path) -> None:
    """One slow interval, as the first one is, is no input bottleneck; three are."""
    monitor = monitor_of(tmp_path, *CLUSTER)
    reports(monitor, 2, **WAITING)
    reports(monitor, 1, first=3)
    reports(monitor, 2, first=4, **WAITING)
    assert warnings(tmp_path) == []
    lines = reports(monitor, 4, first=6, **WAITING)
    assert warnings(tmp_path) == [(600, "input bottleneck")]
    assert any("Slow stage: preprocessing" in line for line in lines)


@pytest.mark.parametrize("settings", [[*CLUSTER, "monitoring.wait_share=0"], []])
def test_report__input_bottleneck_off_and_in_debug_mode(tmp_path: Path, settings: list[str]) -> None:
    """0 switches it off; one process on a CPU has no other to preprocess."""
    monitor = monitor_of(tmp_path, *settings)
    reports(monitor, 5, **WAITING)
    assert warnings(tmp_path) == []


def test_warnings__of_steps_that_come_again_are_dropped(tmp_path: Path) -> None:
    """A run that continues forgets the warnings after its checkpoint, as it does the metrics."""
    first = monitor_of(tmp_path, *CLUSTER)
    first.report({**REPORT, "step": 50}, ["train.rec, record 3: broken"])
    first.report({**REPORT, "step": 100}, ["train.rec, record 4: broken"])
    second = monitor_of(tmp_path, *CLUSTER, first_step=60)
    assert warnings(tmp_path) == [(50, "damaged record")]
    second.report({**REPORT, "step": 100}, ["train.rec, record 4: broken"])
    assert warnings(tmp_path) == [(50, "damaged record"), (100, "damaged record")]


def test_run__damaged_records_are_named_in_its_folder(tmp_path: Path) -> None:
    """Each damaged record met is in warnings.jsonl by file and key."""
    write_face_set(tmp_path / "a.rec", 4, 10, replaced={5: NO_IMAGE})
    result = run(tiny(tmp_path, tmp_path / "a.rec", "duration=5 steps"))
    (line,) = read_metrics(str(tmp_path / "debug" / "warnings.jsonl"))
    assert line["text"].startswith(f"{tmp_path}/a.rec, record 6: found")
    assert f"skipped a damaged record: {line['text']}" in result.logged


def test_report__time_left_follows_the_speed(tmp_path: Path) -> None:
    """The time left is the steps left at the speed of the last reports, mostly of the earlier."""
    monitor = monitor_of(tmp_path)
    assert reports(monitor, 1, first=5, images_per_s=4.0)[0].endswith("left 0:16:40"), "of 2 s"
    assert reports(monitor, 1, first=5, images_per_s=8.0)[0].endswith("left 0:14:10"), "of 1.7 s"
    assert duration(3 * 3600 + 62) == "3:01:02"


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) to value of all event files: length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[tuple[str, int], float] = {}
    for path in sorted(folder.iterdir()):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            size = int.from_bytes(content[offset : offset + 8], "little")
            event = Event.FromString(content[offset + 12 : offset + 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            offset += size + 16
    return found


def test_tensorboard__has_the_metrics(tmp_path: Path, face_set_path: str) -> None:
    """A run leaves event files with every metric of metrics.jsonl; an interrupted one goes on."""
    pytest.importorskip("tensorboardX")
    config = tiny(tmp_path, face_set_path, "log.tensorboard=true", "checkpoints.every=2 steps")
    run(config, killed_at=3)
    result = run(config)
    found = scalars(tmp_path / "debug" / "tensorboard")
    expected = {
        (name, line["step"]): value for line in result.metrics for name, value in line.items() if name != "step"
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Event files hold float32; times of a step done twice are those of one of the two.
        if key[0] not in ("images_per_s", "wait_share", "read_ms", "preprocess_ms"):
            assert found[key] == pytest.approx(value, rel=1e-6), key


def test_tensorboard__two_starts_in_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts within a second each have a file, and by name those are in the order of the starts."""
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    written: list[Path] = []
    for step in range(1, 6):
        log = TensorBoardLog(str(tmp_path), step - 1)
        log.write({"step": step, "loss": step / 2})
        log.close()
        written += [path for path in tmp_path.iterdir() if path not in written]
    assert written == sorted(tmp_path.iterdir())
    assert scalars(tmp_path) == {("loss", step): step / 2 for step in range(1, 6)}


def test_tensorboard__beyond_the_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an object store the files are written locally and uploaded."""
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr("lafs_ray.data.io.reading.local_path", lambda _: None)
    log = TensorBoardLog(str(tmp_path / "board"), 0)
    log.write({"step": 3, "loss": 0.5})
    assert not (tmp_path / "board").exists()
    log.close()
    assert scalars(tmp_path / "board") == {("loss", 3): 0.5}


def test_tensorboard__package_is_missing(tmp_path: Path, face_set_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the job is refused before it starts, with the command to install it."""
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'lafs-ray\[tensorboard\]'"):
        check_run(tiny(tmp_path, face_set_path, "log.tensorboard=true"))
