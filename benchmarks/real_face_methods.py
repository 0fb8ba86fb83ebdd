"""What `benchmarks.real_faces` compares: ways to pretrain, and ways to train on few labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]

GRID: Tree = {"model.num_landmarks": 49, "model.patch_size": 16, "landmarks.source": "grid"}
# Three times the steps of the preset.
FOR_LONGER: Tree = {"duration": "4500 steps", "optim.warmup": "450 steps"}
ON_GRID: Tree = {**GRID, "model.token_features": "pixels"}
GRID_LONGER, GRID_PAIRED = "DINO-face for longer", "DINO-face with neighbors"
METHODS: dict[str, Tree] = {
    "LAFS": {},
    "LAFS on pixels": {"model.token_features": "pixels", "model.patch_size": 16},
    "DINO-face": ON_GRID,
    GRID_LONGER: {**ON_GRID, **FOR_LONGER},
    GRID_PAIRED: ON_GRID,
    "DINO-face on orientations": GRID,
}
LANDMARKS, LONGER = "LAFS at landmarks", "LAFS at landmarks for longer"
# Positives of other photographs, mined by that network, untrained and whitened with neighbors.
PAIRED = "LAFS with neighbors"
# From that network, untrained and whitened with neighbors, to the class token of one as large or of a wider one.
DISTILLED, SHALLOW = "distilled at landmarks", "distilled at landmarks to shallow"
# As long as the other distillation, where the CPU has bfloat16.
TO_SHALLOW: Tree = {
    "model.size": "shallow",
    "duration": "640 steps",
    "optim.warmup": "64 steps",
    "compute.precision": "bfloat16",
}
SCRATCH, ALONE = "from scratch", "landmarks alone"
# Methods that come with a landmark CNN, if they are asked for.
AT_LANDMARKS = (LONGER, PAIRED, GRID_PAIRED, SHALLOW)
# Untrained, these networks are those of other rows.
SAME_START = (DISTILLED, SHALLOW, LONGER, PAIRED, GRID_LONGER, GRID_PAIRED)
FINETUNED_SOURCE = {
    LANDMARKS: "cnn",
    LONGER: "cnn",
    PAIRED: "cnn",
    DISTILLED: "cnn",
    SHALLOW: "cnn",
    "DINO-face": "grid",
    GRID_LONGER: "grid",
    GRID_PAIRED: "grid",
    "DINO-face on orientations": "grid",
}


@dataclass(frozen=True)
class Arm:
    """A way to train on few labels.

    Args:
        name: in the table.
        method: of `METHODS`, whose network it is; None: the template's.
        start: what it starts from: nothing, the landmark CNN alone, a pretraining run, a network whitened after
            pretraining, or the same one untrained and whitened.
        is_regularized: whether its landmarks are held near those of the CNN that it starts from.
    """

    name: str
    method: str | None
    start: str
    is_regularized: bool = False

    @property
    def is_pretrained(self) -> bool:
        """Whether faces without labels taught its transformer."""
        return self.start in ("run", "whitened")

    @property
    def has_transformer(self) -> bool:
        """Whether it starts from a transformer, trained or not."""
        return self.start not in ("nothing", "landmarks")

    @property
    def is_whitened(self) -> bool:
        """Whether it starts from a whitened network."""
        return self.start.endswith("whitened")


def arms_of(methods: list[str], *, has_landmarks: bool) -> list[Arm]:
    """Return the arms of these methods, those without pretraining first."""
    arms = [Arm(SCRATCH, None, "nothing")]
    if has_landmarks:
        arms.append(Arm(ALONE, LANDMARKS, "landmarks"))
    arms += [Arm(method, method, "run") for method in methods]
    if has_landmarks:
        own = [method for method in methods if method in (LANDMARKS, PAIRED)]
        arms += [Arm(f"{method} + regularizer", method, "run", is_regularized=True) for method in own]
        arms.append(Arm(f"{ALONE}, whitened", LANDMARKS, "untrained, whitened"))
        arms.append(Arm(f"{LANDMARKS}, whitened", LANDMARKS, "whitened"))
    return arms


def chosen_arms(methods: list[str], names: list[str] | None, *, has_landmarks: bool) -> list[Arm]:
    """Return the arms of these names; None: all.

    Raises:
        SystemExit: there is no arm of a name.
    """
    arms = arms_of(methods, has_landmarks=has_landmarks)
    if unknown := {*(names or ())} - {arm.name for arm in arms}:
        raise SystemExit(f"--arms: no {sorted(unknown)}; there are {[arm.name for arm in arms]}")
    return [arm for arm in arms if names is None or arm.name in names]


def beside(arm: Arm) -> list[str]:
    """Return the names of the arms without pretraining that a pretrained one has to beat."""
    return [SCRATCH, ALONE, f"{ALONE}, whitened"] if arm.is_whitened else [SCRATCH, ALONE]
