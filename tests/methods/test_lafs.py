from __future__ import annotations

import contextlib
import copy
import io
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
from lafs_ray.models.placement import gpu_form_everywhere
from lafs_ray.transforms.params import sample_view_params
from lafs_ray.transforms.views import MultiViewTransform
from tests.golden_cases import GoldenCase, load_case, to_unit_range
from tests.transforms.faces import view_settings

NUM_PROTOTYPES = 24
REFERENCE: dict[str, Any] = {
    "student_temp": 0.1,
    "center_momentum": 0.9,
    "freeze_last_layer_epochs": 1,
    "teacher_dropout": True,
    "centering": "mean",
}


def small_network(dropout: float = 0.0, seed: int = 0) -> LafsNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = FViTSize(width=16, depth=2, heads=2, head_dim=8, mlp_width=24)
        backbone = FViT(size, 16, 12, dropout=dropout, drop_path=dropout)
        return LafsNetwork(backbone, DINOHead(16, NUM_PROTOTYPES, hidden_dim=20, bottleneck_dim=8))


def small_lafs(dropout: float = 0.0, **options: Any) -> Lafs:
    networks = (small_network(dropout, seed).double() for seed in (0, 1))
    lafs = Lafs(*networks, num_prototypes=NUM_PROTOTYPES, **(REFERENCE | options))
    lafs.center.double()
    return lafs


def small_batch(images: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "global_tokens": torch.rand(images, 2, 16, 12, generator=generator).double() * 2 - 1,
        "local_tokens": torch.rand(images, 3, 5, 12, generator=generator).double() * 2 - 1,
    }


VALUES = {"teacher_temp": 0.05, "ema_momentum": 0.9}


def optimizer_of(lafs: Lafs) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(lafs.trainable, 0.04), lr=1e-2)


def step(lafs: Lafs, optimizer: torch.optim.Optimizer, batches: list[dict[str, Tensor]]) -> float:
    """One optimizer step over the micro-batches, as the training loop takes it."""
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = lafs.loss(lafs.trainable, batch, VALUES)
        (loss / len(batches)).backward()
        total += loss.item() / len(batches)
    clip_each_(lafs.trainable.parameters(), 3.0)
    lafs.before_optimizer(1, {})
    optimizer.step()
    lafs.finish_step(VALUES)
    return total


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


