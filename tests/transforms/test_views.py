from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.config.finetune import Augmentation
from lafs_ray.config.views import LandmarkSource
from lafs_ray.models.patch_sampling import extract_patches
from lafs_ray.training.tasks.finetune import single_view_settings
from lafs_ray.transforms.augment_uint8 import change_appearance, crop_views
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor
from lafs_ray.transforms.params import ViewSettings, sample_view_params
from lafs_ray.transforms.views import MultiViewTransform, extract_tokens, supervised_view
from tests.transforms.faces import (
    KEYS,
    REMAP_STEPS,
    ZEROS,
    grid_landmarks,
    known_landmarks,
    lively_cnn,
    smooth_images,
    transform_of,
    view_settings,
)

SOURCES: tuple[LandmarkSource, ...] = ("per_view", "per_image", "cached", "template", "grid")


def cached(settings: ViewSettings, images: NDArray[np.uint8]) -> list[NDArray[np.float16]]:
    """Further arguments of the transform: landmarks of the images where the source is `cached`."""
    if settings.source != "cached":
        return []
    return [known_landmarks(LandmarkPredictor(lively_cnn()), images)]


@pytest.mark.parametrize("source", SOURCES)
def test_tokens__have_the_shapes_of_the_paper(source: LandmarkSource) -> None:
    """Two views of 196 tokens and eight of 36, as uint8 arrays, from every source."""
    images = smooth_images(3)
    images.flags.writeable = False
    settings = view_settings(source=source)
    names = (ZEROS[:3], ZEROS[:3], KEYS[:3])
    tokens = transform_of(settings)(images, *names, *cached(settings, images))
    assert list(tokens) == ["global_tokens", "local_tokens"]
    assert tokens["global_tokens"].shape == (3, 2, 196, 192)
    assert tokens["local_tokens"].shape == (3, 8, 36, 192)
    assert all(isinstance(value, np.ndarray) for value in tokens.values())
    assert all(value.dtype == np.uint8 for value in tokens.values())
    assert all(value.std() > 10 for value in tokens.values())


@pytest.mark.parametrize("source", SOURCES)
def test_tokens__of_given_draws(source: LandmarkSource) -> None:
    """Given the parameters that a call samples, the tokens are those of the call; other noise gives others."""
    images, settings = smooth_images(2), view_settings(source=source)
    names, known = (ZEROS[:2], ZEROS[:2], KEYS[:2]), cached(settings, images)
    transform, params = transform_of(settings), sample_view_params(settings, 0, *names)
    sampled, given = transform(images, *names, *known), transform.tokens(images, params, *known)
    still = replace(params, landmark_noise_px=np.zeros_like(params.landmark_noise_px))
    for name, value in transform.tokens(images, still, *known).items():
        assert np.array_equal(sampled[name], given[name])
        assert np.array_equal(sampled[name], value) is (source == "grid")


@pytest.mark.parametrize("source", SOURCES)
def test_tokens__of_orientations(source: LandmarkSource) -> None:
    """They have 32 numbers from every source, and are the same bits in any batch and chunk."""
    settings = view_settings(source=source, token_features="orientations")
    images = smooth_images(3)
    names, known = (ZEROS[:3], ZEROS[:3], KEYS[:3]), cached(settings, images)
    tokens = transform_of(settings)(images, *names, *known)
    assert tokens["global_tokens"].shape == (3, 2, 196, 32)
    assert tokens["local_tokens"].shape == (3, 8, 36, 32)
    assert all(value.std() > 10 for value in tokens.values())
    one = transform_of(settings, chunk=1)(images[2:], *(name[2:] for name in names), *(n[2:] for n in known))
    assert all(np.array_equal(one[name], tokens[name][2:]) for name in tokens)


@pytest.mark.parametrize("source", SOURCES)
def test_tokens__without_local_views(source: LandmarkSource) -> None:
    """With num_local = 0 there are the global tokens, and local ones of no view."""
    images, settings = smooth_images(2), view_settings(source=source, num_local=0)
    names = (ZEROS[:2], ZEROS[:2], KEYS[:2])
    tokens = transform_of(settings)(images, *names, *cached(settings, images))
    assert tokens["local_tokens"].shape == (2, 0, 36, 192)
    assert tokens["local_tokens"].dtype == np.uint8
    assert tokens["global_tokens"].shape == (2, 2, 196, 192)
    assert tokens["global_tokens"].std() > 10


@pytest.mark.parametrize("source", SOURCES)
def test_tokens__of_a_record_in_any_batch(source: LandmarkSource) -> None:
    """A record's tokens are equal bit by bit alone, in any batch and in any chunk."""
    settings = view_settings(source=source)
    # The full width: small matrices would hide kernels that change with the batch.
    cnn: nn.Module | None = None if source in ("cached", "grid") else lively_cnn(width=1.0)
    if source == "template":
        cnn = grid_landmarks(settings.num_landmarks)
    images, count = smooth_images(5), 5
    names = (ZEROS[:count] + 2, ZEROS[:count] + 1, KEYS[:count], *cached(settings, images))
    together = MultiViewTransform(settings, cnn, 7)(images, *names)
    for start, end, chunk in ((0, 1, 8), (1, 4, 2), (4, 5, 1)):
        rows = slice(start, end)
        part = MultiViewTransform(settings, cnn, 7, chunk=chunk)(images[rows], *(name[rows] for name in names))
        for name, value in part.items():
            np.testing.assert_array_equal(value, together[name][rows], err_msg=name)


