"""Memory and hours of a pretraining run on GPUs, from the shapes of its tensors.

The bytes are those of an eager step, counted again in `tests/training/test_cost.py`; a compiled step keeps less. Shape
letters as in `models.fvit`, and K prototypes, V views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.methods.dino_loss import NUM_GLOBAL_VIEWS
from lafs_ray.models.timm_transformer import configured_size, new_transformer
from lafs_ray.models.tokens import token_dim
from lafs_ray.training.run_length import Length

# For the hours that a dry run prints; by count, not measured.
ASSUMED_FLOPS, ASSUMED_DEVICE = 0.45 * 790e12, "45 % of the 790 TFLOP/s of an H200"


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one GPU needs at least.

    Args:
        networks: weights, gradients, moments, teacher, and weights in the precision of the step.
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


def saved_bytes(config: PretrainConfig) -> int:
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
    projection = views * narrow * (head.num_prototypes + 4 * head.hidden_dim + 2 * head.bottleneck_dim + width)
    return int(blocks + embedding + projection)


def step_memory(config: PretrainConfig) -> StepMemory:
    """Return what a GPU needs for a step of this run."""
    narrow = 2 if config.compute.precision == "bfloat16" else 0
    views = NUM_GLOBAL_VIEWS + config.views.num_local
    # Student's scores beside their gradient, and the teacher's distributions.
    scores = config.head.num_prototypes * (views * (narrow or 4) + NUM_GLOBAL_VIEWS * 4)
    parameters = count_parameters(config)
    # Weight, gradient, two moments and the teacher's weight, and the student's in the step's precision.
    return StepMemory(parameters * (5 * 4 + narrow), saved_bytes(config) + scores, config.micro_batch)


def count_parameters(config: PretrainConfig) -> int:
    """Return the parameters of the student."""
    model, size, head = config.model, configured_size(config.model), config.head
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        numbers = token_dim(model.patch_size, model.token_features)
        transformer = new_transformer(size, model.num_landmarks, numbers)
    hidden, bottleneck = head.hidden_dim, head.bottleneck_dim
    mlp = (size.width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * bottleneck
    prototypes = head.num_prototypes * (bottleneck + 1)
    return sum(each.numel() for each in transformer.parameters()) + mlp + prototypes


def image_flops(config: PretrainConfig) -> float:
    """Return the FLOP of an image in matrix products, a multiply-add being two.

    The backward pass is twice the student's forward pass, and nothing is dropped: as utilization is stated.
    """
    size, head = configured_size(config.model), config.head
    width, inner = size.width, size.heads * size.head_dim
    seen, tokens = NUM_GLOBAL_VIEWS * (config.model.num_landmarks + 1), _tokens(config)
    views = NUM_GLOBAL_VIEWS + config.views.num_local
    linear = 2 * size.depth * (4 * inner * width + 2 * width * size.mlp_width)
    linear += 2 * token_dim(config.model.patch_size, config.model.token_features) * width
    projection = width * head.hidden_dim + head.hidden_dim * (head.hidden_dim + head.bottleneck_dim)
    projection = 2 * (projection + head.bottleneck_dim * head.num_prototypes)
    local = config.landmarks.local_tokens + 1
    pairs = NUM_GLOBAL_VIEWS * (config.model.num_landmarks + 1) ** 2, config.views.num_local * local**2
    attention = 4 * size.depth * inner
    teacher = seen * linear + NUM_GLOBAL_VIEWS * projection + pairs[0] * attention
    student = tokens * linear + views * projection + sum(pairs) * attention
    return float(teacher + 3 * student)


def require_memory(config: PretrainConfig, device: torch.device) -> None:
    """Refuse a micro-batch that cannot fit in a GPU's memory, before it runs out of it.

    Raises:
        ConfigError: names the settings that make it smaller.
    """
    if device.type != "cuda":
        return
    properties = torch.cuda.get_device_properties(device)
    _require(config, properties.name, properties.total_memory)


def _require(config: PretrainConfig, name: str, available: int) -> None:
    memory = step_memory(config)
    if memory.total <= available:
        return
    fixes = _smaller_steps(config, memory, available) if memory.networks < available else []
    network = "model.size" if config.model.student is None else "model.student"
    raise ConfigError(
        "batch_size, accumulation",
        found=f"a micro-batch of {memory.images} images, which needs at least {memory.total / 1e9:.1f} GB "
        f"({memory.networks / 1e9:.1f} GB for the networks and {memory.an_image / 1e6:.0f} MB an image)",
        expected=f"at most the {available / 1e9:.1f} GB of this GPU ({name})",
        fix=", or ".join(fixes or [f"choose a smaller {network} or head.num_prototypes"]),
    )


def _smaller_steps(config: PretrainConfig, memory: StepMemory, available: int) -> list[str]:
    """Return the settings by which a step of these networks takes less memory."""
    room = (available - memory.networks) // memory.an_image
    fixes = []
    if room and (needed := -(-config.micro_batch * config.accumulation // room)) > config.accumulation:
        fixes.append(f"raise accumulation to {_divisor_from(config, needed)}")
    if not config.compute.activation_checkpointing:
        changed = config.compute.model_copy(update={"activation_checkpointing": True})
        checkpointed = step_memory(config.model_copy(update={"compute": changed}))
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


def describe_cost(config: PretrainConfig, length: Length) -> list[str]:
    """Return lines on the memory, the hours, the CPUs and the network of a run on GPUs."""
    memory, workers = step_memory(config), max(config.compute.workers, 1)
    images = length.total_steps * config.batch_size
    rate = ASSUMED_FLOPS / image_flops(config)
    lines = [
        f"memory: at least {memory.total / 1e9:.1f} GB a GPU ({memory.networks / 1e9:.1f} GB for the networks, "
        f"{memory.an_image / 1e6:.0f} MB for each of {memory.images} images)",
        f"time: {images / (rate * workers) / 3600:.1f} hours on {workers} GPU{'s' * (workers > 1)} "
        f"at {ASSUMED_DEVICE}, {rate:,.0f} images/s a GPU ({image_flops(config) / 1e9:.0f} GFLOP an image); "
        "not measured",
    ]
    if config.compute.workers:
        cpus = config.compute.cpus_per_worker + config.ingest.cpus
        lines.append(f"CPUs: {cpus:g} for each GPU, of which {config.ingest.cpus:g} read and crop")
    if workers > 1:
        # A ring sends every gradient twice, but for one part.
        sent = 2 * (workers - 1) / workers * 4 * count_parameters(config)
        step_s = config.batch_size / workers / rate
        lines.append(f"network: {sent / 1e9:.2f} GB a step from each GPU, {sent / step_s / 1e9:.1f} GB/s")
    return lines


def _tokens(config: PretrainConfig) -> int:
    """Return the tokens of an image's views, class tokens included."""
    seen = NUM_GLOBAL_VIEWS * (config.model.num_landmarks + 1)
    return seen + config.views.num_local * (config.landmarks.local_tokens + 1)
