"""What a network sees: landmarks, attention, tokens, nearest neighbors, hardest pairs, as pictures."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lafs_ray.data.eval_sets import EvalFaces, PairSet
from lafs_ray.evaluation.embed import center, normalize
from lafs_ray.evaluation.protocols import centerings
from lafs_ray.evaluation.verification import pair_distances
from lafs_ray.models.embedder import FaceEmbedder
from lafs_ray.models.landmark_cnn import normalize_pixels
from lafs_ray.report import html
from lafs_ray.report.networks import Network

Images = NDArray[np.uint8]
Floats = NDArray[np.floating]

_SCALE, _COLUMNS = 2, 6
_QUERIES, _NEAREST = 6, 5
_HARDEST = 12


def landmark_pictures(before: nn.Module | None, after: nn.Module | None, images: Images) -> str:
    """Return faces with their landmarks, before and after training where both are known, and the spread in pixels.

    Args:
        before: landmark CNN; None: frozen, or not known.
        after: that of the trained network; None: it has none.
        images: uint8 [B, S, S, 3] RGB.
    """
    if after is None:
        return ""
    shown = [("after training" if before is not None else "landmarks", after)]
    if before is not None:
        shown.insert(0, ("before training", before))
    figures, positions = [], []
    for name, network in shown:
        with torch.inference_mode():
            points = np.asarray(network(_pixels(images)).float().numpy(), np.float32)
        positions.append(points)
        spread = float(points.std(axis=0).mean())
        caption = f"{name}: spread over these faces {spread:.2f} px (standard deviation of a landmark's x and y)"
        if spread < _FIXED_PX:
            caption += "; the same places on every face"
        figures.append(html.figure(_sheet(_with_points(images, points)), caption))
    text = ""
    if len(positions) == 2:
        moved = float(np.linalg.norm(positions[1] - positions[0], axis=-1).mean())
        text = html.paragraph(f"Training moved a landmark by {moved:.2f} px in the mean.")
    return html.heading("Landmarks") + text + "".join(figures)


_FIXED_PX = 0.05


@torch.inference_mode()
def landmarks_of(network: FaceEmbedder, images: Images) -> Floats:
    """Return landmarks [B, n, 2] in pixels; of a network without a landmark CNN the middles of its grid patches."""
    pixels = _pixels(images)
    if network.landmark_cnn is not None:
        return np.asarray(network.landmark_cnn(pixels).float().numpy(), np.float32)
    patch = network.patch_size
    middles = np.arange(patch / 2, images.shape[1], patch)
    y, x = np.meshgrid(middles, middles, indexing="ij")
    return np.broadcast_to(np.stack([x.ravel(), y.ravel()], axis=1), (len(images), x.size, 2)).astype(np.float32)


@torch.inference_mode()
def attention_pictures(network: FaceEmbedder, images: Images) -> str:
    """Return the class token's attention in the last block, mean over the heads: at each token, and as a heat map."""
    weights = network.attention(_pixels(images))[:, :, 0, 1:].mean(dim=1).float().numpy()
    points = landmarks_of(network, images)
    even = 1 / weights.shape[1]
    largest = float((weights.max(axis=1) / even).mean())
    heat = [_heated(image, place, weight) for image, place, weight in zip(images, points, weights, strict=True)]
    dots = [_dotted(image, place, weight) for image, place, weight in zip(images, points, weights, strict=True)]
    caption = f"the most attended token has {largest:.1f} times the even share, mean of these faces"
    if largest < _EVEN:
        caption += ": attention is close to even, so the maps show noise"
    return (
        html.heading("Attention of the class token")
        + html.figure(_sheet(np.stack(dots)), f"size of a dot: attention of its token; {caption}")
        + html.figure(_sheet(np.stack(heat)), "the same as a heat map, spread over each token's patch")
    )


_EVEN = 1.5


@torch.inference_mode()
def token_pictures(network: FaceEmbedder, images: Images) -> str:
    """Return the three first principal components of the output tokens as colors, as DINO's authors show patches."""
    outputs = network.transformer.outputs(network.tokens(_pixels(images)))[:, 1:].float().numpy()
    rows = outputs.reshape(-1, outputs.shape[-1]).astype(np.float64)
    rows -= rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows, full_matrices=False)
    share = float((singular[:3] ** 2).sum() / max((singular**2).sum(), 1e-12))
    colors = rows @ axes[:3].T
    low, high = np.percentile(colors, 2, axis=0), np.percentile(colors, 98, axis=0)
    colors = np.clip((colors - low) / np.maximum(high - low, 1e-9), 0, 1).reshape(*outputs.shape[:2], -1)
    points = landmarks_of(network, images)
    drawn = [_colored(image, place, color) for image, place, color in zip(images, points, colors, strict=True)]
    caption = f"three principal components of the tokens as red, green and blue: {share:.0%} of their variance"
    return html.heading("Tokens") + html.figure(_sheet(np.stack(drawn)), caption)


