"""Draws README's picture of the method: faces, landmarks, tokens.

    python docs/make_picture.py docs/method.webp

Rendered faces with their true landmarks (`lafs make-faces --landmarks facemesh` writes the same), and the tokens that
`lafs_ray.transforms` takes there: a patch of 8 × 8 pixels at each landmark. The same on any machine, up to rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lafs_ray.synthetic.capture import sample_capture
from lafs_ray.synthetic.identity import sample_identity
from lafs_ray.synthetic.landmarks import FACEMESH, layout_positions, true_landmarks
from lafs_ray.synthetic.renderer import render_face
from lafs_ray.transforms.augment_uint8 import sample_patches

FACES = ((3, 0), (11, 1), (16, 0))
"""Identity and image of each row, of seed 0."""
PATCH, LOCAL = 8, 36
SCALE, GAP, HEAD = 2, 12, 30
COLUMNS = ("face", "196 landmarks", "196 tokens: teacher", "36 of them: student")

Image = NDArray[np.uint8]


def mosaic(patches: Image) -> Image:
    """Return tokens [N, P, P, 3] as one square image, in the order of the landmarks."""
    side = round(len(patches) ** 0.5)
    rows = patches.reshape(side, side, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows.reshape(side * PATCH, side * PATCH, 3))


def enlarged(image: Image, size: int) -> Image:
    """Return an image at a side of `size` pixels."""
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def row(identity_number: int, image_number: int) -> list[Image]:
    """Return the four pictures of a face, one for each column."""
    identity, capture = sample_identity(0, identity_number), sample_capture(0, identity_number, image_number)
    face = render_face(identity, capture)
    landmarks = true_landmarks(identity, capture, layout_positions(FACEMESH))
    # The first axis of a patch runs along x.
    patches = sample_patches(face[None], landmarks[None], PATCH)[0].reshape(-1, PATCH, PATCH, 3).swapaxes(1, 2)
    chosen = np.sort(np.random.default_rng(identity_number).choice(len(patches), LOCAL, replace=False))
    size = face.shape[0] * SCALE
    dotted = enlarged(face, size)
    for number, (x, y) in enumerate(landmarks * SCALE):
        color = (255, 190, 40) if number in chosen else (70, 220, 255)
        cv2.circle(dotted, (round(float(x)), round(float(y))), 2, color, -1, cv2.LINE_AA)
    return [enlarged(face, size), dotted, enlarged(mosaic(patches), size), enlarged(mosaic(patches[chosen]), size)]


def main(path: str) -> None:
    """Write the picture to a `.webp` file."""
    rows = [row(*face) for face in FACES]
    size = rows[0][0].shape[0]
    sheet = np.full((HEAD + len(rows) * (size + GAP), len(COLUMNS) * (size + GAP) - GAP, 3), 255, np.uint8)
    for column, title in enumerate(COLUMNS):
        place = (column * (size + GAP), HEAD - 10)
        cv2.putText(sheet, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (60, 60, 60), 1, cv2.LINE_AA)
        for line, pictures in enumerate(rows):
            top, left = HEAD + line * (size + GAP), column * (size + GAP)
            sheet[top : top + size, left : left + size] = pictures[column]
    _, data = cv2.imencode(".webp", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 82])
    Path(path).write_bytes(data.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
