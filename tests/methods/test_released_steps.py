"""Steps that the released code recorded, in our own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lafs_ray.methods.dino_loss import DINOHead
from lafs_ray.methods.lafs import Lafs, LafsNetwork, dequantize
from lafs_ray.methods.optim import CosineSchedule, LinearEpochs, clip_each_, parameter_groups, set_hyperparameters
from lafs_ray.models.fvit import FViT, FViTSize
from lafs_ray.models.landmark_cnn import LandmarkCNN
from lafs_ray.models.patch_sampling import extract_patches
from lafs_ray.transforms.params import sample_view_params
from lafs_ray.transforms.views import MultiViewTransform
from tests.golden_cases import GoldenCase, load_case, to_unit_range
from tests.methods.reference import REFERENCE
from tests.transforms.faces import view_settings


class Replay:
    """The recorded views and weights of `train_one_epoch` (`lafs_train.py`), in our own step."""

    def __init__(self, case: GoldenCase) -> None:
        self.case, self.cfg = case, case.meta["cfg"]
        cfg = self.cfg
        self.landmark_cnn = LandmarkCNN(cfg["num_patches"]).eval()
        self.landmark_cnn.load_state_dict(
            {
                key: torch.from_numpy(value)
                for key, value in case.params.items()
                if key.startswith(("stn.", "output_layer."))
            }
        )
        student, teacher = self._network(), self._network()
        student.load_state_dict(
            {
                key.removeprefix("student/"): torch.from_numpy(value)
                for key, value in case.params.items()
                # The reference's student carries a class weight that nothing uses.
                if key.startswith("student/") and not key.endswith("backbone.loss.weight")
            }
        )
        self.lafs = Lafs(student, teacher, num_prototypes=cfg["out_dim"], **REFERENCE)
        self.optimizer = torch.optim.AdamW(parameter_groups(student, 0.04))
        self.scores: dict[str, Tensor] = {}
        student.head.register_forward_hook(self._keep("student"))
        teacher.head.register_forward_hook(self._keep("teacher"))
        steps, warmup = cfg["epochs"] * cfg["niter"], cfg["warmup_epochs"] * cfg["niter"]
        self.lr = CosineSchedule(cfg["base_lr"], cfg["min_lr"], steps, warmup)
        self.weight_decay = CosineSchedule(0.04, 0.4, steps)
        self.momentum = CosineSchedule(cfg["momentum"], 1.0, steps)
        self.temperature = LinearEpochs(
            cfg["warmup_teacher_temp"], cfg["teacher_temp"], cfg["warmup_teacher_temp_epochs"], cfg["epochs"]
        )

    def _network(self) -> LafsNetwork:
        cfg = self.cfg
        size = FViTSize(cfg["dim"], cfg["depth"], cfg["heads"], 64, cfg["mlp_dim"])
        backbone = FViT(size, cfg["num_patches"], dropout=0.0, drop_path=0.0)
        head = DINOHead(
            cfg["dim"],
            cfg["out_dim"],
            hidden_dim=cfg["hidden_dim"],
            bottleneck_dim=cfg["bottleneck_dim"],
            frozen_norm=cfg["norm_last_layer"],
        )
        return LafsNetwork(backbone, head)

    def _keep(self, who: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.scores[who] = output.detach()

        return hook

    @torch.no_grad()
    def batch(self, index: int) -> dict[str, Tensor]:
        """Tokens of one step from the recorded views; checks the landmarks on the way."""
        inputs, images = self.case.inputs, self.cfg["B"]
        views = to_unit_range(inputs["views_u8_28"][index].repeat(4, axis=-1).repeat(4, axis=-2))
        clean, augmented = torch.from_numpy(views[0::2]), torch.from_numpy(views[1::2])
        noise = {name: torch.from_numpy(inputs[f"noise_{name}_{index}"]) for name in ("global1", "global2", "local")}
        landmarks = {
            "global1": self.landmark_cnn(clean[0]) + 5 * noise["global1"],
            "global2": self.landmark_cnn(clean[1]) + 5 * noise["global2"],
        }
        local = self.landmark_cnn(clean[2:].flatten(0, 1)) + 5 * noise["local"]
        slots = torch.from_numpy(inputs[f"index_local_{index}"]).expand(-1, -1, 2)
        landmarks["local"] = local.gather(1, slots)
        for name, found in landmarks.items():
            recorded = self.case.outputs[f"landmarks_{name}_{index}"]
            # Pixels; the tolerance of the recorded landmark CNN is larger.
            np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-3)
        global_tokens = [extract_patches(augmented[v], landmarks[f"global{v + 1}"]) for v in range(2)]
        local_tokens = extract_patches(augmented[2:].flatten(0, 1), landmarks["local"])
        return {
            "global_tokens": torch.stack(global_tokens, dim=1),
            "local_tokens": local_tokens.unflatten(0, (-1, images)).transpose(0, 1),
        }

    def step(self, index: int, batch: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
        """The step itself; returns the loss and the gradients' norms by parameter."""
        epoch, lafs = index // self.cfg["niter"], self.lafs
        set_hyperparameters(self.optimizer, self.lr(index), self.weight_decay(index))
        values = {"teacher_temp": self.temperature(epoch), "ema_momentum": self.momentum(index)}
        self.optimizer.zero_grad()
        loss, _ = lafs.loss(lafs.trainable, batch, values)
        loss.backward()
        trained = {n: p for n, p in lafs.trainable.named_parameters() if p.grad is not None}
        norms = clip_each_(trained.values(), self.cfg["clip_grad"])
        lafs.before_optimizer(epoch, {})
        self.optimizer.step()
        lafs.finish_step(values)
        return loss.item(), dict(zip(trained, norms.tolist(), strict=True))


