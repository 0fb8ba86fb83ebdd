"""How fast a GPU is, as stages of `gpu_proof`: ceilings, the step, attention, sources of landmarks, and mining."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu_stages import Found, case_of, is_cuda, seconds_of, step_of, training_of


def ceilings(device: str) -> Found:
    """Rates of a large product, of the step's products, and of a copy."""
    cuda = is_cuda(device)
    side, tokens = (8192, 90817) if cuda else (256, 512)
    rows = []
    shapes = {"large": (side, side, side), "qkv": (tokens, 768, 2112), "mlp": (tokens, 768, 2048)}
    shapes |= {"mlp, second": (tokens, 2048, 768), "weight gradient": (2048, tokens, 768)}
    for name, (m, k, n) in shapes.items():
        one, other = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in ((m, k), (k, n)))
        seconds = seconds_of(lambda one=one, other=other: one @ other, device, 20 if cuda else 2)
        rows.append({"product": name, "m": m, "k": k, "n": n, "tflops": round(2 * m * k * n / seconds / 1e12, 2)})
    source = torch.empty((1 << 30) // 4 if cuda else 1 << 20, device=device)
    seconds = seconds_of(source.clone, device, 20 if cuda else 2)
    return {"rows": rows, "copy_tb_s": round(2 * source.nbytes / seconds / 1e12, 3)}


def attention(device: str) -> Found:
    """Milliseconds of forward and backward by backend, for the token counts of the views and the class token alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cuda = is_cuda(device)
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if hasattr(SDPBackend, "CUDNN_ATTENTION"):
        backends.append(SDPBackend.CUDNN_ATTENTION)
    rows = []
    for views, queries, keys in ((461, 197, 197), (1843, 37, 37), (461, 1, 197), (1843, 1, 37)):
        batch = views if cuda else 2
        # As the step has them: slices of one tensor.
        qkv = torch.randn(batch, keys, 3, 11, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        row: Found = {"views": batch, "queries": queries, "keys": keys}
        for backend in backends:

            def work(qkv: torch.Tensor = qkv, queries: int = queries, backend: Any = backend) -> None:
                query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
                with sdpa_kernel(backend):
                    out = F.scaled_dot_product_attention(query[:, :, :queries], key, value, scale=768**-0.5)
                out.backward(out.detach())

            try:
                row[backend.name.lower()] = round(seconds_of(work, device, 10 if cuda else 1) * 1e3, 3)
            except RuntimeError:
                row[backend.name.lower()] = None
        rows.append(row)
    return {"rows": rows}


def _speed(device: str, batches: tuple[int, ...], **settings: Any) -> Found:
    """Images/s of the step for some batches, with the peak of memory."""
    from benchmarks.fake_step import random_batch
    from lafs_ray.training.compile import compile_training
    from lafs_ray.training.cost import image_flops

    rows = []
    for batch in batches if is_cuda(device) else (2,):
        compiled = settings.get("compile", False)
        training, config = training_of(device, batch, **settings)
        if compiled:
            compile_training(training, config)
        if is_cuda(device):
            torch.cuda.reset_peak_memory_stats()
        tokens = random_batch(config, 0)
        repeats = 8 if is_cuda(device) else 1
        seconds = seconds_of(lambda t=training, c=config, b=tokens: step_of(t, c, 0, b), device, repeats)
        row: Found = {"batch": batch, "ms": round(seconds * 1e3, 1), "images_per_s": round(batch / seconds, 1)}
        row["tflops_nominal"] = round(image_flops(config) * batch / seconds / 1e12, 2)
        if is_cuda(device):
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        rows.append(row)
        del training
    return {"rows": rows}


def speed_eager(device: str) -> Found:
    """Eager, bfloat16."""
    return _speed(device, (16, 64, 128, 256), compile=False)


def speed_compiled(device: str) -> Found:
    """Blocks and loss compiled, bfloat16."""
    return _speed(device, (256, 64), compile=True)


def speed_checkpointed(device: str) -> Found:
    """Eager with activation checkpointing."""
    return _speed(device, (256,), activation_checkpointing=True)


def speed_plain(device: str) -> Found:
    """The plain step in the manner of the reference, at equal bfloat16 autocast, and in float32 without TF32."""
    from benchmarks.plain_step import Plain
    from lafs_ray.models.fvit import FVIT_SIZES

    cuda, rows = is_cuda(device), []
    for precision, batch in ((torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float32, 16)):
        sizes: Found = {"batch": batch, "size": FVIT_SIZES["base"], "num_prototypes": 65536, "hidden_dim": 2048}
        side = Plain(case_of(device, precision=precision, dropout=0.1, **(sizes if cuda else {})), 3.0)
        images = batch if cuda else 2
        seconds = seconds_of(lambda side=side: side.step(0), device, 4 if cuda else 1)
        name = str(precision).removeprefix("torch.")
        rows.append({"precision": name, "batch": images, "images_per_s": round(images / seconds, 1)})
        del side
    return {"rows": rows}


def sources(device: str) -> Found:
    """Images/s of the views by source of landmarks, on the device, copies to it included."""
    from benchmarks.device_views import landmarker_of, packed_faces, settings_of
    from lafs_ray.training.train_step import to_device
    from lafs_ray.transforms.device_views import DeviceViews

    images, rows = 128 if is_cuda(device) else 4, []
    for source in ("per_view", "per_image", "cached", "grid"):
        views = DeviceViews(settings_of(source), landmarker_of(source), torch.device(device))
        columns = packed_faces(source, images)

        def work(views: Any = views, columns: Any = columns) -> None:
            views(to_device(columns, torch.device(device)))

        seconds = seconds_of(work, device, 3 if is_cuda(device) else 1)
        rows.append({"source": source, "images": images, "images_per_s": round(images / seconds, 1)})
    return {"rows": rows}


def neighbors(device: str) -> Found:
    """Comparing all faces with all, as `lafs mine-neighbors`: cosines as by NumPy, seconds and memory."""
    from lafs_ray.evaluation.mined_pairs import nearest

    count = 1_000_000 if is_cuda(device) else 2_000
    vectors = torch.randn(count, 350, generator=torch.Generator().manual_seed(0))
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    found = nearest(vectors, 30, torch.device(device))
    seconds = time.perf_counter() - start
    directions = F.normalize(vectors, dim=1).numpy()
    largest = 0.0
    for face in range(0, count, count // 20):
        cosines = directions @ directions[face]
        cosines[face] = -2
        off = np.sort(cosines[found[face]])[::-1] - np.sort(cosines)[::-1][:30]
        largest = max(largest, float(np.abs(off).max()))
    # Sums of 350 products in float32, in another order.
    assert largest < 1e-5, f"cosines of the nearest are {largest} from the best"
    peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if is_cuda(device) else 0.0
    return {"faces": count, "seconds": round(seconds, 1), "peak_gb": peak, "largest_difference": largest}


STAGES: dict[str, Callable[[str], Found]] = {
    stage.__name__: stage
    for stage in (ceilings, attention, speed_eager, speed_compiled, speed_checkpointed, speed_plain, sources, neighbors)
}
