"""Parameter groups, AdamW with sparse rows, gradient clipping, freezing, EMA and schedules.

On a GPU they work on lists of tensors (`torch._foreach_*`) without a synchronization: the base student has 145 trained
tensors, and as many `.item()` calls would stall every step. On a CPU, where memory bandwidth is the limit, tensors are
processed one by one, while each is in the cache.

A schedule computes the learning rate, weight decay, momentum or temperature of one step or epoch: a resumed run needs
neither an array over the whole run nor a position. All reproduce the released code's tables (`cosine_scheduler` in
`utils.py`), ends included: a warm-up starts at `start`, reaches `base` on its last step and repeats it on the next; the
cosine ends one step before `final`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lafs_ray.models.placement import uses_gpu_form


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr_scale: Callable[[str], float] = lambda _: 1.0,
    decay_scale: Callable[[str], float] = lambda _: 1.0,
) -> list[dict[str, Any]]:
    """Group the trained parameters by their factors on learning rate and weight decay.

    Biases and one-dimensional parameters (norms) are not decayed; the class token and the positions are. Parameters
    that need no gradient are in no group.

    Args:
        module: what is trained.
        weight_decay: of the groups with factor 1.
        lr_scale: name of a parameter to its factor on the learning rate.
        decay_scale: name of a decayed parameter to its factor on the weight decay.

    Returns:
        Groups for AdamW, for each `lr_scale` first the decayed, then the others; with one factor the reference's two
        (`get_params_groups` in `utils.py`). `set_hyperparameters` reads `lr_scale` and `decay_scale`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = lr_scale(name)
            for decay in (1.0, 0.0):
                groups.setdefault((scale, decay), [])
            is_decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            decay = decay_scale(name) if is_decayed else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay * decay, "lr_scale": scale, "decay_scale": decay}
        for (scale, decay), parameters in groups.items()
    ]


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a Part fViT's parameter, for layer-wise learning rate decay.

    Landmark CNN, patch embedding, class token and positions are layer 0, block i is layer i + 1, norm and margin
    softmax are layer depth + 1. Reference: `train_largescale.py`.
    """
    block = re.match(r"(?:model\.)?transformer\.layers\.(\d+)\.", name)
    if block is not None:
        return int(block[1]) + 1
    is_input = re.match(r"(?:model\.)?(?:stn|output_layer|patch_to_embedding|cls_token|pos_embedding)\b", name)
    return 0 if is_input else depth + 1


class RowAdamW(torch.optim.AdamW):
    """AdamW that updates only the rows with a gradient where the gradient is sparse.

    A row follows AdamW over the steps in which it has a gradient: in other steps it is not decayed, and its moments and
    its step count (`step` [rows, 1], for the bias correction) do not change. Parameters with dense gradients follow
    AdamW. Ours: torch's SparseAdam has no weight decay and one step count for all rows, which makes the first steps of
    a row that is first sampled late up to √1000/10 times as long.

    `skip_update`, if set, is a 0-d float32 tensor on the parameters' device: 1 makes a step that changes no parameter,
    moment or count. A fused optimizer reads it on the device, without a synchronization; others read it on the host.
    """

    skip_update: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters with a gradient, and clear sparse gradients."""
        assert closure is None
        if self.defaults["fused"]:
            # torch's fused kernels skip the update where this attribute, GradScaler's, is 1.
            self.found_inf = self.skip_update
        elif self.skip_update is not None and self.skip_update > 0:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, group)
                    parameter.grad = None
        super().step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state as `AdamW.load_state_dict`, but keep this optimizer's implementation.

        torch would restore `fused` too: a run that resumes on another device would be slow there,
        and ignore `skip_update`.
        """
        own = {name: self.defaults[name] for name in ("fused", "foreach", "capturable")}
        groups = [{**group, **own} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _update_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(len(parameter), 1, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        steps = state["step"][rows] + 1
        mean = state["exp_avg"][rows].lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(values, values, value=1 - beta2)
        for name, moved in (("step", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
            state[name].index_copy_(0, rows, self._unless_skipped(state[name][rows], moved))
        length = square.div_(1 - beta2**steps).sqrt_().add_(group["eps"])
        direction = mean.div_(1 - beta1**steps).div_(length)
        kept = parameter[rows].mul_(1 - group["lr"] * group["weight_decay"])
        moved = self._unless_skipped(parameter[rows], kept.add_(direction, alpha=-group["lr"]))
        parameter.index_copy_(0, rows, moved)

    def _unless_skipped(self, before: Tensor, after: Tensor) -> Tensor:
        skip = self.skip_update
        return after if skip is None else torch.where(skip > 0, before, after)


def set_hyperparameters(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set each group's learning rate and weight decay for this step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        group["weight_decay"] = weight_decay * group["decay_scale"]


@torch.no_grad()
def gradient_norms(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of each gradient, in the order of `parameters`, on the gradients' device.

    Parameters without a gradient are skipped; the result is empty if none has one.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.empty(0)
    dense = [each._values() if each.is_sparse else each for each in gradients]
    return torch.stack(torch._foreach_norm(dense))


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale down, in place, each gradient whose own norm exceeds `max_norm`.

    Every tensor is clipped separately, not by the global norm: by max_norm / (norm + 1e-6) where
    that is below 1. Parameters without a gradient are skipped. Reference: `clip_gradients` in `utils.py`.

    Returns:
        The norms before clipping, as `gradient_norms`.
    """
    parameters = list(parameters)
    norms = gradient_norms(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return norms
    # A product with exactly 1 changes no bit, so that the host need not know what is clipped.
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    if not uses_gpu_form(factors):
        for gradient, factor in zip(gradients, factors.tolist(), strict=True):
            if factor < 1:
                gradient.mul_(factor)
    else:
        torch._foreach_mul_(gradients, _spread(factors, gradients))
    return norms


def _spread(factors: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return a tensor of each one's shape, full of its factor.

    A list of 0-d factors would be a launch for each tensor: list operators take a few launches for all only where both
    lists have equal shapes and strides. This is one copy of the gradients, when activations are freed.
    """
    sizes = [tensor.numel() for tensor in tensors]
    filled = torch.cat([factor.expand(size) for factor, size in zip(factors.unbind(), sizes, strict=True)])
    return [part.view(tensor.shape) for part, tensor in zip(torch.split(filled, sizes), tensors, strict=True)]


def cancel_gradients(module: nn.Module, name_part: str = "last_layer") -> None:
    """Remove the gradients of the parameters with `name_part` in their name.

    None instead of zero: AdamW then neither updates nor decays them, nor counts the step.
    """
    for name, parameter in module.named_parameters():
        if name_part in name:
            parameter.grad = None


@torch.no_grad()
def ema_update_(teacher: nn.Module, student: nn.Module, momentum: float, skip_update: Tensor | None = None) -> None:
    """Update the teacher: teacher ← momentum·teacher + (1 − momentum)·student.

    Buffers are copied. A momentum of 1 leaves the parameters bitwise unchanged.

    Args:
        teacher: updated in place.
        student: of the same architecture.
        momentum: 0 … 1.
        skip_update: 0-d, on their device; 1 leaves the parameters unchanged.
    """
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    assert len(ours) == len(theirs), f"{len(ours)} teacher tensors, {len(theirs)} of the student"
    kept, added = (ours[0].new_full((), factor) for factor in (momentum, 1.0 - momentum))
    if skip_update is not None:
        kept = kept.masked_fill(skip_update > 0, 1.0)
        added = added.masked_fill(skip_update > 0, 0.0)
    # Two products, as in the reference: `lerp` is closer to float64, but differs from it.
    if not uses_gpu_form(ours[0]):
        for parameter, target in zip(ours, theirs, strict=True):
            parameter.mul_(kept).addcmul_(target, added)
    else:
        # A temporary copy of the student, when activations and gradients are freed.
        torch._foreach_mul_(ours, kept)
        torch._foreach_add_(ours, torch._foreach_mul(theirs, added))
    buffers = list(teacher.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(student.buffers()))


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up from `start` to `base`, then half a cosine from `base` towards `final`.

    Args:
        base: value at the end of the warm-up.
        final: value that the cosine would reach at step `total_steps`.
        total_steps: steps of the whole run, warm-up included.
        warmup_steps: steps of the warm-up; 0 begins at `base`, 1 spends one step at `start`.
        start: value at step 0 of the warm-up.
        top: value from which the cosine falls; None: `base`.
    """

    base: float
    final: float
    total_steps: int
    warmup_steps: int = 0
    start: float = 0.0
    top: float | None = None

    def __post_init__(self) -> None:
        assert self.total_steps > 0, f"a run of {self.total_steps} steps has no schedule"
        assert 0 <= self.warmup_steps <= self.total_steps, (
            f"a warm-up of {self.warmup_steps} steps does not fit a run of {self.total_steps}"
        )

    def __call__(self, step: int) -> float:
        """Return the value at optimizer step `step`, counted from 0."""
        assert 0 <= step < self.total_steps, f"step {step} of a run of {self.total_steps}"
        if step < self.warmup_steps:
            return _linear(self.start, self.base, step, self.warmup_steps)
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        top = self.base if self.top is None else self.top
        return self.final + 0.5 * (top - self.final) * (1.0 + math.cos(math.pi * progress))


def released_top(base: float, final: float, cosine_steps: int) -> float:
    """Return the value from which the released finetuning's cosine falls, slightly above `base`.

    torch's CosineAnnealingLR multiplies the last rate by a ratio of cosines. The released warm-up (`warmup_scheduler`
    0.3) hands `base` over as the rate at step 1 of the cosine instead of step 0, so all rates after the warm-up are
    2 / (1 + cos(π / T)) times as far above `final` (tests/golden/f7_finetune_schedule): 1 + 1.8e-4 at T = 116 steps,
    1.017 at 12.

    Args:
        base: value at the end of the warm-up.
        final: value at the end of the cosine.
        cosine_steps: T, steps after the warm-up; with 1 or less none of them follows the cosine.
    """
    if cosine_steps < 2:
        return base
    return final + (base - final) * 2.0 / (1.0 + math.cos(math.pi / cosine_steps))


@dataclass(frozen=True)
class LinearEpochs:
    """Linear from `start` to `end` over the first epochs, then `end`; constant within an epoch.

    For the teacher's temperature. Reference: `DINOLoss` in `lafs_train.py`.

    Args:
        start: value in epoch 0.
        end: value in epoch `warmup_epochs - 1` and in every later one.
        warmup_epochs: epochs of the warm-up; 0 gives `end` throughout, 1 gives `start` once.
        num_epochs: epochs of the whole run.
    """

    start: float
    end: float
    warmup_epochs: int
    num_epochs: int

    def __post_init__(self) -> None:
        assert 0 <= self.warmup_epochs <= self.num_epochs, (
            f"{self.warmup_epochs} warm-up epochs do not fit a run of {self.num_epochs}"
        )

    def __call__(self, epoch: int) -> float:
        """Return the value in epoch `epoch`, counted from 0."""
        assert 0 <= epoch < self.num_epochs, f"epoch {epoch} of a run of {self.num_epochs}"
        if epoch < self.warmup_epochs:
            return _linear(self.start, self.end, epoch, self.warmup_epochs)
        return self.end


@dataclass(frozen=True)
class Staircase:
    """A piecewise constant value, 0 after the last piece.

    Args:
        stairs: pairs of the step that ends a piece (exclusive) and its value, in order.
    """

    stairs: tuple[tuple[int, float], ...]

    def __call__(self, step: int) -> float:
        """Return the value at optimizer step `step`, counted from 0."""
        return next((value for end, value in self.stairs if step < end), 0.0)


def _linear(start: float, end: float, index: int, count: int) -> float:
    """Return value `index` of `count` evenly spaced ones from `start` to `end`; one is `start`."""
    return start if count == 1 else start + (end - start) * index / (count - 1)