def check_sums(network: nn.Module, names: list[str], recorded: np.ndarray, tol: float) -> None:
    state = network.state_dict()
    for name, expected in zip(names, recorded, strict=True):
        if name == "backbone.loss.weight":
            continue
        values = state[name].double()
        found = [values.sum().item(), values.abs().sum().item()]
        np.testing.assert_allclose(found, expected, rtol=0, atol=tol, err_msg=name)


def test_lafs__steps_of_the_released_code() -> None:
    """Four recorded steps, images to weights: every number within the case's own tolerances."""
    case = load_case("e1_lafs_steps")
    out, tol = case.outputs, case.meta["tol"]
    names = [str(name) for name in out["names"]]
    replay = Replay(case)
    for index in range(len(out["lr"])):
        loss, norms = replay.step(index, replay.batch(index))
        groups = replay.optimizer.param_groups
        for group in groups:
            assert group["lr"] == pytest.approx(out["lr"][index], rel=1e-12)
        assert groups[0]["weight_decay"] == pytest.approx(out["wd_group0"][index], rel=1e-12)
        assert groups[1]["weight_decay"] == out["wd_group1"][index]
        assert replay.momentum(index) == pytest.approx(out["momentum"][index], rel=1e-12)
        assert loss == pytest.approx(out[f"loss_{index}"].item(), abs=tol["loss"])
        for who in ("student", "teacher"):
            np.testing.assert_allclose(replay.scores[who], out[f"{who}_out_{index}"], rtol=0, atol=tol[f"{who}_out"])
        center = replay.lafs.center.center
        np.testing.assert_allclose(center, out[f"center_{index}"], rtol=0, atol=tol["center"])
        recorded = [norms[str(name)] for name in out["grad_norm_names"]]
        assert len(recorded) == len(norms)
        np.testing.assert_allclose(recorded, out[f"grad_norms_{index}"], rtol=tol["grad_norms_rtol"])
        student, teacher = replay.lafs.trainable, replay.lafs.teacher
        for who, network in (("student", student), ("teacher", teacher)):
            sums = out[f"{who}_sum_abssum_{index}"]
            check_sums(network, names, sums, tol[f"{who}_sum_abssum"])


def quantized_batch(replay: Replay, transform: MultiViewTransform, index: int) -> dict[str, Tensor]:
    """Tokens of one step by the view transform, with the recorded noise and landmark indices."""
    inputs, images = replay.case.inputs, replay.cfg["B"]
    views = inputs["views_u8_28"][index].repeat(4, axis=-1).repeat(4, axis=-2)
    # Views first, then images; the transform has them the other way around.
    clean, changed = (torch.from_numpy(views[part::2]).transpose(0, 1) for part in (0, 1))
    names = ("global1", "global2", "local")
    draws = [inputs[f"noise_{name}_{index}"].reshape(-1, images, 196, 2) for name in names]
    noise = np.concatenate(draws).swapaxes(0, 1)
    kept = inputs[f"index_local_{index}"].reshape(-1, images, 36).swapaxes(0, 1)
    records = np.zeros((3, images), dtype=np.int64)
    sampled = sample_view_params(transform.settings, 0, *records)
    params = replace(sampled, landmark_noise_px=5 * noise, local_indices=kept)
    tokens = {}
    for name, part in (("global_tokens", slice(0, 2)), ("local_tokens", slice(2, 10))):
        pixels = [each[:, part].flatten(0, 1).contiguous() for each in (clean, changed)]
        is_local = name == "local_tokens"
        tokens[name] = dequantize(transform.view_tokens(*pixels, params.views(part), is_local=is_local))
    return tokens


def test_view_tokens__recorded_noise_and_indices() -> None:
    """Case e1's four steps from the recorded views, noise and indices on, through the view transform."""
    case = load_case("e1_lafs_steps")
    replay = Replay(case)
    transform = MultiViewTransform(view_settings(), replay.landmark_cnn, 0)
    for index in range(len(case.outputs["lr"])):
        exact, batch = replay.batch(index), quantized_batch(replay, transform, index)
        for name, value in batch.items():
            # In steps of 8 bits: half of one by rounding, and patches are sampled at whole 32nds of a pixel.
            assert ((value - exact[name]).abs() * 127.5).max() < 1, name
        loss, _ = replay.step(index, batch)
        # Found: 9e-5, by the 8 bits. 3 px of noise instead of 5 change it by 4e-3, the other appearance by 4e-2.
        assert loss == pytest.approx(case.outputs[f"loss_{index}"].item(), abs=5e-4)
