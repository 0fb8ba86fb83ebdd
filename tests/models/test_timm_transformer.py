"""timm's ViTs as the transformer: equal to timm's own networks, and as the fViT in all else."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from lafs_ray.compat import import_timm
from lafs_ray.config.train import Model
from lafs_ray.errors import ConfigError
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.timm_names import from_timm, to_timm
from lafs_ray.models.dropout import Dropout
from lafs_ray.models.fvit import FViT
from lafs_ray.models.part_fvit import GridFViT
from lafs_ray.models.timm_transformer import TimmTransformer, configured_size, new_transformer, plain_vit

# Sums in another order give 1e-6.
TOLERANCE = 1e-5
TINY = "test_vit"


def transformer(name: str = TINY, num_tokens: int = 49, **options: float) -> FViT:
    torch.manual_seed(1)
    return new_transformer(plain_vit(name).size, num_tokens, 768, **options)  # type: ignore[arg-type]


def tokens(count: int = 9, batch: int = 3) -> Tensor:
    return torch.rand(batch, count, 768, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", (64, 6, 2, 32, 192)),
        ("vit_tiny_patch16_224", (192, 12, 3, 64, 768)),
        ("deit3_small_patch16_224", (384, 12, 6, 64, 1536)),
        ("vit_small_patch14_dinov2", (384, 12, 6, 64, 1536)),
        ("vit_base_patch16_224.dino", (768, 12, 12, 64, 3072)),
    ],
)
def test_plain_vit__sizes(name: str, size: tuple[int, ...]) -> None:
    """Sizes are read off timm's model, with or without a tag."""
    found = plain_vit(name).size
    assert (found.width, found.depth, found.heads, found.head_dim, found.mlp_width, found.timm) == (*size, name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("test_vit2", "no class token, register tokens"),
        ("vit_base_patch16_clip_224", "a norm before the first block"),
        ("vit_small_patch16_18x2_224", "blocks with a ParallelThingsBlock"),
        ("vit_giant_patch14_dinov2", "blocks with a GluMlp"),
        ("deit_tiny_distilled_patch16_224", "a VisionTransformerDistilled"),
        ("resnet18", "a model of another family"),
        ("eva02_tiny_patch14_224", "a model of another family"),
        ("vit_tinny_patch16_224", "does not have"),
    ],
)
def test_plain_vit__others_are_refused(name: str, found: str) -> None:
    """One message names the model, what is unlike a plain ViT, and models that are supported."""
    with pytest.raises(ConfigError) as caught:
        plain_vit(name)
    assert caught.value.subject == f"student timm/{name}"
    assert found in caught.value.found
    assert "vit_tiny_patch16_224" in caught.value.expected


@pytest.mark.parametrize("name", [TINY, "deit3_small_patch16_224"])
def test_grid_network__is_timms_own(name: str) -> None:
    """timm's module with our tensors computes our embeddings, and ours with timm's tensors those of timm."""
    size = plain_vit(name).size
    architecture = Architecture(49, size, 16, grid=True)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(3)) * 2 - 1
    torch.manual_seed(4)
    theirs = import_timm().create_model(name, img_size=112, patch_size=16, num_classes=0).eval()
    ours = GridFViT(architecture.build_transformer(init_std=1.0), 16).eval()
    with torch.no_grad():
        first = ours(images)
        theirs.load_state_dict(to_timm(ours.state_dict(), architecture), strict=True)
        torch.testing.assert_close(theirs(images), first, atol=TOLERANCE, rtol=0)
        ours.load_state_dict(from_timm(theirs.state_dict(), size), strict=True)
        torch.testing.assert_close(ours(images), first, atol=TOLERANCE, rtol=0)


def test_encode__is_the_first_output() -> None:
    """The class token alone is the first of all outputs, for any number of tokens."""
    network = transformer().eval()
    with torch.no_grad():
        for count in (9, 49):
            torch.testing.assert_close(network(tokens(count)), network.outputs(tokens(count))[:, 0])


def test_names__are_timms_within_a_block() -> None:
    """Positions, token, patches, blocks, norm, in the fViT's order."""
    names = [name for name, _ in transformer().named_parameters()]
    assert names[:4] == ["pos_embedding", "cls_token", "patch_to_embedding.weight", "patch_to_embedding.bias"]
    assert names[-2:] == ["mlp_head.0.weight", "mlp_head.0.bias"]
    theirs = [name for name, _ in import_timm().create_model(TINY).named_parameters()]
    inner = [re.sub(r"^transformer\.layers", "blocks", name) for name in names[4:-2]]
    assert inner == [name for name in theirs if name.startswith("blocks.")]


def test_token_attention__is_what_the_block_mixes_with() -> None:
    """Weights times values, projected, are the attention of timm's block."""
    network, inputs = transformer().eval(), tokens()
    with torch.no_grad():
        weights = network.token_attention(inputs, 0)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 10))
        block = network.transformer.layers[0]
        x = block.norm1(network.with_positions(inputs))
        values = block.attn.qkv(x).unflatten(-1, (3, 2, 32))[:, :, 2].transpose(1, 2)
        mixed = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, block.attn(x))
    assert network.token_attention(inputs).shape == (3, 2, 10, 10)


@pytest.mark.parametrize("per_sample", [False, True])
def test_stochastic_depth__drops_the_same_samples_as_the_fvit(per_sample: bool) -> None:
    """A sample whose branches are all dropped leaves the blocks as it came; the mean over draws stays."""
    network = transformer(drop_path=0.5, drop_path_per_sample=per_sample).train()
    inputs = network.with_positions(tokens(batch=8)).detach()
    block, depth = network.transformer.layers[0], network.transformer.depth
    torch.manual_seed(0)
    with torch.no_grad():
        plain = block(inputs) - inputs
        drawn = [depth(inputs)[:2] for _ in range(200)]
        changes = torch.stack([block(inputs, *paths) - inputs for paths in drawn])
    unchanged = (changes == 0).flatten(2).all(-1)
    assert 0.15 < unchanged.float().mean().item() < 0.35  # both branches of half the samples: a quarter
    # The second branch reads what the first left, so only roughly.
    torch.testing.assert_close(changes.mean(0), plain, atol=0.25 * plain.abs().max().item(), rtol=0)


def test_dropout__at_the_places_of_the_fvit() -> None:
    """Embedding, projection and both layers of the MLP; none in eval mode."""
    network = transformer(dropout=0.5)
    rates = [module.rate for module in network.modules() if isinstance(module, Dropout)]
    assert rates == [0.5] * (1 + 3 * 6)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(tokens()), network(tokens()))


def test_recompute__changes_no_gradient() -> None:
    """Activation checkpointing computes the same numbers, dropout included."""
    network = transformer(dropout=0.3, drop_path=0.3).train()
    gradients = []
    for recompute in (False, True):
        network.transformer.recompute = recompute
        network.zero_grad()
        torch.manual_seed(5)
        network(tokens(batch=4)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_configured_size__one_of_two_settings() -> None:
    """`model.student` has the size of its name, so another `model.size` is an error."""
    assert configured_size(Model(student=f"timm/{TINY}")) == plain_vit(TINY).size
    assert isinstance(transformer(), TimmTransformer)
    with pytest.raises(ValueError, match="student=timm/test_vit has the size of its name"):
        Model(student=f"timm/{TINY}", size="tiny")
