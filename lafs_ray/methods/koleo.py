"""KoLeo: embeddings of a batch are spread over the sphere, each away from its nearest neighbor.

Source: Sablayrolles et al., "Spreading vectors for similarity search" (2019); `KoLeoLoss` of DINOv2. Shape letters: V
views, B images, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to each number of a difference, and to the distance, as in DINOv2.
_SMALLEST = 1e-8


def koleo_loss(embeddings: Tensor, *, num_views: int, partners: Tensor | None = None) -> Tensor:
    """Return minus the mean logarithm of the distance to the nearest embedding of another image, summed over views.

    Ours, as in DINOv2; the paper has no such term.

    Definition, with x the embeddings of one view, of length 1:

        nearest(i) = the j other than i and its partner with the largest x_i · x_j
        loss = sum over views of -mean over i of log(|x_i - x_nearest(i) + 1e-8| + 1e-8)

    Views are kept apart: two of the same image are to be alike. So are partners, images of one person.

    Args:
        embeddings: [V·B, D], view by view, B ≥ 2, with pairs B ≥ 3; in float32 here, also under autocast.
        num_views: V.
        partners: number of the image that each is paired with, int64 [B], its own where it has none; None: none has.

    Returns:
        A scalar, at least float32.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        views = F.normalize(rows, dim=-1, eps=_SMALLEST).view(num_views, -1, rows.shape[-1])
        assert views.shape[1] > (1 if partners is None else 2), embeddings.shape
        with torch.no_grad():
            cosines = views @ views.transpose(1, 2)
            cosines.diagonal(dim1=1, dim2=2).fill_(-2.0)
            if partners is not None:
                cosines.scatter_(2, partners.view(1, -1, 1).expand(num_views, -1, 1), -2.0)
            nearest = cosines.argmax(dim=2)
        others = views.gather(1, nearest.unsqueeze(-1).expand_as(views))
        distances = F.pairwise_distance(views, others, eps=_SMALLEST)
        return -(distances + _SMALLEST).log().mean(dim=1).sum()
