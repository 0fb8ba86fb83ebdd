"""Time every stage from JPEG to landmark tokens, beside two plain ways of doing the same.

    python -m benchmarks.views --images 64 --repeats 5

Prints milliseconds of the processor an image, medians over the repeats, on one thread: waiting for a busy machine does
not count, its crowded caches do. Everything runs in the same process on the same images: (a) the reference's shape of
the work, one PIL image and one torchvision transform at a time, twenty tensors an image, and the landmark CNN on the
ten clean views; (b) one `grid_sample` for every landmark.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from lafs_ray.compat import import_torchvision
from lafs_ray.config.train import Model
from lafs_ray.config.views import LandmarkSource, PretrainLandmarks, Views
from lafs_ray.data.images import decode_image
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.training.tasks.pretrain import view_settings
from lafs_ray.transforms.augment_uint8 import change_appearance, crop_views
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor
from lafs_ray.transforms.params import sample_view_params
from lafs_ray.transforms.views import MultiViewTransform, extract_tokens, map_landmarks

BATCH = 32
CROP = "crop, resize, flip (10 views)"
COLOR = "color, blur, solarize (10 views)"
PATCHES = "patches (680 landmarks)"
LOOP = "(b) patches, one call a landmark"
PLAIN = "(a) + CNN on ten views + (b)"
SETTINGS = view_settings(Model(), Views(), PretrainLandmarks())
SOURCES: tuple[LandmarkSource, ...] = ("per_view", "per_image", "cached", "grid")

# What to time, and for how many images it does it.
Work = tuple[Callable[[], object], int]


def smooth_jpegs(count: int) -> list[bytes]:
    """Random smooth 112×112 images: like photographs, and needing no data set."""
    generator = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        coarse = generator.uniform(0, 255, (14, 14, 3)).astype(np.float32)
        image = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC).clip(0, 255)
        jpegs.append(cv2.imencode(".jpg", image.astype(np.uint8))[1].tobytes())
    return jpegs


class PlainChain:
    """The reference's shape of the work: PIL and torchvision, one image and one view at a time."""

    def __init__(self) -> None:
        import_torchvision()
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode

        self.crop = transforms.Compose(
            [
                transforms.RandomResizedCrop(112, scale=(0.4, 1.0), interpolation=InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
            ]
        )
        self.color = transforms.Compose(
            [
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
            ]
        )
        self.normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def views(self, image: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ten clean and ten augmented views of one image, [10, 3, 112, 112] each."""
        clean, changed = [], []
        source = Image.fromarray(image)
        blur = [1.0, 0.1] + [0.5] * 8
        for view in range(10):
            crop = self.crop(source)
            clean.append(self.normalize(crop))
            color = self.color(crop)
            if random.random() < blur[view]:
                color = color.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
            if view == 1 and random.random() < 0.2:
                color = ImageOps.solarize(color)
            changed.append(self.normalize(color))
        return torch.stack(clean), torch.stack(changed)


def looped_patches(views: torch.Tensor, landmarks: torch.Tensor) -> list[torch.Tensor]:
    """One `grid_sample` call for every landmark."""
    offsets = torch.arange(8) - 4.0
    grid_y, grid_x = torch.meshgrid(offsets, offsets, indexing="ij")
    patches = []
    for landmark in landmarks.unbind(1):
        grid = torch.stack((landmark[:, 0, None, None] + grid_x, landmark[:, 1, None, None] + grid_y), dim=-1)
        patches.append(F.grid_sample(views, grid / 56 - 1, align_corners=False))
    return patches


def measure(works: dict[str, Work], repeats: int) -> dict[str, float]:
    """Median milliseconds an image of each work, after one unmeasured round.

    Every round runs all works, so that a busy neighbor slows them alike and ratios hold.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, (work, images) in works.items():
            start = time.process_time()
            work()
            times[name].append((time.process_time() - start) * 1e3 / images)
    return {name: statistics.median(rounds[1:]) for name, rounds in times.items()}


def batches(images: NDArray[np.uint8], landmarks: NDArray[np.float16] | None) -> list[tuple[NDArray[Any], ...]]:
    """Batches of images with epoch, shard and key, and landmarks where they are given."""
    zeros = np.zeros(len(images), dtype=np.int64)
    keys = np.arange(len(images))
    columns = (images, zeros, zeros, keys) + (() if landmarks is None else (landmarks,))
    return [tuple(part[start : start + BATCH] for part in columns) for start in range(0, len(images), BATCH)]


def stages(images: NDArray[np.uint8], cnn: LandmarkCNN) -> dict[str, Work]:
    """Each stage by itself, on eight images, as the cutter works."""
    chunk = torch.from_numpy(images[:8])
    zeros = np.zeros(8, dtype=np.int64)
    draws = sample_view_params(SETTINGS, 0, zeros, zeros, np.arange(8))
    views = crop_views(chunk, draws.boxes, draws.flips, 112)
    plain = chunk.permute(0, 3, 1, 2)
    rows = torch.arange(80).reshape(8, 10)
    wide, narrow = (
        views[part.flatten()].contiguous(memory_format=torch.channels_last) for part in (rows[:, :2], rows[:, 2:])
    )
    wide_float, narrow_float = (part.float().contiguous() for part in (wide, narrow))
    cutter = MultiViewTransform(SETTINGS, cnn, 0)
    with torch.no_grad():
        found = cutter.predict_landmarks(plain)
    places = map_landmarks(found.unsqueeze(1), torch.from_numpy(draws.boxes), torch.from_numpy(draws.flips), 112)
    wide_places = places[:, :2].flatten(0, 1)
    narrow_places = places[:, 2:, :36].flatten(0, 1)

    def patches() -> None:
        extract_tokens(wide, wide_places, 8)
        extract_tokens(narrow, narrow_places, 8)

    def loop() -> None:
        looped_patches(wide_float, wide_places)
        looped_patches(narrow_float, narrow_places)

    works: dict[str, Callable[[], object]] = {
        "draws": lambda: sample_view_params(SETTINGS, 0, zeros, zeros, np.arange(8)),
        CROP: lambda: crop_views(chunk, draws.boxes, draws.flips, 112),
        COLOR: lambda: change_appearance(views, draws),
        "landmark CNN, per_view (10 views)": lambda: cutter.predict_landmarks(views),
        "landmark CNN, per_image (2)": lambda: cutter.predict_landmarks(torch.cat((plain, plain.flip(-1)))),
        PATCHES: patches,
        LOOP: loop,
    }
    return {name: (work, 8) for name, work in works.items()}


def totals(jpegs: list[bytes], cnn: LandmarkCNN) -> dict[str, Work]:
    """From JPEG to tokens for each source of landmarks, and plainly."""

    def decode(data: list[bytes]) -> NDArray[np.uint8]:
        return np.stack([decode_image(jpeg, color_order="rgb") for jpeg in data])

    everything = torch.from_numpy(decode(jpegs)).permute(0, 3, 1, 2)
    landmarks = LandmarkPredictor(cnn)(everything).numpy().astype(np.float16)[:, None].repeat(2, axis=1)
    works: dict[str, Work] = {"decode": (lambda: decode(jpegs), len(jpegs))}
    for source in SOURCES:
        settings = replace(SETTINGS, source=source)
        cutter = MultiViewTransform(settings, None if source in ("cached", "grid") else cnn, 0)
        known = landmarks if source == "cached" else None

        def cut(cutter: MultiViewTransform = cutter, known: NDArray[np.float16] | None = known) -> None:
            for batch in batches(decode(jpegs), known):
                cutter(*batch)

        works[f"total {source}"] = (cut, len(jpegs))
    chain, few = PlainChain(), jpegs[:16]

    def twenty_tensors() -> None:
        for image in decode(few):
            chain.views(image)

    def plain() -> None:
        for image in decode(few):
            clean, changed = chain.views(image)
            landmarks = cnn(clean)
            looped_patches(changed[:2], landmarks[:2])
            looped_patches(changed[2:], landmarks[2:, :36])

    works["(a) twenty tensors with PIL"] = (twenty_tensors, len(few))
    works[PLAIN] = (plain, len(few))
    return works


def main() -> None:
    """Print the table of times and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="at least 16")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    random.seed(0)
    cnn = LandmarkCNN(SETTINGS.num_landmarks).eval().requires_grad_(False)
    jpegs = smooth_jpegs(arguments.images)
    eight = np.stack([decode_image(data, color_order="rgb") for data in jpegs[:8]])
    with torch.no_grad():
        times = measure(stages(eight, cnn) | totals(jpegs, cnn), arguments.repeats)
    print(
        f"{date.today()}  torch {torch.__version__}, numpy {np.__version__}, "
        f"cv2 {cv2.__version__}, {cpu_name()}, {torch.get_num_threads()} thread, "
        f"batch {BATCH}, {len(jpegs)} images, median of {arguments.repeats}"
    )
    for name, milliseconds in times.items():
        print(f"{name:36}{milliseconds:9.2f} ms an image{1e3 / milliseconds:10.0f} images/s")
    print(f"\n{PLAIN} takes")
    for source in SOURCES:
        print(f"  {times[PLAIN] / times[f'total {source}']:5.1f} × the time of {source}")
    ours = sum(times[name] for name in ("decode", "draws", CROP, COLOR))
    plain = times["(a) twenty tensors with PIL"]
    print(f"{plain / ours:7.1f} × (a) over decode, draws, crop and color")
    print(f"{times[LOOP] / times[PATCHES]:7.1f} × (b) over one call a batch and 8-bit tokens")


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
