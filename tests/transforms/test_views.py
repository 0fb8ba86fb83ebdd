from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lafs_ray.config.finetune import Augmentation
from lafs_ray.config.train import TokenFeatures
from lafs_ray.config.views import LandmarkSource
from lafs_ray.models.landmark_cnn import fuse_batch_norms
from lafs_ray.models.patch_sampling import extract_patches
from lafs_ray.training.tasks.finetune import single_view_settings
from lafs_ray.transforms.augment_uint8 import change_appearance, crop_views
from lafs_ray.transforms.landmark_predictor import LandmarkPredictor
from lafs_ray.transforms.params import ViewSettings, sample_view_params
from lafs_ray.transforms.views import MultiViewTransform, extract_tokens, map_landmarks, supervised_view
from tests.transforms.faces import (
    REMAP_STEPS,
    grid_landmarks,
    known_landmarks,
    lively_cnn,
    smooth_images,
    view_settings,
)

SOURCES: tuple[LandmarkSource, ...] = ("per_view", "per_image", "cached", "template", "grid")
ZEROS = np.zeros(16, dtype=np.int64)
KEYS = np.arange(16, dtype=np.int64)


def transform_of(settings: ViewSettings, **arguments: object) -> MultiViewTransform:
    cnn: nn.Module | None = None if settings.source in ("cached", "grid") else lively_cnn()
    if settings.source == "template":
        cnn = grid_landmarks(settings.num_landmarks)
    return MultiViewTransform(settings, cnn, 0, **arguments)  # type: ignore[arg-type]


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


def test_landmarks__of_a_view_in_any_batch() -> None:
    """The CNN's float landmarks are the same bits alone and among others."""
    transform = MultiViewTransform(view_settings(), lively_cnn(width=1.0), 0)
    planes = torch.from_numpy(smooth_images(19)).permute(0, 3, 1, 2).float()
    together = transform.predict_landmarks(planes)
    assert together.std(dim=0).mean() > 0
    for rows in (slice(0, 1), slice(5, 12), slice(3, 19), slice(18, 19)):
        assert torch.equal(transform.predict_landmarks(planes[rows]), together[rows])


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


def test_landmarks__follow_a_flip() -> None:
    """Mirroring the image and its landmarks mirrors the patches."""
    image = torch.from_numpy(smooth_images(1)).permute(0, 3, 1, 2).float()
    landmarks = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * 130 - 10
    whole = np.array([[[0, 0, 112, 112]]], dtype=np.int32)
    mirrored = map_landmarks(landmarks[:, None], torch.from_numpy(whole), torch.tensor([[True]]), 112)[:, 0]
    patches = extract_tokens(image, landmarks, 8).reshape(50, 8, 8, 3)
    found = extract_tokens(image.flip(-1), mirrored, 8).reshape(50, 8, 8, 3)
    # The first axis of a patch runs along x. Sampling positions are exact to 1e-5 pixels.
    difference = found.float() - patches.flip(1).float()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 0.01


@pytest.mark.parametrize("flip", [False, True])
def test_landmarks__follow_a_crop(flip: bool) -> None:
    """A landmark of the image and its place in the crop show the same color."""
    # Color is position, so that any error in the mapping shows.
    position = np.arange(112, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(position, position[:, None], np.uint8(0)), axis=-1)
    boxes = np.array([[[20, 10, 64, 80]]], dtype=np.int32)
    view = crop_views(torch.from_numpy(image[None].copy()), boxes, np.array([[flip]]), 112)
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.rand(1, 30, 2, generator=generator) * 40 + torch.tensor([30.0, 32.0])
    mapped = map_landmarks(landmarks[:, None], torch.from_numpy(boxes), torch.tensor([[flip]]), 112)[:, 0]
    seen = extract_patches(view, mapped, 1)[0, :, :2]
    plain = torch.from_numpy(image[None].copy()).permute(0, 3, 1, 2).float()
    # p = 1 has its only pixel one up-left of the landmark, as larger patches have their middle.
    expected = extract_patches(plain, landmarks, 1)[0, :, :2]
    # The view is rounded to whole numbers after each of two passes.
    assert (seen - expected).abs().max() < 1


def test_per_image__equals_per_view_without_a_crop() -> None:
    """With the identity crop both sources see the same images, mirrored ones too, and find the same landmarks."""
    whole = (1.0, 1.0)
    per_view = view_settings(crop_area=whole, local_crop_area=whole, crop_aspect=whole)
    per_image = replace(per_view, source="per_image")
    images = smooth_images(3)
    first = transform_of(per_view)(images, ZEROS[:3], ZEROS[:3], KEYS[:3])
    second = transform_of(per_image)(images, ZEROS[:3], ZEROS[:3], KEYS[:3])
    plain = [replace(settings, flip=0.0) for settings in (per_view, per_image)]
    one, other = (transform_of(settings)(images, ZEROS[:3], ZEROS[:3], KEYS[:3]) for settings in plain)
    for name, value in first.items():
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        difference = np.abs(value.astype(int) - second[name].astype(int))
        # Mirroring a place twice moves it by 4e-6 px, which turns a byte in a million.
        assert difference.max() <= 1 + REMAP_STEPS, name
        assert (difference != 0).mean() < 1e-4, name


