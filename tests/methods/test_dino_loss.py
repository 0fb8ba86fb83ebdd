from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lafs_ray.methods.dino_loss import Center, centered_targets, dino_loss, sinkhorn_targets, ssl_diagnostics
from tests.golden_cases import golden_head, load_case
from tests.ranks import on_ranks

HEAD_CASES = ["d1_dino_head_loss", "d2_dino_head_loss_nonorm"]


def naive_loss(
    student: Tensor, teacher: Tensor, center: Tensor, student_temp: float, teacher_temp: float, num_views: int
) -> Tensor:
    """The loss's definition, as its docstring writes it."""
    terms = []
    for g, seen in enumerate(teacher.chunk(2)):
        target = F.softmax((seen - center) / teacher_temp, dim=-1)
        for v, view in enumerate(student.chunk(num_views)):
            if v != g:
                terms.append(-(target * F.log_softmax(view / student_temp, dim=-1)).sum(-1).mean())
    return sum(terms, torch.zeros(())) / len(terms)


@pytest.mark.parametrize("name", HEAD_CASES)
def test_dino_loss__released_code(name: str) -> None:
    """Loss, center and every gradient of two recorded steps, head included."""
    case = load_case(name)
    meta, tol = case.meta, case.meta["tol"]
    center = Center(meta["out_dim"], meta["center_momentum"])
    student_head, teacher_head = golden_head(case, "student"), golden_head(case, "teacher")
    for step, epoch in enumerate(meta["epochs"]):
        student_head.zero_grad()
        features = torch.from_numpy(case.inputs[f"student_feat_{step}"]).requires_grad_()
        student = student_head(features)
        student.retain_grad()
        with torch.no_grad():
            teacher = teacher_head(torch.from_numpy(case.inputs[f"teacher_feat_{step}"]))
        loss = dino_loss(
            student,
            centered_targets(teacher, center.center, case.outputs["teacher_temp_schedule"][epoch]),
            student_temp=meta["student_temp"],
            num_views=meta["ncrops"],
        )
        loss.backward()
        center.observe(teacher)
        center.update()
        out = case.outputs
        assert loss.item() == pytest.approx(out[f"loss_{step}"].item(), abs=tol["loss"])
        np.testing.assert_allclose(center.center, out[f"center_{step}"], atol=tol["center"])
        assert student.grad is not None
        assert features.grad is not None
        gradients = {f"grad_student_out_{step}": student.grad, f"grad_student_feat_{step}": features.grad} | {
            f"grad_{step}::{key}": parameter.grad
            for key, parameter in student_head.named_parameters()
            if parameter.grad is not None
        }
        assert gradients.keys() == {key for key in out if key.startswith("grad_") and f"_{step}" in key}
        for key, gradient in gradients.items():
            np.testing.assert_allclose(gradient, out[key], **tol["grad"], err_msg=key)


@pytest.mark.parametrize("num_views", [2, 3, 10])
def test_dino_loss__definition(num_views: int) -> None:
    """The sum over views equals the double loop over pairs, in value and gradient (float64)."""
    generator = torch.Generator().manual_seed(num_views)
    student = torch.randn(num_views * 3, 7, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    center = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    results = []
    for fast in (True, False):
        leaf = student.clone().requires_grad_()
        if fast:
            loss = dino_loss(leaf, centered_targets(teacher, center, 0.05), student_temp=0.1, num_views=num_views)
        else:
            loss = naive_loss(leaf, teacher, center, 0.1, 0.05, num_views)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    # Rounding of float64 at scores of ±30, summed over 60 pairs at most.
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-13)


