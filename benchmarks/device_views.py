"""Count what `crops.device: cuda` does on a GPU, without one, and time what it costs a processor.

    python -m benchmarks.device_views --images 256

The training process's part runs on tensors without data (the `meta` device, which can neither be read nor mixed with
CPU tensors): copies to the device, operators and their bytes. An operator that is no view is one launch or more. The
worker's part, sampling and packing, is timed on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.plain_step import VIEWS
from benchmarks.step_counts import NO_KERNEL, PRODUCTS, tensors_in
from lafs_ray.config.views import LandmarkSource
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.landmark_template import TemplateLandmarks
from lafs_ray.training.input_pipeline import Columns
from lafs_ray.training.tasks.pretrain import packing_transform
from lafs_ray.training.train_step import to_device
from lafs_ray.transforms.device_views import DeviceViews
from lafs_ray.transforms.params import ViewSettings

META = torch.device("meta")
SOURCES: tuple[LandmarkSource, ...] = ("per_view", "per_image", "cached", "template", "grid")


@dataclass(frozen=True)
class ViewCounts:
    """What making the views of a batch does.

    Args:
        images: of the batch.
        copies: to the device, by whether the host waits for one: `blocking`, `pinned`.
        copied: bytes of them.
        ops: operators on the device, by name.
        bytes: read and written by them, by name.
        reads: values that the host waited for.
    """

    images: int
    copies: Counter[str]
    copied: int
    ops: Counter[str]
    bytes: Counter[str]
    reads: int


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.copies: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.copied = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        given, made = list(tensors_in([*args, *kwargs.values()])), list(tensors_in(found))
        self.reads += name in ("_local_scalar_dense", "nonzero", "is_nonzero")
        on_device = [each.is_meta for each in given], [each.is_meta for each in made]
        if any(on_device[1]) and not all(on_device[0]):
            # A number of the host beside tensors of the device is an argument of the launch.
            host = [each for each in given if not each.is_meta and (each.ndim or name in ("_to_copy", "copy_"))]
            waits = "pinned" if kwargs.get("non_blocking") else "blocking"
            self.copies[waits] += len(host)
            self.copied += sum(each.numel() * each.element_size() for each in host)
            return found
        if any(on_device[0]) and made and not all(on_device[1]):
            self.reads += 1
        if any(on_device[1]) and not func.is_view and name not in NO_KERNEL:
            self.ops[name] += 1
            self.bytes[name] += sum(each.numel() * each.element_size() for each in (*given, *made))
        return found


def settings_of(source: LandmarkSource) -> ViewSettings:
    """The default views, with landmarks of a source."""
    return replace(VIEWS, source=source)


def faces(settings: ViewSettings, images: int) -> Columns:
    """Decoded faces, as preprocessing has them."""
    side, zeros = settings.image_size, np.zeros(images, dtype=np.int64)
    found: Columns = {
        "image": np.random.default_rng(0).integers(0, 256, (images, side, side, 3), dtype=np.uint8),
        "epoch": zeros,
        "shard": zeros,
        "key": np.arange(images),
    }
    if settings.source == "cached":
        found["landmarks"] = np.full((images, 2, settings.num_landmarks, 2), 50, dtype=np.float16)
    return found


def packed_faces(source: LandmarkSource, images: int) -> Columns:
    """Faces as the training process gets them."""
    settings = settings_of(source)
    return packing_transform(settings, 0)(faces(settings, images))


def landmarker_of(source: LandmarkSource) -> nn.Module | None:
    """An untrained landmark network where the source has one."""
    if source in ("cached", "grid"):
        return None
    network = TemplateLandmarks if source == "template" else LandmarkCNN
    return network(VIEWS.num_landmarks)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def count_views(source: LandmarkSource, images: int) -> ViewCounts:
    """Count the training process's part for a batch: the copy to the device, and the views."""
    views = DeviceViews(settings_of(source), landmarker_of(source), META)
    columns = packed_faces(source, images)
    # Neither exists for such tensors; both change nothing of what is counted.
    patches = (
        mock.patch.object(Tensor, "pin_memory", _unchanged),
        mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),
    )
    with patches[0], patches[1], _Counter() as counter:
        tokens = views(to_device(columns, META))
    assert tokens["global_tokens"].is_meta
    return ViewCounts(images, counter.copies, counter.copied, counter.ops, counter.bytes, counter.reads)


def worker_s(source: LandmarkSource, images: int, repeats: int) -> float:
    """Seconds of one core an image, for sampling parameters and packing."""
    settings = settings_of(source)
    transform, given = packing_transform(settings, 0), faces(settings, images)
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        transform(given)
        times.append(time.process_time() - start)
    return statistics.median(times[1:]) / images


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, batch {arguments.images}; worker: median of {arguments.repeats} × 32 images")
    print(f"{'source':12}{'copies, blocking':>18}{'pinned':>8}{'KB an image':>13}{'operators':>11}", end="")
    print(f"{'products':>10}{'MB an image':>13}{'reads':>7}{'worker, ms an image':>21}")
    for source in SOURCES:
        counts = count_views(source, arguments.images)
        products = sum(counts.ops[name] for name in (*PRODUCTS, "convolution"))
        other = sum(size for name, size in counts.bytes.items() if name not in PRODUCTS)
        print(
            f"{source:12}{counts.copies['blocking']:18}{counts.copies['pinned']:8}"
            f"{counts.copied / counts.images / 1e3:13.1f}{sum(counts.ops.values()):11}{products:10}"
            f"{other / counts.images / 1e6:13.1f}{counts.reads:7}"
            f"{worker_s(source, 32, arguments.repeats) * 1e3:21.3f}"
        )


if __name__ == "__main__":
    main()