@pytest.mark.parametrize("source", SOURCES)
def test_tokens__of_any_number_of_threads(source: LandmarkSource) -> None:
    """One to four threads, torch's and OpenCV's, give the same bits."""
    settings = view_settings(source=source)
    # The full width: its convolutions are the ones whose sums oneDNN splits by threads.
    cnn = None if source in ("cached", "grid") else lively_cnn(width=1.0)
    images = smooth_images(1)
    names = (ZEROS[:1], ZEROS[:1], KEYS[:1], *cached(settings, images))
    before, tokens = (torch.get_num_threads(), cv2.getNumThreads()), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            tokens.append(MultiViewTransform(settings, cnn, 7)(images, *names))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    for others in tokens[1:]:
        for name, value in tokens[0].items():
            np.testing.assert_array_equal(value, others[name], err_msg=name)


def naive_tokens(settings: ViewSettings, cnn: nn.Module, image: Tensor, key: int) -> list[Tensor]:
    """Reference: one view after another; landmarks on the clean view, patches on the other."""
    params = sample_view_params(settings, 0, ZEROS[:1], ZEROS[:1], np.array([key]))
    tokens = []
    for view in range(settings.num_views):
        one = params.views(slice(view, view + 1))
        clean = crop_views(image[None], one.boxes, one.flips, 112)
        landmarks = cnn(clean / 255 * 2 - 1) + torch.from_numpy(one.landmark_noise_px[:, 0])
        if view >= settings.num_global:
            landmarks = landmarks[:, params.local_indices[0, view - settings.num_global]]
        changed = change_appearance(clean, one).float() / 255 * 2 - 1
        tokens.append(extract_patches(changed, landmarks, settings.patch_size)[0])
    return tokens


@pytest.mark.parametrize("replacement", [False, True])
def test_tokens__equal_one_view_after_another(replacement: bool) -> None:
    """Batching changes nothing but the rounding to 8 bits."""
    settings = view_settings(replacement=replacement)
    images, cnn = smooth_images(2), lively_cnn()
    tokens = MultiViewTransform(settings, cnn, 0)(images, ZEROS[:2], ZEROS[:2], KEYS[:2])
    for row in range(2):
        with torch.no_grad():
            expected = naive_tokens(settings, cnn, torch.from_numpy(images[row]), row)
        for view, values in enumerate(expected):
            name, index = ("global_tokens", view) if view < 2 else ("local_tokens", view - 2)
            found = torch.from_numpy(tokens[name][row, index]) / 127.5 - 1
            # Half a step of 8 bits; outside a view half a step more (128 stands for 127.5); and landmarks that differ
            # in the last bits of float32.
            assert (found - values).abs().max() < (1.0 + REMAP_STEPS) / 127.5 + 1e-3
            assert (found - values).abs().mean() < 0.25 / 127.5 + 1e-3


def test_grid__cuts_the_augmented_view_row_by_row() -> None:
    """DINO on faces: tokens are the view's own patches, untransposed."""
    settings = view_settings(source="grid")
    images = smooth_images(2)
    tokens = transform_of(settings)(images, ZEROS[:2], ZEROS[:2], KEYS[:2])
    params = sample_view_params(settings, 0, ZEROS[:2], ZEROS[:2], KEYS[:2])
    for name, views, size in (("global_tokens", slice(0, 2), 112), ("local_tokens", slice(2, 10), 48)):
        part = params.views(views)
        clean = crop_views(torch.from_numpy(images), part.boxes, part.flips, size)
        pixels = change_appearance(clean, part)
        cells = size // 8
        expected = pixels.reshape(-1, 3, cells, 8, cells, 8).permute(0, 2, 4, 3, 5, 1)
        np.testing.assert_array_equal(tokens[name].reshape(expected.shape), expected.byte())


def test_tokens__outside_the_view_are_the_middle_of_the_range() -> None:
    """Zero in [-1, 1] lies at 127.5, which rounds to 128."""
    white = torch.full((1, 3, 112, 112), 255.0)
    tokens = extract_tokens(white, torch.tensor([[[-30.0, 50.0], [50.0, 50.0]]]), 8)
    assert (tokens[0, 0] == 128).all()
    assert (tokens[0, 1] == 255).all()


def test_tokens__change_with_the_epoch() -> None:
    """The next epoch sees other views of the same record."""
    transform, images = transform_of(view_settings(source="grid")), smooth_images(1)
    first = transform(images, ZEROS[:1], ZEROS[:1], KEYS[:1])
    second = transform(images, ZEROS[:1] + 1, ZEROS[:1], KEYS[:1])
    assert (first["global_tokens"] != second["global_tokens"]).any()


def test_supervised_view__is_one_whole_image_per_record() -> None:
    """Stage 1 gets uint8 images that depend on the record alone and resemble the input."""
    settings, images = single_view_settings(Augmentation()), smooth_images(5)
    names = (ZEROS[:5], ZEROS[:5], KEYS[:5])
    views = supervised_view(settings, images, 0, *names)
    assert views.shape == (5, 112, 112, 3)
    assert views.dtype == torch.uint8
    alone = supervised_view(settings, images[3:4], 0, *(name[3:4] for name in names))
    assert torch.equal(views[3:4], alone)
    other = supervised_view(settings, images, 1, *names)
    assert not torch.equal(views, other)