def test_dino_loss__bfloat16_scores() -> None:
    """bfloat16 scores give the float32 loss of the same numbers: only the input is rounded."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(20, 64, generator=generator).bfloat16().requires_grad_()
    teacher, center = torch.randn(4, 64, generator=generator).bfloat16(), torch.randn(1, 64) * 0.1
    targets, exact_targets = (centered_targets(t, center, 0.04) for t in (teacher, teacher.float()))
    loss = dino_loss(student, targets, student_temp=0.1, num_views=10)
    loss.backward()
    exact = dino_loss(student.detach().float(), exact_targets, student_temp=0.1, num_views=10)
    assert loss.dtype == torch.float32
    assert torch.equal(loss.detach(), exact)
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_dino_loss__large_scores_stay_finite() -> None:
    """Scores that overflow a naive exp give a finite loss and gradient."""
    student = (torch.eye(20, 8) * 1e4).requires_grad_()
    loss = dino_loss(
        student, centered_targets(torch.eye(4, 8) * 1e4, torch.zeros(1, 8), 0.04), student_temp=0.1, num_views=10
    )
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_dino_loss__rows_that_do_not_fit() -> None:
    """Student rows of another number of images than the teacher's stop at once."""
    with pytest.raises(AssertionError, match="30 student rows in 10 views, 4 teacher rows"):
        dino_loss(torch.zeros(30, 5), torch.zeros(4, 5), student_temp=0.1, num_views=10)


