"""`lafs inputs`: the color order and value range that a checkpoint was trained with, by trying them on pairs."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass

from torch import Tensor, nn

from lafs_ray.data.eval_sets import PairSet, open_pairs
from lafs_ray.evaluation.embed import embed_faces, flip_sum
from lafs_ray.evaluation.verification import kfold_accuracy, pair_distances
from lafs_ray.messages import show
from lafs_ray.training.checkpoint.inference import convert, inference_device

# Factor and offset from [-1, 1].
RANGES = {"-1..1": (1.0, 0.0), "-0.5..0.5": (0.5, 0.0), "0..1": (0.5, 0.5), "0..255": (127.5, 127.5)}
ORDERS = ("rgb", "bgr")
_NUM_FOLDS = 10


@dataclass(frozen=True)
class Trial:
    """What one kind of input gives.

    Args:
        order: of the colors that the network gets.
        value_range: of its values.
        accuracy: of the pairs, mean over ten folds.
        std: over the folds.
    """

    order: str
    value_range: str
    accuracy: float
    std: float


class _Changed(nn.Module):
    """A network behind another input: takes RGB in [-1, 1] and gives the network what is tried."""

    def __init__(self, network: nn.Module, order: str, value_range: str) -> None:
        super().__init__()
        self.network, self.order = network, order
        self.factor, self.offset = RANGES[value_range]

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flip(1) if self.order == "bgr" else images
        return self.network(pixels * self.factor + self.offset)  # type: ignore[no-any-return]


def print_inputs(options: Namespace) -> None:
    """Print the pair accuracy of each color order and range, and which input the checkpoint expects.

    Raises:
        UserError: the checkpoint or the pairs are missing or damaged.
    """
    pairs = open_pairs(options.pairs, options.color_order)
    weights = convert(options.checkpoint, landmarks=options.landmarks, grid=options.grid).weights
    network = weights.embedder().to(inference_device(options.device))
    trials = try_inputs(network, pairs, options.device)
    show(f"{weights.source}\n{len(pairs.same):,} pairs of {pairs.uri}, decoded as {options.color_order}")
    show(f"{'color order':14}{'value range':14}accuracy")
    for trial in trials:
        show(f"{trial.order:14}{trial.value_range:14}{trial.accuracy:.4f} ± {trial.std:.4f}")
    show(verdict(trials))


def try_inputs(network: nn.Module, pairs: PairSet, device: str = "cpu") -> list[Trial]:
    """Return a trial of each color order and range, the best first."""
    trials = []
    for order in ORDERS:
        for value_range in RANGES:
            changed = _Changed(network, order, value_range)
            vectors = flip_sum(embed_faces(changed, pairs.faces, device=device))
            found = kfold_accuracy(pair_distances(vectors), pairs.same)
            trials.append(Trial(order, value_range, found.mean, found.std))
    return sorted(trials, key=lambda trial: -trial.accuracy)


def verdict(trials: list[Trial]) -> str:
    """Say which inputs the best one is better than by more than two standard errors."""
    best = trials[0]
    noise = 2 * math.hypot(best.std, best.std) / math.sqrt(_NUM_FOLDS)
    equal = [one for one in trials[1:] if best.accuracy - one.accuracy <= noise]
    name = f"{best.order}, values in {best.value_range}"
    if not equal:
        return f"expects {name}: better than every other by more than {noise:.4f}, two standard errors"
    others = "; ".join(f"{one.order}, {one.value_range}" for one in equal)
    return f"best: {name}, but these pairs do not tell it from: {others}; try more pairs"
