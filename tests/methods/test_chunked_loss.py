"""The loss over parts of the images: as the loss in one piece, in value and gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from lafs_ray.methods import chunked_loss
from lafs_ray.methods.chunked_loss import chunked_dino_loss, part_loss
from lafs_ray.methods.dino_loss import dino_loss


@pytest.mark.parametrize(("num_views", "images", "numbers"), [(2, 1, 1), (10, 7, 10 * 33 * 3), (3, 8, 1 << 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunked_loss__as_in_one_piece(
    num_views: int, images: int, numbers: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one image a part, with parts of different sizes, and with one part."""
    monkeypatch.setattr(chunked_loss, "_NUMBERS", numbers)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(num_views * images, 33, generator=generator).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    targets = torch.randn(2 * images, 33, generator=generator).to(wide).mul(5).softmax(-1)
    results = []
    for compute in (partial(chunked_dino_loss, part=part_loss), dino_loss):
        leaf = scores.clone().requires_grad_()
        loss = compute(leaf, targets, student_temp=0.1, num_views=num_views)
        (loss / 3).backward()
        assert leaf.grad is not None
        assert loss.dtype == wide
        results.append((loss.detach(), leaf.grad))
    (loss, gradient), (expected, expected_gradient) = results
    torch.testing.assert_close(loss, expected, rtol=16 * torch.finfo(wide).eps, atol=0)
    # A probability is the exponential of up to 40; in bfloat16, it is rounded once more when the loss is divided.
    scale = float(expected_gradient.abs().max())
    off = (2 if dtype == torch.bfloat16 else 40) * torch.finfo(dtype).eps
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=off)
