"""Memory and hours of a pretraining run on GPUs, from the shapes of its tensors.

In a distillation `frozen` is the network that the student learns from, in place of DINO's head and teacher.
The bytes are those of an eager step, counted again in `tests/training/test_cost.py`; a compiled step keeps less. Shape
letters as in `models.fvit`, and K prototypes, V views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.fvit import FViTSize
from lafs_ray.models.timm_transformer import configured_size, new_transformer
from lafs_ray.models.tokens import token_dim
from lafs_ray.training.run_length import Length

# For the hours that a dry run prints; by count, not measured.
ASSUMED_FLOPS, ASSUMED_DEVICE = 0.45 * 790e12, "45 % of the 790 TFLOP/s of an H200"


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one GPU needs at least.

    Args:
        networks: weights, gradients, moments, teacher or copy, frozen network, weights in the precision of the step.
        an_image: what an image of a micro-batch takes at the end of the forward pass.
        images: of a micro-batch.
    """

    networks: int
    an_image: int
    images: int

    @property
    def total(self) -> int:
        """Bytes of a step."""
        return self.networks + self.images * self.an_image


def saved_bytes(config: PretrainConfig, frozen: Architecture | None = None) -> int:
    """Return the bytes of one image that the forward pass keeps for the backward pass; weights left out."""
    model, size = config.model, configured_size(config.model)
    width, inner = size.width, size.heads * size.head_dim
    narrow = 2 if config.compute.precision == "bfloat16" else 4
    tokens, views = _tokens(config), NUM_GLOBAL_VIEWS + config.views.num_local
    kept = 1.0 if model.drop_path_per_sample else 1.0 - model.drop_path
    mask = width if model.dropout > 0 else 0
    # Global and local views in one pass (`models.token_sets`) keep attention's mixture a second time, joined; compiled
    # blocks do without.
    joins = size.timm is None and not (model.drop_path_per_sample and model.drop_path > 0)
    # The norm's input and output, queries, keys and values, their mixture, and the mask of the projection.
    mixing = 4 * width + narrow * (width + (5 if joins else 4) * inner) + mask + 4 * size.heads + 8
    hidden_mask = size.mlp_width if model.dropout > 0 else 0
    mlp = 4 * width + narrow * (width + 2 * size.mlp_width) + hidden_mask + mask + 8
    # Of the last block: keys and values of all tokens, and all else of the class tokens alone; timm's attention has no
    # such form.
    last = tokens * (4 * width + narrow * (width + 2 * inner) + 8 if size.timm is None else mixing)
    blocks = kept * ((size.depth - 1) * tokens * (mixing + mlp) + last)
    if config.compute.activation_checkpointing:
        # A block's input; while it is computed again, also its own.
        blocks = size.depth * tokens * 4 * width + kept * tokens * (mixing + mlp)
    embedding = tokens * (narrow * token_dim(model.patch_size, model.token_features) + mask)
    head = config.head
    if frozen is None:
        projection = views * narrow * (head.num_prototypes + 4 * head.hidden_dim + 2 * head.bottleneck_dim + width)
    else:
        # Its input; its output in float32, and normalized; cosines with all faces of the micro-batch, and log softmax.
        projection = views * (narrow * width + 2 * 4 * frozen.embedding_dim + 2 * 4 * config.micro_batch)
    return int(blocks + embedding + projection)


def step_memory(config: PretrainConfig, frozen: Architecture | None = None) -> StepMemory:
    """Return what a GPU needs for a step of this run."""
    narrow = 2 if config.compute.precision == "bfloat16" else 0
    views = NUM_GLOBAL_VIEWS + config.views.num_local
    if frozen is None:
        # Student's scores beside their gradient, and the teacher's distributions.
        scores = config.head.num_prototypes * (views * (narrow or 4) + NUM_GLOBAL_VIEWS * 4)
    else:
        # The frozen embeddings, and the gradient of the cosines.
        scores = 4 * ((NUM_GLOBAL_VIEWS + 1) * frozen.embedding_dim + views * config.micro_batch)
    parameters = count_parameters(config, frozen)
    # Weight, gradient, two moments and the teacher's or the copy's weight, and the student's in the step's precision.
    networks = parameters * (5 * 4 + narrow) + (0 if frozen is None else 4 * _frozen_parameters(frozen))
    return StepMemory(networks, saved_bytes(config, frozen) + scores, config.micro_batch)


