"""What surrounds the optimizer in a step: groups, clipping, the frozen last layer, the EMA.

On a GPU all of it works on whole lists of tensors (`torch._foreach_*`) and never waits for the
device: the base student has 145 trained tensors, and as many `.item()` calls would stall its queue
every step. On a CPU memory is what all wait for, so there tensors take turns, each while it is in
the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr_scale: Callable[[str], float] = lambda _: 1.0,
    decay_scale: Callable[[str], float] = lambda _: 1.0,
) -> list[dict[str, Any]]:
    """Split the trained parameters by their shares of the learning rate and of the weight decay.

    Biases and one-dimensional parameters (norms) are not decayed; the class token and the positions
    are. Parameters that need no gradient belong to no group.

    Args:
        module: what is trained.
        weight_decay: of the groups whose share is 1.
        lr_scale: name of a parameter to its share of the learning rate.
        decay_scale: name of a decayed parameter to its share of the weight decay.

    Returns:
        Groups for AdamW, for each share of the learning rate first the decayed, then the others;
        with one share they are the reference's two. `set_hyperparameters` reads `lr_scale` and
        `decay_scale`. Source: METHOD.md, "Objective and schedules"; golden cases c0, d7 and f5.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = lr_scale(name)
            for share in (1.0, 0.0):
                groups.setdefault((scale, share), [])
            is_decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            share = decay_scale(name) if is_decayed else 0.0
            groups.setdefault((scale, share), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay * share,
            "lr_scale": scale,
            "decay_scale": share,
        }
        for (scale, share), parameters in groups.items()
    ]


def layer_of(name: str, depth: int) -> int:
    """The layer of a Part fViT's parameter, for rates that fall from the output to the input.

    Landmark CNN, patch embedding, class token and positions are layer 0, block i is layer i + 1,
    everything above (norm, margin softmax) is layer depth + 1. Source: golden case f5.
    """
    block = re.match(r"(?:model\.)?transformer\.layers\.(\d+)\.", name)
    if block is not None:
        return int(block[1]) + 1
    is_input = re.match(
        r"(?:model\.)?(?:stn|output_layer|patch_to_embedding|cls_token|pos_embedding)\b", name
    )
    return 0 if is_input else depth + 1


class RowAdamW(torch.optim.AdamW):
    """AdamW that, where a gradient is sparse, moves only the rows that have one.

    Such a row follows AdamW over the steps in which it had a gradient, as if there were no others:
    in between it is not decayed, its moments rest and its count of steps (`step` [rows, 1], for the
    correction of the moments' bias) does not grow. Dense gradients are AdamW's own business.
    Ours: torch's SparseAdam has no weight decay and counts the steps of all rows together, which
    makes the first steps of a row that comes late up to √1000/10 times as long.

    `skip_update`, where it is set, is a 0-d float32 tensor on the parameters' device: 0, or 1 for
    a step that moves and counts nothing. A fused optimizer reads it on the device, without a
    synchronization; others read it on the host, which is free where that is the device.
    """

    skip_update: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all parameters with a gradient; sparse gradients are used up."""
        assert closure is None
        if self.defaults["fused"]:
            # torch's fused kernels skip the update where this attribute, GradScaler's, is 1.
            self.found_inf = self.skip_update
        elif self.skip_update is not None and self.skip_update > 0:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._move_rows(parameter, group)
                    parameter.grad = None
        super().step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `AdamW.load_state_dict`, but how steps are computed stays as this optimizer was made.

        torch would take it over as well: a run that continues on another device would be slow
        there, and not see `skip_update`.
        """
        own = {name: self.defaults[name] for name in ("fused", "foreach", "capturable")}
        groups = [{**group, **own} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def _move_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
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


def set_hyperparameters(
    optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float
) -> None:
    """Write each group's share of this step's learning rate and weight decay to it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        group["weight_decay"] = weight_decay * group["decay_scale"]


@torch.no_grad()
def gradient_norms(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of each gradient, in the order of `parameters`; those without one are left out.

    On the gradients' device, so that reading them is the caller's decision. Empty when there is no
    gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.empty(0)
    dense = [each._values() if each.is_sparse else each for each in gradients]
    return torch.stack(torch._foreach_norm(dense))


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale down, in place, each gradient whose own norm exceeds `max_norm`.

    Not the global norm: every tensor is clipped by itself, with max_norm / (norm + 1e-6) where that
    is below 1. Parameters without a gradient are skipped. Source: golden case d7.

    Returns:
        The norms before clipping, as `gradient_norms`.
    """
    parameters = list(parameters)
    norms = gradient_norms(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return norms
    # A product with exactly 1 changes no bit, which spares the host the question whether to clip.
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    if factors.device.type == "cpu":
        for gradient, factor in zip(gradients, factors.tolist(), strict=True):
            if factor < 1:
                gradient.mul_(factor)
    else:
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms


def cancel_gradients(module: nn.Module, name_part: str = "last_layer") -> None:
    """Remove the gradients of the parameters with `name_part` in their name.

    None and not zero: AdamW then neither moves nor decays them, nor counts the step.
    """
    for name, parameter in module.named_parameters():
        if name_part in name:
            parameter.grad = None


@torch.no_grad()
def ema_update_(
    teacher: nn.Module, student: nn.Module, momentum: float, skip_update: Tensor | None = None
) -> None:
    """Move the teacher towards the student: teacher ← momentum·teacher + (1 − momentum)·student.

    Parameters move; buffers are copied. A momentum of 1 leaves the parameters as they are, bit for
    bit.

    Args:
        teacher: moved.
        student: of the same architecture.
        momentum: 0 … 1.
        skip_update: 0-d, on their device; where it is 1, the parameters stay, for a finite student.
    """
    moved: list[Tensor] = list(teacher.parameters())
    targets: list[Tensor] = list(student.parameters())
    assert len(moved) == len(targets), f"a teacher of {len(moved)} for a student of {len(targets)}"
    kept, taken = (moved[0].new_full((), share) for share in (momentum, 1.0 - momentum))
    if skip_update is not None:
        kept = kept.masked_fill(skip_update > 0, 1.0)
        taken = taken.masked_fill(skip_update > 0, 0.0)
    # Two products, as in the reference: `lerp` is closer to float64, but not to its record (e1).
    if moved[0].device.type == "cpu":
        for parameter, target in zip(moved, targets, strict=True):
            parameter.mul_(kept).addcmul_(target, taken)
    else:
        # One copy of the student for a moment, when nothing else of the step is left.
        torch._foreach_mul_(moved, kept)
        torch._foreach_add_(moved, torch._foreach_mul(targets, taken))
    buffers = list(teacher.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(student.buffers()))