@pytest.mark.parametrize("features", ["pixels", "orientations"])
@pytest.mark.parametrize("source", ["template", "per_image", "per_view"])
def test_tokens__of_mirrored_views_are_those_of_the_mirror_image(
    source: LandmarkSource, features: TokenFeatures
) -> None:
    """As evaluation embeds mirror images: each place of the transformer gets the landmark that it always gets."""
    whole, still = (1.0, 1.0), {"jitter": 0.0, "gray": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": 0.0, "noise_px": 0.0}
    crops = {"crop_area": whole, "local_crop_area": whole, "crop_aspect": whole}
    settings = view_settings(source=source, token_features=features, flip=1.0, num_local=0, **crops, **still)
    images, names = smooth_images(3), (ZEROS[:3], ZEROS[:3], KEYS[:3])
    mirrored = transform_of(settings)(images, *names)["global_tokens"]
    plain = transform_of(replace(settings, flip=0.0))(images[:, :, ::-1].copy(), *names)["global_tokens"]
    difference = np.abs(mirrored.astype(int) - plain.astype(int))
    # A product with the flipped matrix, and places that differ by the last bits of float32.
    assert difference.mean() < 0.05
    assert np.quantile(difference, 0.999) <= 1 + REMAP_STEPS


def test_cached__equals_per_image() -> None:
    """With landmarks that float16 holds, of images as of mirror images, both sources cut the same bits."""
    per_image, fast = view_settings(source="per_image"), fuse_batch_norms(lively_cnn())

    class Halves(nn.Module):
        def forward(self, planes: Tensor) -> Tensor:
            return (fast(planes) * 2).round() / 2

    images, names = smooth_images(5), (ZEROS[:5], ZEROS[:5], KEYS[:5])
    landmarks = known_landmarks(LandmarkPredictor(Halves()), images)
    found = MultiViewTransform(replace(per_image, source="cached"), None, 7)(images, *names, landmarks)
    for name, tokens in MultiViewTransform(per_image, Halves(), 7)(images, *names).items():
        np.testing.assert_array_equal(tokens, found[name], err_msg=name)


def test_cached__equals_per_image_up_to_float16() -> None:
    """Landmarks rounded to float16 cut nearly the same."""
    per_image = view_settings(source="per_image")
    settings = replace(per_image, source="cached")
    images, names = smooth_images(5), (ZEROS[:5], ZEROS[:5], KEYS[:5])
    cnn = lively_cnn(width=1.0)
    landmarks = LandmarkPredictor(cnn)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    rounded = known_landmarks(LandmarkPredictor(cnn), images)
    # Numbers up to 111 px lie between float16's steps of 1/16 px.
    assert np.abs(rounded[:, 0] - landmarks).max() <= 1 / 32
    found = MultiViewTransform(settings, None, 7)(images, *names, rounded)

    exact = MultiViewTransform(per_image, cnn, 7)(images, *names)
    # With OpenCV 4 a sample may besides jump to the next 32nd of a pixel.
    jump = 3 if REMAP_STEPS else 0
    for name, tokens in found.items():
        difference = np.abs(tokens.astype(int) - exact[name].astype(int))
        assert 0 < difference.mean() < 0.2, name
        # A crop enlarges 1/32 px to 1/16 at most, in which these images change by 6 steps at most.
        pixels = exact[name].reshape(*exact[name].shape[:-1], 64, 3)
        at_border = (pixels == 128).all(axis=-1).any(axis=-1)
        assert difference[~at_border].max() <= 6 + jump, name
        # Outside a view lies the middle of the range, 127 steps from white at most: 8 of them in 1/16 px, and one for
        # rounding.
        assert difference.max() <= 9 + jump, name


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


def test_tokens__of_a_template_are_those_of_its_cached_positions() -> None:
    """Positions of a template move with each crop as the landmarks of a face do, noise included."""
    images = smooth_images(3)
    network = grid_landmarks(196)
    names = (ZEROS[:3], ZEROS[:3], KEYS[:3])
    tokens = MultiViewTransform(view_settings(source="template"), network, 0)(images, *names)
    positions = known_landmarks(network, images)
    expected = MultiViewTransform(view_settings(source="cached"), None, 0)(images, *names, positions)
    for name, value in tokens.items():
        assert np.array_equal(value, expected[name]), name