def test_lafs__accumulation_equals_a_larger_batch() -> None:
    """Two micro-batches of 2 move student, teacher and center as one batch of 4 does."""
    whole, parts = small_lafs(), small_lafs()
    optimizers = [optimizer_of(whole), optimizer_of(parts)]
    for seed in range(3):
        batch = small_batch(4, seed)
        halves = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
        losses = step(whole, optimizers[0], [batch]), step(parts, optimizers[1], halves)
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    # float64; Adam divides tiny gradients by their size, which magnifies rounding.
    for mine, theirs in ((whole.trainable, parts.trainable), (whole.teacher, parts.teacher)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(whole.center.center, parts.center.center, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_lafs__without_local_views(on_gpu: bool) -> None:
    """The loss is that of the global views alone, also where stochastic depth drops some of them."""
    lafs = small_lafs()
    lafs.trainable.backbone.transformer.depth.rate = 0.3
    batch = small_batch(4)
    batch["local_tokens"] = batch["local_tokens"][:, :0]
    views = [batch["global_tokens"].transpose(0, 1).flatten(0, 1)]
    form = gpu_form_everywhere if on_gpu else contextlib.nullcontext
    with form():
        torch.manual_seed(0)
        loss, _ = lafs.loss(lafs.trainable, batch, VALUES)
        torch.manual_seed(0)
        student, teacher = lafs.trainable(views), lafs.teacher(views).detach()
    targets = torch.softmax(teacher / VALUES["teacher_temp"], dim=-1)
    log_shares = torch.log_softmax(student / lafs.student_temp, dim=-1).unflatten(0, (2, -1))
    pairs = -(targets.unflatten(0, (2, -1)).flip(0) * log_shares).sum(-1)
    torch.testing.assert_close(loss, pairs.mean())


def test_lafs__diagnostics_where_a_report_follows() -> None:
    """In the form for GPUs other steps have the same loss and center without them; on a CPU every step has them."""
    found = {}
    for on_gpu in (False, True):
        for reports in (False, True):
            lafs = small_lafs()
            lafs.begin_step(0, reports=reports)
            with gpu_form_everywhere() if on_gpu else contextlib.nullcontext():
                loss, metrics = lafs.loss(lafs.trainable, small_batch(4), VALUES)
            found[on_gpu, reports] = float(loss.detach()), lafs.center.pending.tolist(), set(metrics)
    assert found[False, False] == found[False, True]
    assert found[True, False][:2] == found[True, True][:2]
    assert found[True, False][2] == {"loss"}
    assert found[True, True][2] == found[False, True][2] > {"loss", "kl", "teacher_entropy"}


def test_lafs__teacher_starts_as_the_student_and_has_no_gradient() -> None:
    """The teacher takes the student's weights, and a backward leaves it alone."""
    lafs = small_lafs()
    for mine, theirs in zip(lafs.teacher.parameters(), lafs.trainable.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    before = copy.deepcopy(lafs.teacher.state_dict())
    loss, metrics = lafs.loss(lafs.trainable, small_batch(2), VALUES)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in lafs.teacher.parameters())
    assert all(p.grad is not None for p in lafs.trainable.parameters() if p.requires_grad)
    assert all(torch.equal(value, before[key]) for key, value in lafs.teacher.state_dict().items())
    assert all(not value.requires_grad for value in metrics.values())
    assert torch.equal(metrics["loss"], loss.detach())


@pytest.mark.parametrize("teacher_dropout", [True, False])
def test_lafs__teacher_dropout(teacher_dropout: bool) -> None:
    """The teacher's scores vary from call to call exactly when its dropout is left on."""
    lafs = small_lafs(dropout=0.5, teacher_dropout=teacher_dropout)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        lafs.loss(lafs.trainable, small_batch(2), VALUES)
        found.append(lafs.center.pending.clone())
        lafs.center.update()
    assert torch.equal(found[0], found[1]) is not teacher_dropout
    assert lafs.trainable.training


def test_lafs__last_layer_frozen_in_the_first_epochs() -> None:
    """The prototypes' gradient is gone while the epoch is below the limit, then stays."""
    lafs = small_lafs(freeze_last_layer_epochs=2)
    for epoch, kept in ((0, False), (1, False), (2, True)):
        loss, _ = lafs.loss(lafs.trainable, small_batch(2), VALUES)
        loss.backward()
        lafs.before_optimizer(epoch, {})
        assert (lafs.trainable.head.last_layer.weight_v.grad is not None) is kept
        assert lafs.trainable.backbone.cls_token.grad is not None


def test_lafs__state_round_trip() -> None:
    """Saved, read back into a fresh pair and continued: every loss and weight bit for bit."""
    lafs = small_lafs()
    optimizer = optimizer_of(lafs)
    step(lafs, optimizer, [small_batch(2, 0)])
    file = io.BytesIO()
    torch.save([lafs.trainable.state_dict(), lafs.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    student, method, optimizer_state = torch.load(file, weights_only=True)
    resumed = small_lafs()
    resumed.trainable.load_state_dict(student)
    resumed.load_state_dict(method)
    second = optimizer_of(resumed)
    second.load_state_dict(optimizer_state)
    for seed in (1, 2):
        batch = [small_batch(2, seed)]
        assert step(lafs, optimizer, batch) == step(resumed, second, batch)
    for mine, theirs in (
        (lafs.trainable.state_dict(), resumed.trainable.state_dict()),
        (lafs.teacher.state_dict(), resumed.teacher.state_dict()),
        (lafs.center.state_dict(), resumed.center.state_dict()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


def test_lafs__uint8_tokens() -> None:
    """uint8 tokens give the loss of the same tokens in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    raw = {
        "global_tokens": torch.randint(256, (2, 2, 16, 12), generator=generator),
        "local_tokens": torch.randint(256, (2, 3, 5, 12), generator=generator),
    }
    lafs = Lafs(small_network(), small_network(), num_prototypes=NUM_PROTOTYPES, **REFERENCE)
    stored, _ = lafs.loss(lafs.trainable, {k: v.byte() for k, v in raw.items()}, VALUES)
    plain, _ = lafs.loss(lafs.trainable, {k: v / 127.5 - 1 for k, v in raw.items()}, VALUES)
    assert torch.equal(stored, plain)


def test_dequantize__range() -> None:
    """0 and 255 are the ends of [-1, 1]; floats come back as they are."""
    assert dequantize(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    tokens = torch.rand(3)
    assert dequantize(tokens) is tokens


def test_lafs_network__batches_neighbors_of_one_token_count() -> None:
    """Sets keep their order of rows, equal neighbors run at once, and the head runs once."""
    network = small_network()
    sets = [torch.randn(2, count, 12, generator=torch.Generator()) for count in (16, 16, 5, 5, 5)]
    calls: dict[str, int] = {"backbone": 0, "head": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    handles = [network.get_submodule(n).register_forward_hook(count(n)) for n in calls]
    together = network(sets)
    assert calls == {"backbone": 2, "head": 1}
    for handle in handles:
        handle.remove()
    apart = torch.cat([network([tokens]) for tokens in sets])
    # Matrix products of other shapes round differently in float32.
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    assert {key.split(".")[0] for key in network.state_dict()} == {"backbone", "head"}