def neighbor_pictures(network: Network, faces: EvalFaces, images: Images, labels: NDArray[np.int64] | None) -> str:
    """Return example faces with their nearest neighbors among the faces shown to the network.

    Args:
        network: embeds them.
        faces: the faces.
        images: the same, decoded, [N, S, S, 3].
        labels: identity of each; None: unknown.
    """
    rows = normalize(center(network.embed(faces)))
    queries = np.linspace(0, len(rows) - 1, min(_QUERIES, len(rows))).astype(int)
    scores = rows[queries] @ rows.T
    scores[np.arange(len(queries)), queries] = -np.inf
    near = np.argsort(-scores, axis=1, kind="stable")[:, : min(_NEAREST, len(rows) - 1)]
    figures = []
    for query, found, score in zip(queries.tolist(), near, scores, strict=True):
        sheet = html.contact_sheet(images[[query, *found]], 1 + len(found))
        words = ", ".join(f"{score[n]:.2f}{_same(labels, query, n)}" for n in found.tolist())
        figures.append(html.figure(html.picture(sheet, f"face {query} and its neighbors"), f"cosine {words}"))
    text = f"Left a face, then its nearest of {len(rows):,} faces, by centered embeddings."
    if labels is not None:
        text += " ✓ marks the same identity."
    return html.heading("Nearest neighbors") + html.paragraph(text, "faint") + html.row(figures)


def _same(labels: NDArray[np.int64] | None, one: int, other: int) -> str:
    return " ✓" if labels is not None and labels[one] == labels[other] else ""


def hardest_pairs(network: Network, pairs: PairSet) -> str:
    """Return the different pairs that lie closest, and the same pairs that lie furthest apart."""
    is_centered = True in centerings(network.name)
    vectors = network.embed_pairs(pairs)
    distances = pair_distances(center(vectors) if is_centered else vectors)
    kind = "centered" if is_centered else "whitened"
    parts = []
    for is_same, title in ((False, "Different identities, closest"), (True, "One identity, furthest apart")):
        rows = np.flatnonzero(pairs.same == is_same)
        order = rows[np.argsort(distances[rows] * (-1 if is_same else 1), kind="stable")][:_HARDEST]
        figures = []
        for pair in order.tolist():
            sheet = html.contact_sheet(pairs.faces.read(2 * pair, 2 * pair + 2), 2)
            picture = html.picture(sheet, f"pair {pair}", 140)
            figures.append(html.figure(picture, f"pair {pair}: {distances[pair]:.3f}"))
        parts.append(html.heading(title) + html.row(figures))
    return "".join(parts) + html.paragraph(f"Squared distances of {kind} embeddings, 0 to 4.", "faint")


def _pixels(images: Images) -> torch.Tensor:
    return normalize_pixels(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float())


def _sheet(images: Images) -> str:
    return html.picture(html.contact_sheet(images, _COLUMNS), "faces")


def _enlarged(image: Images) -> Images:
    size = image.shape[0] * _SCALE
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def _with_points(images: Images, points: Floats) -> Images:
    """Draw landmarks, colored by their number, so that one landmark has one color on all faces."""
    hues = np.zeros((1, points.shape[1], 3), np.uint8)
    hues[0] = np.stack([np.linspace(0, 170, points.shape[1]), *np.full((2, points.shape[1]), 255.0)], axis=1)
    colors = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0] / 255
    return np.stack([_colored(image, place, colors) for image, place in zip(images, points, strict=True)])


def _colored(image: Images, points: Floats, colors: Floats) -> Images:
    drawn = _enlarged(image)
    for (x, y), color in zip(points * _SCALE, colors * 255, strict=True):
        cv2.circle(drawn, (round(float(x)), round(float(y))), 3, [float(value) for value in color], -1, cv2.LINE_AA)
    return drawn


def _dotted(image: Images, points: Floats, weights: Floats) -> Images:
    # Darker, so that the dots stand out.
    drawn = np.ascontiguousarray(_enlarged(image) * np.float32(0.55)).astype(np.uint8)
    radii = 1 + 7 * np.sqrt(weights / max(float(weights.max()), 1e-12))
    for (x, y), radius in zip(points * _SCALE, radii, strict=True):
        cv2.circle(drawn, (round(float(x)), round(float(y))), round(float(radius)), (255, 190, 40), -1, cv2.LINE_AA)
    return np.asarray(drawn, np.uint8)


def _heated(image: Images, points: Floats, weights: Floats) -> Images:
    side = image.shape[0]
    heat = np.zeros((side, side), np.float32)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    # As wide as the tokens are apart.
    width = 0.6 * side / np.sqrt(len(points))
    for (px, py), weight in zip(points, weights, strict=True):
        heat += weight * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2))
    scaled = (255 * (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)).astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(_enlarged(image), 0.45, _enlarged(colors), 0.55, 0), np.uint8)