def test_center__micro_batches_equal_one_batch() -> None:
    """Two micro-batches and one update move the center as one batch of both does."""
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = Center(5), Center(5)
    whole.observe(rows)
    for part in rows.chunk(2):
        parts.observe(part)
    whole.update()
    parts.update()
    # Another order of eight float32 additions.
    torch.testing.assert_close(parts.center, whole.center, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(whole.center, 0.1 * rows.mean(0, keepdim=True))


def test_center__forgets_a_step_once_it_is_done() -> None:
    """An update uses up what was observed; a second one without rows is a bug."""
    center = Center(3)
    center.observe(torch.ones(2, 3))
    center.update()
    with pytest.raises(AssertionError, match="at least one micro-batch"):
        center.update()
    assert list(center.state_dict()) == ["center"]


def rank_of_case_d9(rank: int, num_ranks: int) -> dict[str, np.ndarray]:
    """One rank of the recorded `DINOLoss` (`lafs_train.py`): losses, and centers of all steps."""
    assert num_ranks == 2
    case = load_case("d9_loss_2ranks")
    out = {}
    center = Center(case.meta["out_dim"])
    for step, epoch in enumerate(case.meta["epochs"]):
        student, teacher = (
            torch.from_numpy(case.inputs[f"rank{rank}/{who}_out_{step}"]) for who in ("student", "teacher")
        )
        out[f"loss_{step}"] = dino_loss(
            student,
            centered_targets(teacher, center.center, (0.07, 0.04, 0.04)[epoch]),
            student_temp=0.1,
            num_views=case.meta["ncrops"],
        )
        center.observe(teacher)
        center.update()
        out[f"center_{step}"] = center.center.clone()
    return out


def sinkhorn_rows() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def sinkhorn_rank(rank: int, num_ranks: int) -> Tensor:
    """One of several ranks, with its share of the rows."""
    return sinkhorn_targets(sinkhorn_rows()[rank::num_ranks], 0.05)


def test_two_ranks__recorded_center_and_sinkhorn(tmp_path: Path) -> None:
    """Golden d9 on two gloo ranks, and Sinkhorn's targets: those of one process with all rows."""
    ranks, parts = on_ranks(tmp_path, (2, rank_of_case_d9, ()), (2, sinkhorn_rank, ()))
    together = sinkhorn_targets(sinkhorn_rows(), 0.05)
    for rank, part in enumerate(parts):
        # float32 sums in another order, in exponents of up to 60.
        torch.testing.assert_close(part, together[rank::2], rtol=0, atol=2e-5)
    case = load_case("d9_loss_2ranks")
    single = Center(case.meta["out_dim"])
    for step in range(len(case.meta["epochs"])):
        rows = [torch.from_numpy(case.inputs[f"rank{r}/teacher_out_{step}"]) for r in range(2)]
        single.observe(torch.cat(rows))
        single.update()
        for rank, found in enumerate(ranks):
            for key, tol in case.meta["tol"].items():
                expected = case.outputs[f"rank{rank}/{key}_{step}"]
                np.testing.assert_allclose(found[f"{key}_{step}"], expected, rtol=0, atol=tol)
        np.testing.assert_array_equal(ranks[0][f"center_{step}"], ranks[1][f"center_{step}"])
        # float32 sums in another order.
        np.testing.assert_allclose(ranks[0][f"center_{step}"], single.center, rtol=1e-6, atol=1e-7)


def test_sinkhorn_targets__definition() -> None:
    """Equal to the products of the definition (float64), rows sum to 1, prototypes nearly equal."""
    teacher = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = sinkhorn_targets(teacher, 0.5)
    expected = torch.exp(teacher / 0.5)
    for _ in range(3):
        expected = expected / expected.sum(0, keepdim=True)
        expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(targets, expected, rtol=1e-12, atol=0)
    # Three iterations come within a tenth of the even share of 12/5 rows a prototype.
    assert (targets.sum(0) - 12 / 5).abs().max() < 0.24
    centered = centered_targets(teacher, teacher.mean(0, keepdim=True), 0.5)
    assert (centered.sum(0) - 12 / 5).abs().max() > 0.24


def test_sinkhorn_targets__temperatures_that_underflow() -> None:
    """Scores whose exponentials all vanish in float32 still give finite rows that sum to 1."""
    targets = sinkhorn_targets(-torch.rand(6, 4) - 1.0, 0.005)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


def state_of(student: Tensor, teacher: Tensor, embeddings: Tensor) -> dict[str, float]:
    center = torch.zeros(1, teacher.shape[1])
    state = ssl_diagnostics(student, centered_targets(teacher, center, 0.04), center, embeddings, student_temp=0.1)
    assert all(value.shape == () and not value.requires_grad for value in state.values())
    return {name: value.item() for name, value in state.items()}


def test_learning_state__no_opinion() -> None:
    """Equal scores: both entropies are log K, the divergence 0, one prototype is used."""
    state = state_of(torch.zeros(10, 16, requires_grad=True), torch.zeros(4, 16), torch.ones(4, 8))
    assert state["teacher_entropy"] == pytest.approx(math.log(16))
    assert state["student_entropy"] == pytest.approx(math.log(16))
    assert state["kl"] == pytest.approx(0.0, abs=1e-6)
    assert state["used_prototypes"] == 0.25
    assert state["center_norm"] == 0.0
    assert state["embedding_std"] == pytest.approx(0.0, abs=1e-6)


def test_learning_state__certain_and_agreeing() -> None:
    """One-hot views that agree across views: entropies and divergence 0, all choices counted."""
    views = torch.eye(2, 16).repeat(2, 1) * 100
    state = state_of(views, views, torch.eye(4) * 7)
    for name in ("teacher_entropy", "student_entropy", "kl"):
        assert state[name] == pytest.approx(0.0, abs=1e-6)
    assert state["used_prototypes"] == 0.5
    # Four axes of length 1 in four dimensions: deviation √(1/4 - 1/16) in each.
    assert state["embedding_std"] == pytest.approx(2 * math.sqrt(3 / 16))


def test_learning_state__pairs_other_views() -> None:
    """The divergence sets the student's view 2 against the teacher's view 1, as the loss does."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(10, 6, generator=generator)
    teacher = torch.randn(4, 6, generator=generator)
    state = state_of(student, teacher, torch.randn(4, 3, generator=generator))
    pairs = naive_loss(student[:4], teacher, torch.zeros(1, 6), 0.1, 0.04, 2).item()
    assert state["kl"] + state["teacher_entropy"] == pytest.approx(pairs, rel=1e-5)
