"""timm's own weights in a student: the network that timm has, over our tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lafs_ray.compat import import_timm
from lafs_ray.errors import CheckpointError
from lafs_ray.models.checkpoints.timm_weights import TokenLayout, adapt_timm_weights, is_timm_state
from lafs_ray.models.fvit import FViT
from lafs_ray.models.part_fvit import GridFViT
from lafs_ray.models.timm_transformer import new_transformer, plain_vit
from lafs_ray.models.tokens import grid_tokens, tokens_at

# Sums in another order give 1e-6.
TOLERANCE = 1e-5
NAMES = ("test_vit", "deit_tiny_patch16_224")
"""Normalized by 0.5 in all colors, and by ImageNet's means and deviations."""
ON_GRID = TokenLayout(49, 16, "pixels", grid=True)


def theirs(name: str, side: int = 112) -> Any:
    torch.manual_seed(7)
    model = import_timm().create_model(name, img_size=side, num_classes=0).eval()
    # Positions and norms of an untrained model hardly differ.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def student(name: str, state: dict[str, Tensor], layout: TokenLayout) -> tuple[FViT, list[str]]:
    found, report = adapt_timm_weights(state, plain_vit(name).size, layout, "a.safetensors")
    numbers = 3 * layout.patch_size**2
    network = new_transformer(plain_vit(name).size, layout.num_tokens, numbers).eval()
    network.load_state_dict(found, strict=True)
    return network, report


def faces(side: int = 112) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("name", NAMES)
def test_grid__computes_timms_embeddings(name: str) -> None:
    """Of the same resolution, a student on [-1, 1] is timm's network on its own normalization."""
    model = theirs(name)
    config = import_timm().models.get_pretrained_cfg(name)
    mean, std = (torch.tensor(part)[:, None, None] for part in (config.mean, config.std))
    network, report = student(name, model.state_dict(), ON_GRID)
    assert report == ["patch embedding taken", "positions taken"]
    with torch.no_grad():
        expected = model((faces() - mean) / std)
        torch.testing.assert_close(GridFViT(network, 16)(faces() * 2 - 1), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_patch_embedding__of_smaller_patches(name: str) -> None:
    """A patch of 8 px has the embedding of the 16 px patch that it is when enlarged, exactly: no number is lost."""
    model = theirs(name, side=224)
    network, report = student(name, model.state_dict(), TokenLayout(196, 8, "pixels", grid=True))
    assert report == ["patch embedding resampled from 16 to 8 px", "positions taken"]
    config = import_timm().models.get_pretrained_cfg(name)
    mean, std = (torch.tensor(part)[:, None, None] for part in (config.mean, config.std))
    patches = faces(8)
    large = torch.nn.functional.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model.patch_embed.proj((large - mean) / std).flatten(1)
        found = network.patch_to_embedding((patches * 2 - 1).permute(0, 2, 3, 1).flatten(1))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_grid__positions_of_another_resolution() -> None:
    """They are interpolated as timm does it for itself."""
    large, small = theirs("test_vit", side=224), theirs("test_vit")
    network, report = student("test_vit", large.state_dict(), ON_GRID)
    assert report[1] == "positions interpolated from 14 x 14 cells to 7 x 7"
    small.load_state_dict(large.state_dict() | {"pos_embed": network.pos_embedding.detach()})
    large.set_input_size(img_size=112)
    torch.testing.assert_close(large.pos_embed, small.pos_embed)


def test_landmarks__patches_are_transposed() -> None:
    """At landmarks that are the grid's cells, tokens are embedded as the grid's."""
    state = theirs("test_vit").state_dict()
    starts = torch.arange(7) * 16 + 16 / 2 + 0.5
    y, x = torch.meshgrid(starts, starts, indexing="ij")
    landmarks = torch.stack((x, y), dim=-1).reshape(49, 2)
    on_grid, _ = student("test_vit", state, ON_GRID)
    at_landmarks, report = student("test_vit", state, TokenLayout(49, 16, "pixels", grid=False, landmarks=landmarks))
    images = faces() * 2 - 1
    with torch.no_grad():
        expected = on_grid.patch_to_embedding(grid_tokens(images, 16, "pixels"))
        found = at_landmarks.patch_to_embedding(tokens_at(images, landmarks.expand(2, -1, -1), 16, "pixels"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert report[1] == "positions sampled at the landmarks, from 7 x 7 cells"


def test_landmarks__positions_are_those_of_the_cells() -> None:
    """At the centers of the cells, sampled positions are the cells' own; between two, their mean."""
    state = theirs("test_vit").state_dict()
    first, middle = torch.tensor([8.0, 8.0]), torch.tensor([16.0, 24.0])
    layout = TokenLayout(2, 16, "pixels", grid=False, landmarks=torch.stack((first, middle)))
    network, _ = student("test_vit", state, layout)
    cells = state["pos_embed"][0, 1:].reshape(7, 7, -1)
    torch.testing.assert_close(network.pos_embedding[0, 0], state["pos_embed"][0, 0])
    torch.testing.assert_close(network.pos_embedding[0, 1], cells[0, 0])
    torch.testing.assert_close(network.pos_embedding[0, 2], (cells[1, 0] + cells[1, 1]) / 2)


def test_landmarks_of_a_cnn__positions_start_new() -> None:
    """They are left out; the class token keeps its own position."""
    state = theirs("test_vit").state_dict()
    found, report = adapt_timm_weights(
        state, plain_vit("test_vit").size, TokenLayout(49, 16, "pixels", grid=False), "a.safetensors"
    )
    assert "pos_embedding" not in found
    assert torch.equal(found["cls_token"], state["cls_token"] + state["pos_embed"][:, :1])
    assert report[1].startswith("positions start new")


def test_orientation_tokens__patch_embedding_starts_new() -> None:
    """A patch embedding of pixels does not fit histograms, and the report says so."""
    layout = TokenLayout(49, 16, "orientations", grid=True)
    found, report = adapt_timm_weights(theirs("test_vit").state_dict(), plain_vit("test_vit").size, layout, "a")
    assert not [name for name in found if name.startswith("patch_to_embedding")]
    assert report[0].startswith("patch embedding starts new")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("patch_embed.proj.weight", (64, 1, 16, 16)), ("pos_embed", (1, 49, 64)), ("pos_embed", (49, 64))],
)
def test_adapt__of_other_shapes(name: str, shape: tuple[int, ...]) -> None:
    """A file of gray images, or of no square grid, is refused by the name of the tensor."""
    state = {**theirs("test_vit").state_dict(), name: torch.zeros(shape)}
    with pytest.raises(CheckpointError) as caught:
        adapt_timm_weights(state, plain_vit("test_vit").size, ON_GRID, "start.student=a.safetensors")
    assert caught.value.subject == f"start.student=a.safetensors, {name}"
    assert caught.value.found == f"shape {list(shape)}"


def test_is_timm_state__by_names() -> None:
    """timm's names are recognized, the fViT's are not."""
    assert is_timm_state(theirs("test_vit").state_dict())
    assert not is_timm_state(new_transformer(plain_vit("test_vit").size, 49, 768).state_dict())