def count_parameters(config: PretrainConfig, frozen: Architecture | None = None) -> int:
    """Return the parameters of the student."""
    model, size, head = config.model, configured_size(config.model), config.head
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        numbers = token_dim(model.patch_size, model.token_features)
        transformer = new_transformer(size, model.num_landmarks, numbers)
    if frozen is not None:
        return sum(each.numel() for each in transformer.parameters()) + (size.width + 1) * frozen.embedding_dim
    hidden, bottleneck = head.hidden_dim, head.bottleneck_dim
    mlp = (size.width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * bottleneck
    prototypes = head.num_prototypes * (bottleneck + 1)
    return sum(each.numel() for each in transformer.parameters()) + mlp + prototypes


def _frozen_parameters(frozen: Architecture) -> int:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        parts = [frozen.build_transformer(), frozen.build_whitening()]
    return sum(each.numel() for part in parts if part is not None for each in part.parameters())


def image_flops(config: PretrainConfig, frozen: Architecture | None = None) -> float:
    """Return the FLOP of an image in matrix products, a multiply-add being two.

    The backward pass is twice the student's forward pass, and nothing is dropped: as utilization is stated. A frozen
    network has a forward pass alone.
    """
    size, model, head = configured_size(config.model), config.model, config.head
    numbers = token_dim(model.patch_size, model.token_features)
    seen, local = [model.num_landmarks + 1] * NUM_GLOBAL_VIEWS, [config.landmarks.local_tokens + 1]
    every = seen + local * config.views.num_local
    student, teacher = _transformer_flops(size, numbers, every), _transformer_flops(size, numbers, seen)
    if frozen is not None:
        assert frozen.transformer is not None
        student += len(every) * 2 * size.width * frozen.embedding_dim
        # The student's cosine with every face of the micro-batch.
        student += len(every) * 2 * frozen.embedding_dim * config.micro_batch
        whitening = 2 * frozen.read_dim * (frozen.whitened_dim or 0)
        return float(3 * student + _transformer_flops(frozen.transformer, numbers, seen) + len(seen) * whitening)
    projection = size.width * head.hidden_dim + head.hidden_dim * (head.hidden_dim + head.bottleneck_dim)
    projection = 2 * (projection + head.bottleneck_dim * head.num_prototypes)
    return float(3 * (student + len(every) * projection) + teacher + len(seen) * projection)


def _transformer_flops(size: FViTSize, numbers: int, lengths: Sequence[int]) -> int:
    """Return the FLOP of a forward pass over views of these lengths, with `numbers` in a token."""
    inner = size.heads * size.head_dim
    linear = 2 * size.depth * (4 * inner * size.width + 2 * size.width * size.mlp_width) + 2 * numbers * size.width
    return sum(length * linear + 4 * size.depth * inner * length**2 for length in lengths)


def require_memory(config: PretrainConfig, device: torch.device, frozen: Architecture | None = None) -> None:
    """Refuse a micro-batch that cannot fit in a GPU's memory, before it runs out of it.

    Args:
        config: of the run.
        device: of this rank.
        frozen: see the module.

    Raises:
        ConfigError: names the settings that make it smaller.
    """
    if device.type != "cuda":
        return
    properties = torch.cuda.get_device_properties(device)
    _require(config, properties.name, properties.total_memory, frozen)


def _require(config: PretrainConfig, name: str, available: int, frozen: Architecture | None = None) -> None:
    memory = step_memory(config, frozen)
    if memory.total <= available:
        return
    fixes = _smaller_steps(config, memory, available, frozen) if memory.networks < available else []
    network = "model.size" if config.model.student is None else "model.student"
    raise ConfigError(
        "batch_size, accumulation",
        found=f"a micro-batch of {memory.images} images, which needs at least {memory.total / 1e9:.1f} GB "
        f"({memory.networks / 1e9:.1f} GB for the networks and {memory.an_image / 1e6:.0f} MB an image)",
        expected=f"at most the {available / 1e9:.1f} GB of this GPU ({name})",
        fix=", or ".join(
            fixes or [f"choose a smaller {network} or {'head.num_prototypes' if frozen is None else 'frozen network'}"]
        ),
    )


def _smaller_steps(
    config: PretrainConfig, memory: StepMemory, available: int, frozen: Architecture | None
) -> list[str]:
    """Return the settings by which a step of these networks takes less memory."""
    room = (available - memory.networks) // memory.an_image
    fixes = []
    if room and (needed := -(-config.micro_batch * config.accumulation // room)) > config.accumulation:
        fixes.append(f"raise accumulation to {_divisor_from(config, needed)}")
    if not config.compute.activation_checkpointing:
        changed = config.compute.model_copy(update={"activation_checkpointing": True})
        checkpointed = step_memory(config.model_copy(update={"compute": changed}), frozen)
        fixes.append(
            f"set compute.activation_checkpointing=true, which needs {checkpointed.total / 1e9:.1f} GB and the time of "
            "another forward pass"
        )
    if config.compute.worker_counts[-1] >= 1:
        fixes.append("use more GPUs (compute.workers)")
    return fixes


def _divisor_from(config: PretrainConfig, least: int) -> int:
    """Return the smallest number of micro-batches from `least` on that divides the batch of a worker."""
    batch = config.micro_batch * config.accumulation
    return next((count for count in range(least, batch) if batch % count == 0), batch)


def describe_cost(config: PretrainConfig, length: Length, frozen: Architecture | None = None) -> list[str]:
    """Return lines on the memory, the hours, the CPUs and the network of a run on GPUs."""
    memory, workers = step_memory(config, frozen), max(config.compute.workers, 1)
    images, flops = length.total_steps * config.batch_size, image_flops(config, frozen)
    rate = ASSUMED_FLOPS / flops
    lines = [
        f"memory: at least {memory.total / 1e9:.1f} GB a GPU ({memory.networks / 1e9:.1f} GB for the networks, "
        f"{memory.an_image / 1e6:.0f} MB for each of {memory.images} images)",
        f"time: {images / (rate * workers) / 3600:.1f} hours on {workers} GPU{'s' * (workers > 1)} "
        f"at {ASSUMED_DEVICE}, {rate:,.0f} images/s a GPU ({flops / 1e9:.0f} GFLOP an image); "
        "not measured",
    ]
    if config.compute.workers:
        cpus = config.compute.cpus_per_worker + config.ingest.cpus
        lines.append(f"CPUs: {cpus:g} for each GPU, of which {config.ingest.cpus:g} read and crop")
    if workers > 1:
        # A ring sends every gradient twice, but for one part.
        sent = 2 * (workers - 1) / workers * 4 * count_parameters(config, frozen)
        step_s = config.batch_size / workers / rate
        lines.append(f"network: {sent / 1e9:.2f} GB a step from each GPU, {sent / step_s / 1e9:.1f} GB/s")
    return lines


def _tokens(config: PretrainConfig) -> int:
    """Return the tokens of an image's views, class tokens included."""
    seen = NUM_GLOBAL_VIEWS * (config.model.num_landmarks + 1)
    return seen + config.views.num_local * (config.landmarks.local_tokens + 1)
