"""A small set of faces, tiny networks and short runs for the tests of the training floor."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import SectionT, load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.io import filesystem
from lafs_ray.data.recordio import Header, RecordWriter, pack, read_index
from lafs_ray.engine.console import log_to
from lafs_ray.training.checkpoint.metrics_log import read_metrics
from lafs_ray.training.input_pipeline import StepBatch, local_stream
from lafs_ray.training.monitoring.metrics import TIMES
from lafs_ray.training.prepare import RunInputs, prepare_run
from lafs_ray.training.runner import run_rank, training_device

ROOT = Path(__file__).parents[2]
PRETRAIN = "configs/pretrain/debug.yaml"
FINETUNE = "configs/finetune/part_fvit.yaml"

_NETWORK = ["model.num_landmarks=49", "model.patch_size=16", "batch_size=8"]
TINY_PRETRAIN = [
    *_NETWORK,
    "landmarks.local_tokens=9",
    "views.num_local=2",
    "head.num_prototypes=64",
    "head.hidden_dim=32",
    "head.bottleneck_dim=16",
    "optim.warmup=2 steps",
]
TINY_FINETUNE = [
    *_NETWORK,
    "accumulation=1",
    "optim.lr=1e-3",
    "augmentation.rand_augment=null",
    "augmentation.erasing=0",
    "mixup.probability=0",
    "model.size=tiny",
    "model.landmark_cnn_width=0.25",
    "compute.workers=0",
    "compute.device=cpu",
    "compute.precision=float32",
    "optim.warmup=2 steps",
    "log.every_steps=1",
]

NO_IMAGE = b"\xff\xd8 no JPEG after all \xff\xd9"


def face_jpegs(count: int, seed: int = 0, size: tuple[int, int] = (112, 112)) -> list[bytes]:
    """Smooth random pictures (width, height) as JPEGs; no two are alike."""
    generator = np.random.default_rng([seed, *size])
    coarse = generator.uniform(-40, 295, (count, 7, 7, 3)).astype(np.float32)
    pictures = [cv2.resize(one, size, interpolation=cv2.INTER_CUBIC) for one in coarse]
    pixels = [picture.clip(0, 255).astype(np.uint8) for picture in pictures]
    return [cv2.imencode(".jpg", one)[1].tobytes() for one in pixels]


def write_face_set(
    path: Path,
    num_identities: int = 12,
    images_each: int = 10,
    replaced: Mapping[int, bytes] | None = None,
    first_label: int = 0,
) -> None:
    """Write a set in insightface's layout; image i has key i + 1 and label i // images_each.

    Args:
        path: the `.rec` file; its `.idx` comes beside it.
        num_identities: number of identities.
        images_each: images of each.
        replaced: bytes that stand in place of an image's JPEG, by image number.
        first_label: label of the first person; more than 0 contradicts the identities listed.
    """
    count = num_identities * images_each
    jpegs: list[bytes] = face_jpegs(count)
    for number, data in (replaced or {}).items():
        jpegs[number] = data
    first = count + 1
    with RecordWriter(str(path)) as writer:
        ends = (float(first), float(first + num_identities))
        writer.write(0, pack(Header(2, ends, 0), b""))
        for number, jpeg in enumerate(jpegs):
            label = float(first_label + number // images_each)
            writer.write(number + 1, pack(Header(0, label, number + 1), jpeg))
        for identity in range(num_identities):
            images = (float(1 + identity * images_each), float(1 + (identity + 1) * images_each))
            writer.write(first + identity, pack(Header(2, images, first + identity), b""))


def break_frame(path: Path, number: int) -> None:
    """Overwrite the magic word of an image's record: the file is sound, this record is not."""
    keys, offsets = read_index(str(path.with_suffix(".idx")))
    content = bytearray(path.read_bytes())
    offset = int(offsets[keys.tolist().index(number + 1)])
    content[offset : offset + 4] = b"\0\0\0\0"
    path.write_bytes(content)


def tiny(
    folder: Path | str,
    data: Path | str,
    *overrides: str,
    kind: type[SectionT] = PretrainConfig,  # type: ignore[assignment]
    file: str | None = None,
) -> SectionT:
    """The configuration of a short run on a CPU, made as the command line makes it."""
    is_finetune = kind is FinetuneConfig
    path = str(ROOT / (file or (FINETUNE if is_finetune else PRETRAIN)))
    common = TINY_FINETUNE if is_finetune else TINY_PRETRAIN
    where = [f"run.storage={folder}", f"data.path={data}"]
    return load(kind, path, [*common, "duration=4 steps", *where, *overrides])


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The package's log messages of the block, as a job's terminal would get them."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    with log_to(handler):
        yield lines


class Killed(BaseException):
    """The end of a process at a given step; nothing may catch it."""


@dataclass
class Result:
    """What a run left behind.

    Args:
        metrics: lines of metrics.jsonl.
        logged: messages of its log.
        inputs: the job.
    """

    metrics: list[dict[str, Any]]
    logged: list[str]
    inputs: RunInputs

    @property
    def exact(self) -> list[dict[str, Any]]:
        """The metrics without what the clock decides; floats compare bit by bit."""
        return [without_times(line) for line in self.metrics]


def without_times(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics without speeds."""
    return {name: v for name, v in line.items() if name not in TIMES}


def run(config: Any, killed_at: int | None = None) -> Result:
    """Debug mode in this process, as `run_local` does it; at step `killed_at` it ends abruptly."""
    inputs = prepare_run(config)
    preprocess = inputs.preprocessor()

    def stream(first: int, stop: int) -> Iterator[StepBatch]:
        for batch in local_stream(inputs.faces, inputs.sampler, preprocess, first, stop):
            if batch.step == killed_at:
                raise Killed
            yield batch

    with logged() as lines:
        try:
            run_rank(inputs, stream, device=training_device(config))
        except Killed:
            lines.append("killed")
    metrics = read_metrics(filesystem.join(inputs.folder().uri, "metrics.jsonl"))
    return Result(metrics, lines, inputs)


def arguments(kind: str, folder: Path | str, data: Path | str, *overrides: str) -> Sequence[str]:
    """The command line (without the interpreter) of a short run: kind is pretrain or finetune."""
    file, settings = {"pretrain": (PRETRAIN, TINY_PRETRAIN), "finetune": (FINETUNE, TINY_FINETUNE)}[kind]
    where = [f"run.storage={folder}", f"data.path={data}"]
    return [f"jobs/{kind}.py", file, *settings, "duration=4 steps", *where, *overrides]


def pixels_of(jpeg: bytes) -> NDArray[np.uint8]:
    """RGB pixels of a JPEG, decoded here and not by the code under test."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(bgr[..., ::-1])
